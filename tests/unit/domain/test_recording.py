import pytest

from serve_app.domain.recording import RecordHead, ReplayError, columns_told, places_of
from serve_app.domain.signature import Column, Signature
from tests.recorded import head, signature


def test_head_names_columns_and_where_neutral_values_stand() -> None:
    wide = Signature(
        inputs=(Column(name="a"), Column(name="t", shape=(2, 2)), Column(name="b")), outputs=(Column(name="y"),)
    )
    made = RecordHead.of(wide, ("t",))
    assert (made.inputs, made.outputs) == ((("a", 1), ("t", 4), ("b", 1)), (("y", 1),))
    assert made.redacted_places == (1, 2, 3, 4)
    assert head().redacted_places == ()


def test_what_is_to_be_redacted_must_be_an_input_or_nothing_is_recorded() -> None:
    with pytest.raises(ReplayError, match=r"'cpuu' is no input \(did you mean 'cpu'\?\); nothing is recorded"):
        RecordHead.of(signature(), ("cpuu",))


def test_columns_in_another_order_are_found_and_other_columns_are_not() -> None:
    recorded = (("a", 1), ("t", 2))
    assert places_of(recorded, (("t", 2), ("a", 1))) == [1, 2, 0]
    assert places_of(recorded, recorded) == [0, 1, 2]
    assert places_of(recorded, (("a", 1), ("t", 3))) is None
    assert places_of(recorded, (("a", 1),)) is None


def test_many_columns_are_told_in_short() -> None:
    assert columns_told((("a", 1), ("t", 2))) == "a, t[2]"
    assert columns_told([(f"c{i}", 1) for i in range(10)]).endswith("c7, … 2 more")
