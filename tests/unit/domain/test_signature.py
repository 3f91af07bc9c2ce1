import math
import re
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
        ([[1, [2]]], "row 0, field 'ram': expected a number, got a list of 1"),
        ([[1, {}]], "row 0, field 'ram': expected a number, got an object"),
        ([{"x" * 1000: 1}], f"row 0: unknown field '{'x' * 64}…'"),
        ([["y" * 1000, 2]], f"expected a number, got the string '{'y' * 24}…'"),
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


@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=2), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_whatever_comes_is_rows_of_finite_numbers_or_refused(instances: Any) -> None:
    try:
        found = rows(instances)
    except InvalidInputError as error:
        assert len(str(error)) < 300  # noqa: PT017  # either outcome is right
    else:
        assert all(len(row) == 2 and all(math.isfinite(value) for value in row) for row in found)


def test_number_of_columns_is_shown_and_the_many_names_are_cut() -> None:
    with pytest.raises(InvalidInputError) as caught:
        rows_of([[1]], [f"c{i}" for i in range(9)], max_rows=1)
    assert str(caught.value) == "row 0: expected 9 values (c0, c1, c2, c3, c4, c5, … 3 more), got 1"


TYPED = Signature(
    inputs=(
        Column(name="n", dtype="int64"),
        Column(name="ok", dtype="bool"),
        Column(name="x"),
        Column(name="f", dtype="float32"),
        Column(name="i", dtype="int32"),
    ),
    outputs=(Column(name="y"),),
)


def typed(*instances: Any) -> list[list[float]]:
    return rows_of(list(instances), TYPED.input_names, max_rows=9, typed=TYPED.typed_inputs)


def test_typed_inputs_are_those_that_do_not_take_every_float() -> None:
    assert TYPED.typed_inputs == ((0, "n", "int64"), (1, "ok", "bool"), (3, "f", "float32"), (4, "i", "int32"))
    assert Signature(inputs=(Column(name="a"),), outputs=(Column(name="y"),)).typed_inputs == ()


def test_values_that_fit_their_types_are_taken_from_lists_and_objects() -> None:
    row = {"x": 1.5, "ok": True, "n": 2.0, "f": 1, "i": -7}
    assert typed([2, False, 0.5, 1e38, 3], row) == [[2, 0, 0.5, 1e38, 3], [2, 1, 1.5, 1, -7]]
    assert row["ok"] is True


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([1.5, True, 0, 0, 0], "field 'n': expected an integer of at most 2**53"),
        ([2**53 + 1, True, 0, 0, 0], "field 'n': expected an integer of at most 2**53"),
        ([1, 2, 0, 0, 0], "field 'ok': expected true, false, 1 or 0, got the number 2"),
        ([1, "yes", 0, 0, 0], "field 'ok': expected a number, got the string 'yes'"),
        ([1, True, True, 0, 0], "field 'x': expected a number, got true"),
        ([1, True, 0, 1e39, 0], "field 'f': expected a number within the range of float32, got the number 1e+39"),
        ([1, True, 0, 0, 1 << 31], "field 'i': expected an integer within the range of int32"),
        ([1, True], "expected 5 values"),
        ({"n": 1, "ok": True}, "missing fields x, f, i"),
        ([10**400, True, 0, 0, 0], "field 'n': expected an integer of at most 2**53"),
        ([0, True, 0, 10**400, 0], "field 'f': expected a finite number"),
    ],
)
def test_values_that_do_not_fit_their_types_are_refused(row: Any, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(problem)):
        typed(row)


TENSORS = Signature(
    inputs=(Column(name="key", dtype="int64"), Column(name="window", dtype="float32", shape=(12, 2))),
    outputs=(Column(name="level"), Column(name="forecast", shape=(4, 3)), Column(name="score")),
)


def test_tensor_takes_as_many_values_of_a_row_as_it_has_elements() -> None:
    assert [column.width for column in TENSORS.inputs] == [1, 24]
    assert (TENSORS.input_width, TENSORS.output_width) == (25, 14)
    assert TENSORS.has_tensors


def test_signature_without_tensors_is_as_wide_as_it_has_columns() -> None:
    assert (TYPED.input_width, TYPED.output_width) == (5, 1)
    assert not TYPED.has_tensors


@pytest.mark.parametrize(
    ("place", "name"), [(0, "level"), (1, "forecast[0]"), (4, "forecast[3]"), (12, "forecast[11]"), (13, "score")]
)
def test_values_of_an_answer_are_named_by_column_and_place_in_it(place: int, name: str) -> None:
    assert TENSORS.output_at(place) == name


def test_place_beyond_the_answer_has_no_name() -> None:
    with pytest.raises(IndexError, match="expected a place below 14"):
        TENSORS.output_at(14)


@pytest.mark.parametrize("shape", [(0,), (3, -1), (2.5,)])
def test_shape_without_elements_is_refused(shape: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        Column.model_validate({"name": "x", "shape": shape})


def test_shape_is_written_only_where_there_is_one() -> None:
    assert Column(name="x").model_dump_json() == '{"name":"x","dtype":"float64","unit":null,"description":null}'
    assert Signature.model_validate_json(TENSORS.model_dump_json()) == TENSORS
