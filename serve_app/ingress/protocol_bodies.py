"""What the Open Inference Protocol and the REST API of TensorFlow Serving share: columns in, `{"error": …}` out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from numpy.typing import NDArray

from serve_app.domain.errors import InvalidInputError, nearest
from serve_app.domain.signature import Column, json_kind, shortened
from serve_app.ingress import error_responses
from serve_app.ingress.dialect import windows_wanted
from serve_app.ingress.wire import check_media_type, json_error
from serve_app.usecases.route_request import Target

NAMED_MOST: Final = 6
"""Columns that a message names, of those that are missing."""
_WHOLE: Final = ("int64", "int32", "bool")


def error_response(error: Exception) -> error_responses.Response:
    """Build the answer `{"error": …}`; what is 422 elsewhere is 400 here, as both protocols have it."""
    status, headers, body = error_responses.error_response(error)
    return 400 if status == 422 else status, headers, orjson.dumps({"error": orjson.loads(body)["detail"]})


def object_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is.

    Raises:
        NotJsonError: The body is no JSON document.
        InvalidInputError: It is one, but no object; or it has a number beyond float64.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise json_error(body, error) from None
    if type(document) is not dict:
        raise InvalidInputError(f"expected an object, got {json_kind(document)}")
    return document


def check_asked(content_type: bytes, target: Target, version: str | None) -> None:
    """Refuse a request that is no JSON, wants a model of windows, or names two versions.

    `version` is that of the path; who answers was chosen by it, unless a header named another one.

    Raises:
        UnsupportedMediaTypeError: The body says that it is something else than JSON.
        InvalidInputError: All else.
    """
    check_media_type(content_type)
    if target.has_tensors:
        raise windows_wanted(target)
    if version is not None and version != target.version:
        raise InvalidInputError(
            f"expected one version, got {shortened(version)} in the path and {target.version!r} in X-Model-Version"
        )


def check_entity(document: Mapping[str, Any]) -> None:
    """Refuse what the rows are said to be about, if that is no string.

    Raises:
        InvalidInputError: With what came.
    """
    entity = document.get("entity")
    if entity is not None and not isinstance(entity, str):
        raise InvalidInputError(f"'entity': expected a string, got {json_kind(entity)}")


def rows_of_columns(columns: Mapping[str, list[Any]], input_names: Sequence[str]) -> list[list[Any]]:
    """Turn columns by name, one for each input, into rows in the order of the inputs; the values are not looked at.

    Raises:
        InvalidInputError: A column is unknown or missing, or they differ in length.
    """
    unknown = next((name for name in columns if name not in input_names), None)
    if unknown is not None:
        raise InvalidInputError(f"unknown input {shortened(unknown)}{nearest(unknown, input_names)}")
    if missing := [name for name in input_names if name not in columns]:
        more = f", … {len(missing) - NAMED_MOST} more" if len(missing) > NAMED_MOST else ""
        raise InvalidInputError(
            f"expected {len(input_names)} inputs, one for each column, got {len(columns)}; "
            f"missing: {', '.join(missing[:NAMED_MOST])}{more}"
        )
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise InvalidInputError(f"expected inputs of one length, got {min(lengths)} and {max(lengths)} rows")
    return [list(row) for row in zip(*(columns[name] for name in input_names), strict=True)]


def unboxed(rows: list[Any]) -> list[Any]:
    """Return values as they are, and lists of one value each as those values."""
    if rows and all(type(row) is list and len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    return rows


def boxed(rows: list[Any], input_names: Sequence[str]) -> list[Any]:
    """Return rows as they are, and the values that stand for rows where there is one input as rows of one value.

    Raises:
        InvalidInputError: A row is neither a list nor an object, and there are several inputs.
    """
    for i, row in enumerate(rows):
        if not isinstance(row, list | dict):
            if len(input_names) == 1:
                return [item if isinstance(item, list | dict) else [item] for item in rows]
            wanted = f"a list of {len(input_names)} numbers or an object"
            raise InvalidInputError(f"row {i}: expected {wanted}, got {json_kind(row)}")
    return rows


def values_of(column: Column, values: NDArray[Any]) -> list[Any]:
    """Return one output (n_rows,) as its type is in JSON: of several outputs, integers too come as the widest type."""
    listed: list[Any] = values.tolist()
    if column.dtype not in _WHOLE or values.dtype.kind != "f":
        return listed
    cast = bool if column.dtype == "bool" else int
    return [cast(value) if math.isfinite(value) else None for value in listed]
