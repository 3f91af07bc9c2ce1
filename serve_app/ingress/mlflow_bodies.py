"""The bodies of MLflow's scoring protocol: four forms of JSON and CSV in, predictions or an error out.

What a form means is what MLflow makes of it. Left out, and refused: Parquet, bodies for language models, and forms that
pandas takes by guessing (`data` that is no list of rows, a CSV row longer than the header).
"""

import csv
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from typing import Any, Final

import orjson
from numpy.typing import NDArray

from serve_app.domain.errors import InvalidInputError, NotJsonError, UnsupportedMediaTypeError
from serve_app.domain.mlflow_schema import Casting, Missing, Table
from serve_app.domain.signature import Signature, json_kind, shortened
from serve_app.ingress import error_responses

JSON: Final = "application/json"
CSV: Final = "text/csv"
_FOR_LANGUAGE_MODELS: Final = ("messages", "prompt", "input")
_SPLIT_KEYS: Final = frozenset({"columns", "data", "index"})
_CODES: Final = {
    400: "BAD_REQUEST", 404: "RESOURCE_DOES_NOT_EXIST", 413: "BAD_REQUEST", 415: "BAD_REQUEST", 500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bounds:
    """What of a body is laid out: `wanted` columns, at most `max_rows` rows.

    Columns that nobody wants are left out but for a few, so that a short body cannot ask for a table of gigabytes; as
    many stay that the table still has too many columns.
    """

    wanted: tuple[str, ...]
    max_rows: int

    def kept(self, names: Sequence[Any]) -> list[int]:
        """Return the places of the columns to lay out: those wanted, and the first ones up to one more than wanted."""
        first = len(self.wanted) + 1
        if len(names) <= first:
            return list(range(len(names)))
        wanted = frozenset(self.wanted)
        return [i for i, name in enumerate(names) if i < first or name in wanted]


def read_table(body: bytes, content_type: bytes, bounds: Bounds) -> Table:
    """Read the rows of a body.

    Raises:
        UnsupportedMediaTypeError: The content type is neither JSON nor CSV in UTF-8.
        NotJsonError: The body is not what its content type says.
        InvalidInputError: The document is none of the forms, or has too many rows.
    """
    if media_type_of(content_type) == CSV:
        return _of_csv(body, bounds)
    form, value = _form_of(_document_of(body))
    return _READERS[form](value, bounds)


@lru_cache(maxsize=64)
def media_type_of(content_type: bytes) -> str:
    """Return `application/json` or `text/csv`; MLflow compares to the letter and takes no parameter but the charset.

    Raises:
        UnsupportedMediaTypeError: With what came.
    """
    text = content_type.decode("latin-1")
    kind, *parameters = (part.strip() for part in text.split(";"))
    given = {name: value for name, _, value in (parameter.partition("=") for parameter in parameters)}
    if given.pop("charset", "utf-8").lower() != "utf-8":
        raise UnsupportedMediaTypeError(f"expected a body in UTF-8, got content-type {shortened(text)}")
    if kind not in (JSON, CSV) or given:
        raise UnsupportedMediaTypeError(f"expected content-type {JSON} or {CSV}, got {shortened(text)}")
    return kind


def predictions_body(outputs: NDArray[Any], signature: Signature) -> bytes:
    """Write outputs (n_rows, n_outputs) in their layout; without one as a value a row, or several with their names."""
    layout = signature.output_layout
    if layout == "values" or (layout is None and len(signature.outputs) == 1):
        rows: Any = outputs[:, 0].tolist()
    elif layout == "rows":
        rows = outputs.tolist()
    else:
        columns = [
            # Outputs of several types come as the widest one.
            [int(value) for value in values.tolist()] if column.dtype == "int64" else values.tolist()
            for column, values in zip(signature.outputs, outputs.T, strict=True)
        ]
        rows = [dict(zip(signature.output_names, row, strict=True)) for row in zip(*columns, strict=True)]
    return orjson.dumps({"predictions": rows})


def error_response(error: Exception) -> error_responses.Response:
    """Build the answer `{"error_code": …, "message": …}`; what is 422 elsewhere is 400 here, as with MLflow."""
    status, headers, body = error_responses.error_response(error)
    if status == 422:
        status = 400
    code = "INVALID_PARAMETER_VALUE" if isinstance(error, InvalidInputError) else _CODES.get(status, "INTERNAL_ERROR")
    message = orjson.loads(body)["detail"]
    return status, headers, orjson.dumps({"error_code": code, "message": message})


def _document_of(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass  # NaN and Infinity, which MLflow's own clients send, and UTF-16 are for the slower parser
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        if not body.strip():
            raise NotJsonError("expected a JSON document, got an empty body") from None
        raise NotJsonError(f"expected a JSON document, got {len(body)} bytes that are none") from None


def _form_of(document: Any) -> tuple[str, Any]:
    """Return the one form that a document has, and what stands under it; other keys, `params` too, mean nothing."""
    if type(document) is not dict:
        raise InvalidInputError(f"expected an object with one of {_EXPECTED}, got {json_kind(document)}")
    if key := next((key for key in _FOR_LANGUAGE_MODELS if key in document), None):
        raise InvalidInputError(f"{key!r}: bodies for language models are not read; expected one of {_EXPECTED}")
    given = [form for form in _READERS if form in document]
    if len(given) != 1:
        raise InvalidInputError(f"expected exactly one of {_EXPECTED}, got {' and '.join(given) or 'none of them'}")
    return given[0], document[given[0]]


def _of_split(value: Any, bounds: Bounds) -> Table:
    if type(value) is not dict:
        raise InvalidInputError(f"'dataframe_split': expected an object, got {json_kind(value)}")
    if unknown := [key for key in value if key not in _SPLIT_KEYS]:
        told = shortened(unknown[0])
        raise InvalidInputError(f"'dataframe_split': expected columns, data and index, got {told} as well")
    rows, _ = _rows_of(_list_of(value.get("data"), "data", bounds), "data")
    columns, index = value.get("columns"), value.get("index")
    for key, labels in (("columns", columns), ("index", index)):
        if labels is not None and not (type(labels) is list and all(map(_is_scalar, labels))):
            raise InvalidInputError(f"{key!r}: expected a list of labels, got {json_kind(labels)}")
    if index is not None and len(index) != len(rows):
        raise InvalidInputError(f"'index': expected {len(rows)} labels, one for each row, got {len(index)}")
    width = max(map(len, rows), default=0)
    if columns is not None and rows and len(columns) != width:
        raise InvalidInputError(f"expected rows of {len(columns)} values, one for each column, got {width}")
    return _laid_out(columns, rows, bounds, Casting.COLUMNS)


def _of_records(value: Any, bounds: Bounds) -> Table:
    items = _list_of(value, "dataframe_records", bounds)
    if items and type(items[0]) is dict:
        return _of_objects(items, "dataframe_records", bounds, Casting.COLUMNS)
    rows, is_flat = _rows_of(items, "dataframe_records")
    return _laid_out(None, rows, bounds, Casting.COLUMNS, is_flat=is_flat)


def _of_instances(value: Any, bounds: Bounds) -> Table:
    if type(value) is list and value and type(value[0]) is dict:
        items = _list_of(value, "instances", bounds)
        table = _of_objects(items, "instances", bounds, Casting.VALUES)
        for i, item in enumerate(items):
            if item.keys() != items[0].keys():
                raise InvalidInputError(f"'instances', row {i}: expected the same fields as in row 0")
        return table
    return _of_values(value, "instances", bounds)


def _of_inputs(value: Any, bounds: Bounds) -> Table:
    if type(value) is list and value and type(value[0]) is dict:
        return _of_objects(_list_of(value, "inputs", bounds), "inputs", bounds, Casting.RECORDS)
    return _of_values(value, "inputs", bounds)


def _of_values(value: Any, key: str, bounds: Bounds) -> Table:
    """Read an object of columns, a list of rows, or a list of values."""
    if type(value) is dict:
        return _of_columns(value, key, bounds)
    rows, is_flat = _rows_of(_list_of(value, key, bounds), key)
    return _laid_out(None, rows, bounds, Casting.VALUES, is_flat=is_flat)


def _of_columns(value: dict[str, Any], key: str, bounds: Bounds) -> Table:
    """Read an object of columns; a single value stands for a column of it, as long as the others.

    Only a column that the model knows may be a single value, and it must be a value: so MLflow has it.
    """
    for name, column in value.items():
        if type(column) is not list and (name not in bounds.wanted or type(column) is dict):
            raise InvalidInputError(f"{key!r}, column {shortened(name)}: expected a list, got {json_kind(column)}")
    lengths = {len(column) for column in value.values() if type(column) is list}
    if len(lengths) > 1:
        raise InvalidInputError(f"{key!r}: expected columns of one length, got {min(lengths)} and {max(lengths)}")
    n_rows = lengths.pop() if lengths else 1
    _check_rows(n_rows, bounds)
    names, columns = list(value), list(value.values())
    kept = bounds.kept(names)
    full = [columns[i] if type(columns[i]) is list else [columns[i]] * n_rows for i in kept]
    rows = [list(row) for row in zip(*full, strict=True)]
    return Table(tuple(names[i] for i in kept), rows, Casting.VALUES)


def _of_objects(items: list[Any], key: str, bounds: Bounds, casting: Casting) -> Table:
    """Read a list of objects; the columns are all their fields, in the order in which they first come."""
    names: dict[str, None] = {}
    for i, item in enumerate(items):
        if type(item) is not dict:
            raise InvalidInputError(f"{key!r}, row {i}: expected an object as in row 0, got {json_kind(item)}")
        if item.keys() != names.keys():
            names.update(dict.fromkeys(item))
    every = list(names)
    kept = [every[i] for i in bounds.kept(every)]
    return Table(tuple(kept), [[item.get(name, Missing.FIELD) for name in kept] for item in items], casting)


def _of_csv(body: bytes, bounds: Bounds) -> Table:
    try:
        text = body.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise NotJsonError(f"expected CSV in UTF-8, got {len(body)} bytes that are not") from None
    lines = (cells for cells in csv.reader(StringIO(text, newline=""), strict=True) if not _is_blank(cells))
    try:
        names, *rows = list(itertools.islice(lines, bounds.max_rows + 2)) or [[]]
    except csv.Error as error:
        raise NotJsonError(f"expected CSV, got {len(body)} bytes that are none: {error}") from None
    if not names:
        raise InvalidInputError("expected CSV with a line of column names, got nothing")
    _check_rows(len(rows), bounds)
    for i, row in enumerate(rows):
        if len(row) > len(names):  # pandas would take the first value for a label and shift the others
            raise InvalidInputError(f"row {i}: expected {len(names)} values, one for each column, got {len(row)}")
    return _laid_out(names, rows, bounds, Casting.TEXT)


_READERS: Final[dict[str, Callable[[Any, Bounds], Table]]] = {
    "dataframe_split": _of_split, "dataframe_records": _of_records, "instances": _of_instances, "inputs": _of_inputs,
}  # fmt: skip
FORMS: Final = tuple(_READERS)
_EXPECTED: Final = ", ".join(FORMS)


def _laid_out(
    names: list[Any] | None, rows: list[list[Any]], bounds: Bounds, casting: Casting, *, is_flat: bool = False
) -> Table:
    """Make a table of rows that are lists: as they are, unless some columns are left out or some rows are short."""
    width = max(map(len, rows), default=0) if names is None else len(names)
    if casting is Casting.VALUES and any(len(row) != width for row in rows):
        raise InvalidInputError("expected rows of one length, got rows of different lengths")
    places = bounds.kept(range(width) if names is None else names)
    if len(places) < width or casting is Casting.TEXT:
        null = "" if casting is Casting.TEXT else None
        rows = [[row[i] if i < len(row) else null for i in places] for row in rows]
        names = None if names is None else [names[i] for i in places]
    return Table(None if names is None else tuple(names), rows, casting, is_flat)


def _check_rows(n_rows: int, bounds: Bounds) -> None:
    if n_rows > bounds.max_rows:
        raise InvalidInputError(f"expected at most {bounds.max_rows} rows in a request, got more")


def _list_of(value: Any, key: str, bounds: Bounds) -> list[Any]:
    if type(value) is not list:
        raise InvalidInputError(f"{key!r}: expected a list of rows, got {json_kind(value)}")
    _check_rows(len(value), bounds)
    return value


def _rows_of(items: list[Any], key: str) -> tuple[list[list[Any]], bool]:
    """Return a list of lists as it is, and a list of values as rows of one value, with True."""
    if all(type(item) is list for item in items):
        return items, False
    for item in items:
        if not _is_scalar(item):
            raise InvalidInputError(f"{key!r}: expected rows that are all lists, or all values, got {json_kind(item)}")
    return [[item] for item in items], True


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, list | dict)


def _is_blank(cells: list[str]) -> bool:
    return not cells or (len(cells) == 1 and not cells[0].strip(" \t"))
