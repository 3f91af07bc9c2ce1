import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.domain.errors import InvalidInputError
from serve_app.domain.mlflow_schema import Casting, Missing, Table, enforced_rows
from serve_app.domain.signature import Column, DType, InputLayout

DTYPES: dict[DType, str] = {
    "float64": "double", "float32": "float", "int64": "long", "int32": "integer", "bool": "boolean",
}  # fmt: skip
NAMES = ("a", "b")

# What both take alike. Beyond it lie values that MLflow changes without a word, and that are refused here: see below.
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 31), (1 << 31) - 1),
    st.floats(-1e9, 1e9),
    st.sampled_from(["1.5", " 2 ", "x", "", "nan", "1_0", "True", 1e300, math.nan]),
)
dtypes = st.tuples(st.sampled_from(sorted(DTYPES)), st.sampled_from(sorted(DTYPES)))
tables = st.lists(st.tuples(values, values).map(list), min_size=1, max_size=3)


def columns(*types: DType) -> list[Column]:
    return [Column(name=name, dtype=dtype) for name, dtype in zip(NAMES, types, strict=False)]


def by_mlflow(parsed: Callable[[Any], Any], types: tuple[DType, ...]) -> list[list[float]] | None:
    """What MLflow's server would give its model, or None for an error."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from mlflow.exceptions import MlflowException
        from mlflow.models.utils import _enforce_schema
        from mlflow.types.schema import ColSpec, Schema

        schema = Schema([ColSpec(DTYPES[dtype], name) for dtype, name in zip(types, NAMES, strict=True)])
        try:
            frame = _enforce_schema(parsed(schema), schema)
        except MlflowException:
            return None
        return [[float(value) for value in row] for row in frame.itertuples(index=False)]


def by_us(table: Table, types: tuple[DType, ...]) -> list[list[float]] | None:
    try:
        return enforced_rows(table, columns(*types), max_rows=10)
    except InvalidInputError:
        return None


def same(ours: list[list[float]] | None, theirs: list[list[float]] | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return bool(np.array_equal(ours, theirs, equal_nan=True))


def is_changed(rows: list[list[Any]], types: tuple[DType, ...]) -> bool:
    """Whether a value is one that pandas wraps around, where this refuses it."""
    return any(
        dtype in ("int64", "int32") and isinstance(value, float) and abs(value) >= 1 << 31
        for row in rows
        for value, dtype in zip(row, types, strict=True)
    )


def parse_json(document: dict[str, Any]) -> Callable[[Any], Any]:
    def parsed(schema: Any) -> Any:
        from mlflow.pyfunc.scoring_server import infer_and_parse_data

        return infer_and_parse_data(document, schema)

    return parsed


slow = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@slow
@given(rows=tables, types=dtypes)
def test_split_frames_become_what_mlflow_makes_of_them(rows: list[list[Any]], types: tuple[DType, DType]) -> None:
    theirs = by_mlflow(parse_json({"dataframe_split": {"columns": list(NAMES), "data": rows}}), types)
    ours = by_us(Table(NAMES, rows, Casting.COLUMNS), types)
    assert same(ours, theirs) or (ours is None and is_changed(rows, types))


@slow
@given(rows=tables, types=dtypes)
def test_instances_become_what_mlflow_makes_of_them(rows: list[list[Any]], types: tuple[DType, DType]) -> None:
    records = [dict(zip(NAMES, row, strict=True)) for row in rows]
    theirs = by_mlflow(parse_json({"instances": records}), types)
    assert same(by_us(Table(NAMES, rows, Casting.VALUES), types), theirs)


@slow
@given(rows=tables, types=dtypes)
def test_inputs_as_records_become_what_mlflow_makes_of_them(rows: list[list[Any]], types: tuple[DType, DType]) -> None:
    records = [dict(zip(NAMES, row, strict=True)) for row in rows]
    theirs = by_mlflow(parse_json({"inputs": records}), types)
    assert same(by_us(Table(NAMES, rows, Casting.RECORDS), types), theirs)


@slow
@given(rows=tables, types=dtypes)
def test_inputs_as_columns_become_what_mlflow_makes_of_them(rows: list[list[Any]], types: tuple[DType, DType]) -> None:
    document = {name: [row[i] for row in rows] for i, name in enumerate(NAMES)}
    theirs = by_mlflow(parse_json({"inputs": document}), types)
    assert same(by_us(Table(NAMES, rows, Casting.VALUES), types), theirs)


CELLS = ["1.5", " 1", "1 ", "+1", "1e3", "-inf", "NA", "", "none", "True", "false", "tRue", "1_0", "0x10", "5.", "1 2",
         "2147483648", "-7", "1e400", "9" * 20]  # fmt: skip


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize(
    "cell", [*CELLS, *(f"{cell}/{other}" for cell in ("true", "0", "1.0", "") for other in ("1", "False", "2.5"))]
)
def test_csv_cells_become_what_mlflow_makes_of_them(cell: str, dtype: DType) -> None:
    cells = cell.split("/")

    def parsed(schema: Any) -> Any:
        from mlflow.pyfunc.scoring_server import parse_csv_input

        return parse_csv_input(io.StringIO("a,b\n" + "".join(f"{cell},1\n" for cell in cells)), schema)

    types: tuple[DType, DType] = (dtype, "float64")
    assert same(by_us(Table(NAMES, [[cell, "1"] for cell in cells], Casting.TEXT), types), by_mlflow(parsed, types))


def refusal(table: Table, *types: DType, layout: InputLayout = "named", max_rows: int = 10) -> str:
    with pytest.raises(InvalidInputError) as caught:
        enforced_rows(table, columns(*types), max_rows=max_rows, layout=layout)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "dtype"), [(2**63, "int64"), (2**53 + 1, "int64"), (1 << 31, "int32"), (1e19, "int64")]
)
def test_integers_that_would_be_changed_are_refused(value: float, dtype: DType) -> None:
    assert "expected an integer that" in refusal(Table(("a",), [[value]]), dtype)


def test_columns_are_found_by_name_and_others_are_left_out() -> None:
    table = Table(("x", "b", "a"), [[9, 2, 1]])
    assert enforced_rows(table, columns("float64", "float64"), max_rows=1) == [[1.0, 2.0]]


def test_what_does_not_fit_is_told_in_one_sentence() -> None:
    two: tuple[DType, DType] = ("float64", "float64")
    assert refusal(Table(("a",), [[1]]), *two) == "missing column 'b'"
    assert refusal(Table(None, [[1, 2]]), *two) == "expected named columns ('a', 'b'), got rows without names"
    assert refusal(Table(("a", "b", "a"), [[1, 2, 3]]), *two) == "column 'a': expected it once, got it 2 times"
    assert refusal(Table(NAMES, [[1, 2, 3]]), *two) == "expected rows of 2 values, one for each column, got 3"
    assert refusal(Table(NAMES, []), *two) == "expected at least one row, got none"
    assert refusal(Table(NAMES, [[1, 2]] * 2), *two, max_rows=1) == "expected at most 1 rows in a request, got 2"
    assert refusal(Table(NAMES, [[1, 2], [3, "x"]]), *two) == (
        "row 1, field 'b': expected a number or null, got the string 'x'"
    )
    assert "only numbers are served" in refusal(Table(("a",), [["x"]]), "string")


def test_short_rows_end_in_nulls_in_frames_and_are_refused_in_arrays() -> None:
    (_, second) = enforced_rows(Table(NAMES, [[1, 2], [3]]), columns("float64", "float64"), max_rows=2)
    assert second[0] == 3.0
    assert math.isnan(second[1])
    table = Table(None, [[1, 2], [3]], Casting.VALUES)
    assert "row 1: expected 2 values" in refusal(table, "float64", "float64", layout="tensor")


def test_field_that_an_object_lacks_is_nan_unless_it_changes_the_type_of_the_column() -> None:
    rows: list[list[Any]] = [[1, Missing.FIELD], [1, 2]]
    ((_, lacking), _) = enforced_rows(Table(NAMES, rows, Casting.RECORDS), columns("float64", "float64"), max_rows=2)
    assert math.isnan(lacking)
    assert "missing field 'b'" in refusal(Table(NAMES, rows, Casting.RECORDS), "float64", "float32")
    assert "missing field 'b'" in refusal(Table(NAMES, rows, Casting.VALUES), "float64", "float64")
    assert "got the number nan" in refusal(Table(NAMES, rows, Casting.COLUMNS), "float64", "int64")


@pytest.mark.parametrize(
    ("layout", "table"),
    [
        ("tensor", Table(NAMES, [[1, 2]], Casting.VALUES)),
        ("tensor", Table(NAMES, [["1", "2"]], Casting.TEXT)),
        ("tensor", Table(None, [[1, 2, 3]], Casting.VALUES)),
        ("tensor", Table(None, [[1], [2]], Casting.VALUES, is_flat=True)),
        ("positional", Table(NAMES, [[1, 2]], Casting.RECORDS)),
        ("positional", Table(None, [[1]])),
        ("exact", Table(("b", "a"), [[1, 2]])),
        ("exact", Table(("a", "b", "x"), [[1, 2, 3]])),
        ("free", Table(None, [[1]], Casting.VALUES)),
    ],
)
def test_form_that_mlflow_refuses_for_this_kind_of_signature(layout: InputLayout, table: Table) -> None:
    refusal(table, "float64", "float64", layout=layout)


@pytest.mark.parametrize(
    ("layout", "table"),
    [
        ("tensor", Table(("x", "y"), [[1, 2]])),
        ("tensor", Table(None, [[1, 2]], Casting.VALUES)),
        ("positional", Table(("x", "y", "z"), [[1, 2, 3]])),
        ("exact", Table(NAMES, [[1, 2]])),
        ("exact", Table(None, [[1, 2]], Casting.VALUES)),
        ("free", Table(("x", "y"), [[1, 2]])),
    ],
)
def test_form_that_mlflow_takes_by_place(layout: InputLayout, table: Table) -> None:
    assert enforced_rows(table, columns("float64", "float64"), max_rows=1, layout=layout) == [[1.0, 2.0]]


def test_vector_takes_a_plain_list_of_values() -> None:
    flat = Table(None, [[1], [2]], Casting.VALUES, is_flat=True)
    assert enforced_rows(flat, columns("int64"), max_rows=2, layout="vector") == [[1.0], [2.0]]
    refusal(Table(None, [[1], [2]], Casting.VALUES), "int64", layout="vector")
    assert enforced_rows(flat, columns("int64"), max_rows=2) == [[1.0], [2.0]]
