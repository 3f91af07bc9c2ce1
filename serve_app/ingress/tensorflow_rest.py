"""`/v1/models/{family}:predict`: the REST API of TensorFlow Serving, which is KServe's first protocol too.

The first: https://www.tensorflow.org/tfx/serving/api_rest; the other is its row format, and asks less of a status.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from serve_app.domain.errors import InvalidInputError, ServeAppError
from serve_app.domain.signature import json_kind, rows_of, shortened
from serve_app.ingress import protocol_bodies
from serve_app.ingress.dialect import Dialect, Rows
from serve_app.ingress.protocol_bodies import check_asked, check_entity, error_response, object_of
from serve_app.ingress.protocol_routes import (
    ERROR,
    OF_PATH,
    json_response,
    loaded_versions,
    loading_versions,
    refuse_others,
)
from serve_app.ingress.wire import entity_of, predictions_json
from serve_app.usecases.route_request import RequestRouter, Target

MODELS: Final = "/v1/models"
OF_FAMILY: Final = "/v1/models/{family}"
OF_VERSION: Final = "/v1/models/{family}/versions/{version}"
PREDICT_PATH: Final = re.compile(r"/v1/models/([^/]+?)(?:/versions/([^/]+))?:predict")
PREDICT: Final = (f"{OF_FAMILY}:predict", f"{OF_VERSION}:predict")
"""Templates of the paths that `PREDICT_PATH` fits: without and with a version."""
ROWS: Final = "instances"
COLUMNS: Final = "inputs"
_SIGNATURE_NAME: Final = "serving_default"


class Predicting:
    """One request: rows are answered by rows, columns by columns. `version` is that of its path."""

    __slots__ = ("_is_columnar", "_version")

    def __init__(self, version: str | None) -> None:
        self._version = version
        self._is_columnar = False

    def read(self, body: bytes, content_type: bytes, target: Target, max_rows: int) -> Rows:
        """Return the rows of a body; keys that are not looked at mean nothing."""
        check_asked(content_type, target, self._version)
        document = object_of(body)
        check_entity(document)
        name = document.get("signature_name")
        if name not in (None, "", _SIGNATURE_NAME):
            raise InvalidInputError(f"'signature_name': expected {_SIGNATURE_NAME!r}, got {json_kind(name)}")
        given = [key for key in (ROWS, COLUMNS) if key in document]
        if len(given) != 1:
            got = "both" if given else "neither"
            raise InvalidInputError(f"expected one of {ROWS!r} and {COLUMNS!r}, got {got}")
        key, value = given[0], document[given[0]]
        self._is_columnar = key == COLUMNS
        if self._is_columnar and type(value) is dict:
            for column, values in value.items():
                if type(values) is not list:
                    raise InvalidInputError(f"input {shortened(column)}: expected a list, got {json_kind(values)}")
            columns = {column: protocol_bodies.unboxed(values) for column, values in value.items()}
            rows = protocol_bodies.rows_of_columns(columns, target.input_names)
        elif type(value) is list:
            rows = protocol_bodies.boxed(value, target.input_names)
        else:
            wanted = "an object of columns or a list of rows" if self._is_columnar else "a list of rows"
            raise InvalidInputError(f"{key!r}: expected {wanted}, got {json_kind(value)}")
        return rows_of(rows, target.input_names, max_rows=max_rows, typed=target.signature.typed_inputs)

    def write(self, outputs: NDArray[Any], target: Target) -> bytes:
        """Write outputs (n_rows, n_outputs): a value or an object a row; or a list, or one for each output."""
        if not self._is_columnar:
            return b'{"predictions":' + predictions_json(outputs, target.output_names) + b"}"
        columns = {
            column.name: protocol_bodies.values_of(column, values)
            for column, values in zip(target.signature.outputs, outputs.T, strict=True)
        }
        return orjson.dumps({"outputs": columns if len(columns) > 1 else columns.popitem()[1]})


def predict_dialect(version: str | None) -> Dialect:
    """Return how one request for a version, None for whichever answers, is read and answered."""
    predicting = Predicting(version)
    return Dialect(predicting.read, predicting.write, error_response, entity_of)


def tensorflow_router(router: RequestRouter) -> APIRouter:
    """Build the routes that tell of models."""
    api = APIRouter(tags=["tensorflow serving"])

    @api.get(MODELS, summary="Names of all families")
    async def models() -> Response:
        return json_response({"models": list(router.families)})

    @api.get(OF_FAMILY, summary="States of a family's versions", responses=ERROR)
    async def family_status(family: str) -> Response:
        return _status(router, family, None)

    @api.get(OF_VERSION, summary="State of a version", responses=ERROR)
    async def version_status(family: str, version: str) -> Response:
        return _status(router, family, version)

    refuse_others(api, "/v1")
    return api


def _status(router: RequestRouter, family: str, version: str | None) -> Response:
    try:
        router.target(family, version)
    except ServeAppError as error:
        return json_response(error)
    states = dict.fromkeys(loading_versions(router, family), "LOADING")
    states |= dict.fromkeys(loaded_versions(router, family), "AVAILABLE")
    told = [version] if version is not None else sorted(states)
    statuses = [
        {"version": name, "state": states[name], "status": {"error_code": "OK", "error_message": ""}} for name in told
    ]
    return json_response({"name": family, "ready": True, "model_version_status": statuses})


def describe(api: APIRouter, predict: Callable[[Request], Awaitable[Response]]) -> None:
    """Add the routes of predictions to those of FastAPI, with what its document says of them."""
    body = {"required": True, "content": {"application/json": {"schema": _REQUEST}}}
    for path, parameters in zip(PREDICT, OF_PATH, strict=True):
        api.add_api_route(
            path, predict, methods=["POST"], summary="Predict, in the protocol of TensorFlow Serving",
            response_model=None, tags=["tensorflow serving"],
            openapi_extra={"requestBody": body, "parameters": parameters}, responses={200: _ANSWER, **ERROR},
        )  # fmt: skip


_REQUEST: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        ROWS: {"type": "array", "description": "rows: lists of numbers, or objects with named fields"},
        COLUMNS: {"description": "columns by name, or rows as lists"},
        "signature_name": {"type": "string", "description": f"{_SIGNATURE_NAME}, or nothing"},
        "entity": {"type": "string", "description": "what the rows are about; may serve as targeting key"},
    },
    "oneOf": [{"required": [ROWS]}, {"required": [COLUMNS]}],
}
_ANSWER: Final[dict[str, Any]] = {
    "description": "Rows for rows, columns for columns",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"predictions": {"type": "array"}, "outputs": {"type": ["array", "object"]}},
            }
        }
    },
}
