"""MLflow's rules for the input of a model: which tables its signature takes, and what becomes of each value.

They are looser than those of `signature.rows_of`: a text that is a number is one, a null is NaN in a column of
floats, a fraction loses its decimals in a column of integers. They depend on the form of the request as well, since
MLflow parses some forms with pandas and some with numpy. Where MLflow answers an error, so does this; beyond that it
refuses what MLflow would change without a word: an integer that the column's type, or a float64, cannot hold.
"""

import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from serve_app.domain.errors import InvalidInputError
from serve_app.domain.signature import Column, DType, InputLayout, json_kind, shortened


class Casting(StrEnum):
    """What MLflow parses a form of request with."""

    COLUMNS = "columns"
    """`dataframe_split`, `dataframe_records`: pandas, column by column. Rows that are too short end in nulls."""
    VALUES = "values"
    """`instances`, and `inputs` that is a list of rows or an object of columns: numpy, value by value."""
    RECORDS = "records"
    """`inputs` that is a list of objects: numpy value by value, then pandas takes its own guess at each column."""
    TEXT = "text"
    """CSV: every value is a string, as it stands between the commas."""


class Missing(Enum):
    """Stands in a row for a field that its object lacks, where others have it."""

    FIELD = "a missing field"


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a request as they came, before any check of a value.

    `names` are the columns' names where the form has names, None where the columns only have places. A row is a list
    of JSON values in the order of `names`; `Missing.FIELD` where an object lacks one. `is_flat` says that the request
    was a plain list of values instead of a list of lists, so that each row here has one value. The first row of a CSV
    is `names`, not in `rows`; rows may be longer than it, for then pandas takes the surplus in front for an index.
    """

    names: tuple[Any, ...] | None
    rows: list[list[Any]]
    casting: Casting = Casting.COLUMNS
    is_flat: bool = False


def enforced_rows(
    table: Table, columns: Sequence[Column], *, max_rows: int, layout: InputLayout = "named"
) -> list[list[float]]:
    """Turn a table into rows of floats in the order of `columns`, by MLflow's rules; NaN and infinities may be in them.

    Raises:
        InvalidInputError: The table does not fit, or a value cannot be what its column is.
    """
    if not table.rows:
        raise InvalidInputError("expected at least one row, got none")
    if len(table.rows) > max_rows:
        raise InvalidInputError(f"expected at most {max_rows} rows in a request, got {len(table.rows)}")
    _check_form(table, columns, layout)
    rows = _of_one_width(table)
    places = _places(table, columns, layout, width=len(rows[0]))
    if table.casting is Casting.COLUMNS and any(column.dtype == "bool" for column in columns):
        rows = _with_pandas_nulls(rows, columns, places)
    if table.casting is Casting.TEXT:
        rows = _with_pandas_guesses(rows, columns, places)
    if any(Missing.FIELD in row for row in rows):
        rows = _with_fields_filled(rows, columns, places, table.casting)
    casts_of = _FROM_TEXT if table.casting is Casting.TEXT else _FROM_JSON
    casts = [(place, casts_of[column.dtype]) for place, column in zip(places, columns, strict=True)]
    try:
        return [[cast(row[place]) for place, cast in casts] for row in rows]
    except (TypeError, ValueError, OverflowError):
        raise _first_problem(rows, columns, casts) from None


def _check_form(table: Table, columns: Sequence[Column], layout: InputLayout) -> None:
    """Refuse a form that this kind of signature never takes."""
    if layout in ("tensor", "vector") and table.casting is Casting.TEXT:
        raise InvalidInputError("expected a JSON body, for the model takes a tensor, got CSV")
    is_by_value = table.casting in (Casting.VALUES, Casting.RECORDS)
    if layout != "named" and is_by_value and table.names is not None:
        raise InvalidInputError("expected rows as lists, for the model's signature names no columns, got named ones")
    if layout == "positional" and is_by_value and len({column.dtype for column in columns}) > 1:
        raise InvalidInputError("expected a data frame, for the columns of the signature differ in type, got an array")
    if is_by_value and layout in ("tensor", "exact", "free") and table.is_flat:
        raise InvalidInputError(f"expected rows of {len(columns)} values, got a plain list of values")
    if is_by_value and layout == "vector" and not table.is_flat:
        raise InvalidInputError("expected a plain list of values, got a list of rows")


def _of_one_width(table: Table) -> list[list[Any]]:
    """Return the rows with one length: pandas fills short rows with nulls, numpy refuses them."""
    rows = table.rows
    if table.casting is Casting.TEXT and table.names is not None and len(rows[0]) > len(table.names):
        n_index = len(rows[0]) - len(table.names)
        rows = [row[n_index:] for row in rows]
    width = max(map(len, rows))
    if table.names is not None and (width > len(table.names) or (width < len(table.names) and not _is_csv(table))):
        raise InvalidInputError(f"expected rows of {len(table.names)} values, one for each column, got {width}")
    width = max(width, len(table.names or ()))
    short = next((i for i, row in enumerate(rows) if len(row) < width), None)
    if short is None:
        return rows
    if table.casting in (Casting.VALUES, Casting.RECORDS):
        raise InvalidInputError(f"row {short}: expected {width} values as in others, got {len(rows[short])}")
    null = "" if _is_csv(table) else None
    return [[*row, *[null] * (width - len(row))] for row in rows]


def _is_csv(table: Table) -> bool:
    return table.casting is Casting.TEXT


def _places(table: Table, columns: Sequence[Column], layout: InputLayout, *, width: int) -> list[int]:
    """Say where in a row of the table each column of the signature stands."""
    if layout == "named" or (layout == "exact" and table.names is not None):
        return _places_by_name(table, columns, is_exact=layout == "exact")
    if width < len(columns) or (width > len(columns) and layout != "positional"):
        raise InvalidInputError(f"expected {len(columns)} columns, got {width}")
    return list(range(len(columns)))


def _places_by_name(table: Table, columns: Sequence[Column], *, is_exact: bool) -> list[int]:
    expected = [column.name for column in columns]
    if table.names is None:
        if len(columns) == 1 and table.is_flat and table.casting is Casting.VALUES:
            return [0]
        raise InvalidInputError(f"expected named columns ({_some(expected)}), got rows without names")
    if is_exact and list(table.names) != expected:
        raise InvalidInputError(
            f"expected exactly the columns {_some(expected)}, in this order, got {_some(table.names)}"
        )
    if missing := [name for name in expected if name not in table.names]:
        raise InvalidInputError(f"missing column{'s' if len(missing) > 1 else ''} {_some(missing)}")
    if double := next((name for name in expected if table.names.count(name) > 1), None):
        raise InvalidInputError(f"column {double!r}: expected it once, got it {table.names.count(double)} times")
    return [table.names.index(name) for name in expected]


def _some(names: Sequence[Any], most: int = 6) -> str:
    shown = ", ".join(shortened(name) if isinstance(name, str) else str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, … {len(names) - most} more"


def _with_pandas_nulls(rows: list[list[Any]], columns: Sequence[Column], places: Sequence[int]) -> list[list[Any]]:
    """Make nulls in columns of bool what pandas makes of them: NaN, which is true, unless it keeps the column as is."""
    copies = [list(row) for row in rows]
    for place, column in zip(places, columns, strict=True):
        given = [row[place] for row in rows if row[place] is not None]
        kinds = {bool if isinstance(value, bool) else type(value) for value in given if value == value}  # NaN is none
        if column.dtype == "bool" and given and (kinds <= {int, float} or kinds == {str}):
            for row in copies:
                row[place] = math.nan if row[place] is None else row[place]
    return copies


def _with_pandas_guesses(rows: list[list[str]], columns: Sequence[Column], places: Sequence[int]) -> list[list[str]]:
    """Write columns of CSV as their type wants them where pandas first takes them for another that can be changed.

    A column of nothing but true and false may be one of numbers, a column of nothing but 1 and 0 one of bool.
    """
    copies = [list(row) for row in rows]
    for place, column in zip(places, columns, strict=True):
        as_wanted = _as_truth if column.dtype == "bool" else _as_one
        wanted = [as_wanted(row[place]) for row in rows]
        if None not in wanted:
            for row, cell in zip(copies, wanted, strict=True):
                row[place] = cell or ""
    return copies


def _as_truth(cell: str) -> str | None:
    """Write a number that is one or zero as true or false."""
    try:
        return {1.0: "true", 0.0: "false"}.get(_float64_of(cell))
    except ValueError:
        return None


def _as_one(cell: str) -> str | None:
    """Write true or false as a number; nothing stays nothing."""
    return "" if cell in _NULL_TEXTS else {"true": "1", "false": "0"}.get(cell.lower())


def _with_fields_filled(
    rows: list[list[Any]], columns: Sequence[Column], places: Sequence[int], casting: Casting
) -> list[list[Any]]:
    """Put NaN where an object lacks a field, as pandas does; refuse it where that would change the column's type."""
    copies = [list(row) for row in rows]
    for place, column in zip(places, columns, strict=True):
        for i, row in enumerate(copies):
            if row[place] is not Missing.FIELD:
                continue
            is_widened = casting is Casting.RECORDS and column.dtype == "float32"
            if casting is Casting.VALUES or is_widened:
                raise InvalidInputError(f"row {i}: missing field {column.name!r}, which others have")
            row[place] = math.nan
    return copies


