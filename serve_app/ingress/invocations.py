"""`/invocations`, `/ping` and `/version`: the scoring protocol of MLflow, as its own server and SageMaker speak it."""

import math
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi import Response as HttpResponse
from numpy.typing import NDArray

from serve_app.domain.errors import InvalidInputError, ServeAppError
from serve_app.domain.mlflow_schema import enforced_rows
from serve_app.ingress.dialect import Dialect, Rows, windows_wanted
from serve_app.ingress.error_responses import JSON_HEADER, Response
from serve_app.ingress.mlflow_bodies import FORMS, Bounds, error_response, predictions_body, read_table
from serve_app.usecases.route_request import RequestRouter, Target

PATH: Final = "/invocations"
PING: Final = "/ping"
VERSION: Final = "/version"
NAMED: Final[tuple[dict[str, Any], ...]] = tuple(
    {"name": name, "in": "query", "required": False, "schema": {"type": "string"}, "description": said}
    for name, said in (
        ("model", "another registered model that the family serves by name; alone: what its alias or stage points at"),
        ("version", "a version of that model, or of the family's own; it is loaded if it is not"),
    )
)
"""Parameters of the routes of predictions, for the OpenAPI document."""
Answering = Callable[[Request], Awaitable[HttpResponse]]


def _read(body: bytes, content_type: bytes, target: Target, max_rows: int) -> Rows:
    if target.has_tensors:
        raise windows_wanted(target)
    table = read_table(body, content_type, Bounds(target.input_names, max_rows))
    columns, layout = target.signature.inputs, target.signature.input_layout
    if layout is not None:
        return enforced_rows(table, columns, max_rows=max_rows, layout=layout)
    rows = enforced_rows(table, columns, max_rows=max_rows, layout="free" if table.names is None else "named")
    _check_finite(rows, target.input_names)  # MLflow's models check that themselves; ours rely on it
    return rows


def _check_finite(rows: Rows, input_names: Sequence[str]) -> None:
    for i, row in enumerate(rows):
        if not all(map(math.isfinite, row)):
            wrong = next(name for name, value in zip(input_names, row, strict=True) if not math.isfinite(value))
            raise InvalidInputError(f"row {i}, field {wrong!r}: expected a finite number, got none")


def _write(outputs: NDArray[Any], target: Target) -> bytes:
    return predictions_body(outputs, target.signature)


def _no_entity(_body: bytes) -> None:
    """Return None: MLflow's bodies do not say what their rows are about."""
    return


INVOCATIONS: Final = Dialect(_read, _write, error_response, _no_entity)


def ping(router: RequestRouter, family: str) -> Response:
    """Say whether a family can answer: 200 with a line end, as MLflow's server; 503 without a model; 404."""
    try:
        router.target(family)
    except ServeAppError as error:
        return error_response(error)
    return 200, [JSON_HEADER], b"\n"


def protocol_version() -> bytes:
    """Return the version of MLflow whose protocol this is: the installed one, which is what clients compare with."""
    try:
        return version("mlflow").encode()
    except PackageNotFoundError:
        return b"0"


def describe(api: APIRouter, predict: Answering, tell: Answering) -> None:
    """Add the three routes to those of FastAPI, with what its document says of them."""
    family = {
        "name": "family", "in": "query", "required": False, "schema": {"type": "string"},
        "description": "default: the default family",
    }  # fmt: skip
    api.add_api_route(
        PATH, predict, methods=["POST"], summary="Predict, in the protocol of MLflow", response_model=None,
        tags=["mlflow"], openapi_extra={"requestBody": _REQUEST, "parameters": [family, *NAMED]},
        responses={200: _ANSWER, **_errors(400, 404, 413, 415, 500, 503)},
    )  # fmt: skip
    api.add_api_route(
        PING, tell, methods=["GET"], summary="A family can answer", response_model=None, tags=["mlflow"],
        openapi_extra={"parameters": [family]}, responses=_errors(404, 503),
    )  # fmt: skip
    api.add_api_route(
        VERSION, tell, methods=["GET"], summary="The version of MLflow whose protocol `/invocations` speaks",
        response_model=None, tags=["mlflow"],
    )  # fmt: skip


def _errors(*statuses: int | str) -> dict[int | str, dict[str, Any]]:
    return dict.fromkeys(statuses, _ERROR)


_CELL: Final[dict[str, Any]] = {"type": ["number", "boolean", "string", "null"]}
_ROWS: Final[dict[str, Any]] = {"type": "array", "items": {"type": "array", "items": _CELL}}
_OBJECTS: Final[dict[str, Any]] = {"type": "array", "items": {"type": "object", "additionalProperties": _CELL}}
_COLUMNS: Final[dict[str, Any]] = {
    "type": "object", "additionalProperties": {"anyOf": [_CELL, {"type": "array", "items": _CELL}]},
}  # fmt: skip
_SPLIT: Final[dict[str, Any]] = {
    "type": "object", "required": ["data"], "additionalProperties": False,
    "properties": {"columns": {"type": "array"}, "index": {"type": "array"}, "data": _ROWS},
}  # fmt: skip
_VALUES: Final[dict[str, Any]] = {"type": "array", "items": _CELL}
_ANY_FORM: Final[dict[str, Any]] = {"anyOf": [_OBJECTS, _ROWS, _VALUES, _COLUMNS]}
_REQUEST: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "dataframe_split": _SPLIT, "dataframe_records": _OBJECTS, "instances": _ANY_FORM,
                    "inputs": _ANY_FORM, "params": {"type": "object", "description": "read and ignored"},
                },
                "oneOf": [{"required": [form]} for form in FORMS],
            }
        },
        "text/csv": {"schema": {"type": "string", "description": "a line of column names, then the rows"}},
    },
}  # fmt: skip
_ANSWER: Final[dict[str, Any]] = {
    "description": "A value, a list or an object a row, as MLflow's own server would answer for this model",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["predictions"], "properties": {"predictions": {"type": "array"}}}
        }
    },
}
_ERROR: Final[dict[str, Any]] = {
    "description": "What is wrong, as MLflow says it",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error_code", "message"],
                "properties": {"error_code": {"type": "string"}, "message": {"type": "string"}},
            }
        }
    },
}
