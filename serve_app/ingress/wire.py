"""The JSON bodies of predictions: reading a request, writing an answer."""

from functools import lru_cache
from typing import Any, Final

import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from serve_app.domain.errors import InvalidInputError, NotJsonError, RequestError, UnsupportedMediaTypeError, nearest
from serve_app.domain.signature import Signature, json_kind, rows_of, shortened
from serve_app.ingress.dialect import Dialect, windows_wanted
from serve_app.ingress.error_responses import error_response
from serve_app.usecases.route_request import Target

JSON_TYPES: Final = (b"application/json", b"text/json")
UNTYPED: Final = (b"", b"application/x-www-form-urlencoded", b"application/octet-stream")
"""What clients send when nobody told them a type (`curl -d` says it is a form); read as JSON all the same."""
Row = list[float] | dict[str, float]
Rows = list[Row] | Row
_KEYS: Final = ("instances", "features", "entity")
MAX_ENTITY_CHARACTERS: Final = 256
"""Of a longer name only so much tells entities apart: a body may be megabytes."""


class PredictBody(BaseModel):
    """Body of a prediction, for the OpenAPI document; `read_rows` is what reads it."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"oneOf": [{"required": ["instances"]}, {"required": ["features"]}]}
    )

    instances: Rows = Field(default=[], description="rows: lists of numbers, or objects with named fields; or one row")
    features: Rows = Field(default=[], description="another name for `instances`")
    entity: str | None = Field(default=None, description="what the rows are about; may serve as targeting key")


class PredictAnswer(BaseModel):
    """Answer to a prediction: one value a row, or an object a row where the family has several outputs."""

    predictions: list[float | int | str | dict[str, float | int | str]]
    model_family: str
    model_version: str


def check_media_type(content_type: bytes) -> None:
    """Refuse a body that says it is something else than JSON.

    Raises:
        UnsupportedMediaTypeError: With the type that came.
    """
    if content_type == JSON_TYPES[0]:
        return
    kind = content_type.partition(b";")[0].strip().lower()
    if kind in JSON_TYPES or kind in UNTYPED or kind.endswith(b"+json"):
        return
    raise UnsupportedMediaTypeError(f"expected content-type application/json, got {kind.decode('latin-1')!r}")


def read_rows(body: bytes, signature: Signature, *, max_rows: int) -> list[list[float]]:
    """Read the rows of a prediction body for a model with this signature.

    Raises:
        NotJsonError: The body is no JSON document (`NaN` and `Infinity` are not JSON either).
        InvalidInputError: The document does not fit.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise json_error(body, error) from None
    if type(document) is not dict:
        raise InvalidInputError("expected an object with 'instances', got " + json_kind(document))
    instances = document.get("instances")
    if instances is None or len(document) > 1:
        instances = _instances(document)
    return rows_of(instances, signature.input_names, max_rows=max_rows, typed=signature.typed_inputs)


def _instances(document: dict[str, Any]) -> Any:
    for key in document:
        if key not in _KEYS:
            raise InvalidInputError(
                f"unknown key {shortened(key)}{nearest(key, _KEYS)}; expected 'instances' and optionally 'entity'"
            )
    given = [key for key in ("instances", "features") if document.get(key) is not None]
    if not given:
        raise InvalidInputError("expected 'instances', got neither it nor 'features'")
    if len(given) == 2:
        raise InvalidInputError("expected one of 'instances' and 'features', got both")
    entity = document.get("entity")
    if entity is not None and not isinstance(entity, str):
        raise InvalidInputError(f"'entity': expected a string, got {json_kind(entity)}")
    return document[given[0]]


def entity_of(body: bytes) -> str | None:
    """Return what the rows of a body are about, or None; what is wrong with a body, `read_rows` says."""
    if b'"entity"' not in body:
        return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    entity = document.get("entity") if type(document) is dict else None
    return entity[:MAX_ENTITY_CHARACTERS] if isinstance(entity, str) else None


def json_error(body: bytes, error: orjson.JSONDecodeError) -> RequestError:
    """Return what is wrong with a body that the parser refused."""
    if error.msg.startswith("number is infinity"):  # 1e999 is JSON, but no float64
        where = f"at character {error.pos}"
        return InvalidInputError(f"expected finite numbers, got one beyond the range of float64 {where}")
    return NotJsonError(_not_json(body, error))


def _not_json(body: bytes, error: orjson.JSONDecodeError) -> str:
    if not body.strip():
        return "expected a JSON document, got an empty body"
    for word in (b"NaN", b"Infinity"):
        if word in body:
            return f"expected a JSON document, got one with {word.decode()}, which is no JSON number"
    return f"expected a JSON document, got {len(body)} bytes that are none: {error}"


def predictions_json(outputs: NDArray[Any], output_names: tuple[str, ...]) -> bytes:
    """Write outputs (n_rows, n_outputs) as a JSON list: a value a row for one output, else an object a row."""
    if len(output_names) == 1:
        return orjson.dumps(outputs[:, 0].tolist())
    return orjson.dumps([dict(zip(output_names, row, strict=True)) for row in outputs.tolist()])


def _read(body: bytes, content_type: bytes, target: Target, max_rows: int) -> list[list[float]]:
    check_media_type(content_type)
    if target.has_tensors:
        raise windows_wanted(target)
    return read_rows(body, target.signature, max_rows=max_rows)


def _write(outputs: NDArray[Any], target: Target) -> bytes:
    return b'{"predictions":' + predictions_json(outputs, target.output_names) + _tail(target)


@lru_cache(maxsize=512)
def _tail(target: Target) -> bytes:
    """Write what follows the predictions in every answer of a version."""
    return (
        b',"model_family":' + orjson.dumps(target.family) + b',"model_version":' + orjson.dumps(target.version) + b"}"
    )


PREDICT: Final = Dialect(_read, _write, error_response, entity_of)