def _first_problem(
    rows: list[list[Any]], columns: Sequence[Column], casts: Sequence[tuple[int, Callable[[Any], float]]]
) -> InvalidInputError:
    for i, row in enumerate(rows):
        for column, (place, cast) in zip(columns, casts, strict=True):
            try:
                cast(row[place])
            except (TypeError, ValueError, OverflowError):
                return InvalidInputError(
                    f"row {i}, field {column.name!r}: expected {_EXPECTED[column.dtype]}, got {json_kind(row[place])}"
                )
    raise AssertionError("a value was refused, and then none")


_EXPECTED = {
    "float64": "a number or null",
    "float32": "a number or null",
    "int64": "an integer that int64 and float64 can hold",
    "int32": "an integer that int32 can hold",
    "bool": "true or false",
    "string": "no column of text, for only numbers are served",
}


def _float64(value: Any) -> float:
    if type(value) is float:
        return value
    if value is None:
        return math.nan
    if isinstance(value, int | float | str):
        return float(value)
    raise TypeError


_FLOAT32 = struct.Struct("f")


def _float32(value: Any) -> float:
    wide = _float64(value)
    try:
        narrow: float = _FLOAT32.unpack(_FLOAT32.pack(wide))[0]
    except OverflowError:  # numpy makes it infinite
        return math.copysign(math.inf, wide)
    return narrow


