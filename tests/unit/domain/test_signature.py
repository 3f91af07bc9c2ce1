from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.domain.errors import InvalidInputError
from serve_app.domain.signature import Column, Signature, rows_of

NAMES = ("cpu", "ram")


def rows(instances: Any, *, max_rows: int = 10) -> list[list[float]]:
    return rows_of(instances, NAMES, max_rows=max_rows)


def test_names_keep_their_order() -> None:
    signature = Signature(inputs=(Column(name="b"), Column(name="a")), outputs=(Column(name="y"),))
    assert signature.input_names == ("b", "a")
    assert signature.output_names == ("y",)


def test_column_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="inputs name a column twice: a"):
        Signature(inputs=(Column(name="a"), Column(name="a")), outputs=(Column(name="y"),))


def test_side_without_columns_is_refused() -> None:
    with pytest.raises(ValidationError, match="outputs must name at least one column"):
        Signature(inputs=(Column(name="a"),), outputs=())


@pytest.mark.parametrize("instances", [[[1, 2.5]], [1, 2.5], {"ram": 2.5, "cpu": 1}, [{"cpu": 1, "ram": 2.5}]], ids=str)
def test_one_row_in_any_spelling_is_the_same_row(instances: Any) -> None:
    assert rows(instances) == [[1, 2.5]]


@pytest.mark.parametrize(
    ("instances", "said"),
    [
        ("text", "expected a list of rows, got the string 'text'"),
        (None, "expected a list of rows, got null"),
        ([], "expected at least one row, got an empty list"),
        ([[1, 2]] * 11, "expected at most 10 rows in a request, got 11"),
        ([[1]], "row 0: expected 2 values (cpu, ram), got 1"),
        ([[1, 2], [1, 2, 3]], "row 1: expected 2 values (cpu, ram), got 3"),
        ([[1, 2], 3], "row 1: expected a list of 2 numbers or an object, got the number 3"),
        ([{"cpu": 1}], "row 0: missing field ram"),
        ([{"cpu": 1, "ran": 2}], "row 0: unknown field 'ran' (did you mean 'ram'?)"),
        ([["1", 2]], "row 0, field 'cpu': expected a number, got the string '1'"),
        ([[True, 2]], "row 0, field 'cpu': expected a number, got true"),
        ([[1, None]], "row 0, field 'ram': expected a number, got null"),
        ([[1, float("nan")]], "row 0, field 'ram': expected a finite number"),
        ([[1, 10**400]], "row 0, field 'ram': expected a finite number"),
    ],
    ids=str,
)
def test_rows_that_do_not_fit_are_refused_with_place_expected_and_got(instances: Any, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        rows(instances)
    assert said in str(caught.value)


@given(
    st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2), min_size=1, max_size=9)
)
def test_finite_rows_pass_unchanged(instances: list[list[float]]) -> None:
    assert rows(instances) == instances