def _int64(value: Any) -> float:
    if not isinstance(value, int | float | str):
        raise TypeError
    whole = int(value)
    if not -(1 << 63) <= whole < 1 << 63 or int(float(whole)) != whole:
        raise OverflowError
    return float(whole)


def _int32(value: Any) -> float:
    whole = _int64(value)
    if not -(1 << 31) <= whole < 1 << 31:
        raise OverflowError
    return whole


def _bool(value: Any) -> float:
    if isinstance(value, list | dict):
        raise TypeError
    return float(bool(value))


def _refused(_: Any) -> float:
    raise TypeError


_FROM_JSON: dict[DType, Callable[[Any], float]] = {
    "float64": _float64, "float32": _float32, "int64": _int64, "int32": _int32, "bool": _bool, "string": _refused,
}  # fmt: skip

_NULL_TEXTS = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null"}
)  # fmt: skip
_TRUTHS = {"true": 1.0, "false": 0.0}
_WHOLE = re.compile(r"[ \t]*[+-]?[0-9]+[ \t]*")


def _float64_of(text: str) -> float:
    if text in _NULL_TEXTS:
        return math.nan
    if "_" in text or not text.isascii():
        raise ValueError
    return float(text)


def _whole_of(text: str) -> int:
    if _WHOLE.fullmatch(text):
        return int(text)
    value = _float64_of(text)
    if not value.is_integer():
        raise ValueError
    return int(value)


def _bool_of(text: str) -> float:
    try:
        return _TRUTHS[text.lower()]
    except KeyError:
        raise ValueError from None


_FROM_TEXT: dict[DType, Callable[[Any], float]] = {
    "float64": _float64_of,
    "float32": lambda text: _float32(_float64_of(text)),
    "int64": lambda text: _int64(_whole_of(text)),
    "int32": lambda text: _int32(_whole_of(text)),
    "bool": _bool_of,
    "string": _refused,
}
