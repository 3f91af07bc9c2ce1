"""`/v2`: the Open Inference Protocol, as KServe, Triton and MLServer speak it.

The protocol: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md. Of
Triton's extension for model repositories there is the index; which versions are loaded is not for clients to say.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from serve_app.domain.errors import InvalidInputError, NoModelError, ServeAppError
from serve_app.domain.signature import json_kind
from serve_app.ingress.open_inference_bodies import DATATYPES, described
from serve_app.ingress.protocol_bodies import object_of
from serve_app.ingress.protocol_routes import (
    ERROR,
    OF_PATH,
    json_response,
    loaded_versions,
    loading_versions,
    refuse_others,
)
from serve_app.ingress.request_body import read_body
from serve_app.usecases.route_request import NO_MODEL_RETRY_AFTER_S, RequestRouter

SERVER: Final = "/v2"
LIVE: Final = "/v2/health/live"
READY: Final = "/v2/health/ready"
INDEX: Final = "/v2/repository/index"
OF_FAMILY: Final = "/v2/models/{family}"
OF_VERSION: Final = "/v2/models/{family}/versions/{version}"
INFER_PATH: Final = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
INFER: Final = (f"{OF_FAMILY}/infer", f"{OF_VERSION}/infer")
"""Templates of the paths that `INFER_PATH` fits: without and with a version."""
NAME: Final = "serve-app"
MAX_INDEX_BODY_BYTES: Final = 1 << 12


def open_inference_router(router: RequestRouter, required: frozenset[str]) -> APIRouter:
    """Build the routes that tell of the server and of models; `required` names the families that `ready` waits for."""
    api = APIRouter(tags=["open inference"])

    @api.get(SERVER, summary="Name and version of the server")
    async def server() -> Response:
        return json_response({"name": NAME, "version": _version(), "extensions": []})

    @api.get(LIVE, summary="The process answers")
    async def live() -> Response:
        return json_response({"live": True})

    @api.get(READY, summary="Every required family can answer", responses=ERROR)
    async def ready() -> Response:
        missing = sorted(name for name in required if name in router.families and router.current(name) is None)
        if not missing:
            return json_response({"live": True, "ready": True})
        said = f"not ready; without a model: {', '.join(missing)}"
        return json_response(NoModelError(said, retry_after_s=NO_MODEL_RETRY_AFTER_S))

    @api.get(OF_FAMILY, summary="Inputs, outputs and versions of a family", responses=ERROR)
    async def family_metadata(family: str) -> Response:
        return _metadata(router, family, None)

    @api.get(OF_VERSION, summary="Inputs and outputs of a version", responses=ERROR)
    async def version_metadata(family: str, version: str) -> Response:
        return _metadata(router, family, version)

    @api.get(f"{OF_FAMILY}/ready", summary="A family can answer", responses=ERROR)
    async def family_ready(family: str) -> Response:
        return _ready(router, family, None)

    @api.get(f"{OF_VERSION}/ready", summary="A version can answer", responses=ERROR)
    async def version_ready(family: str, version: str) -> Response:
        return _ready(router, family, version)

    @api.get(INDEX, summary="All families and their versions")
    async def index() -> Response:
        return json_response(repository_index(router, only_ready=False))

    @api.post(INDEX, summary="All families and their versions, or those that can answer", responses=ERROR)
    async def index_of(request: Request) -> Response:
        try:
            only_ready = _only_ready(await read_body(request, most=MAX_INDEX_BODY_BYTES))
        except ServeAppError as error:
            return json_response(error)
        return json_response(repository_index(router, only_ready=only_ready))

    refuse_others(api, SERVER)
    return api


def repository_index(router: RequestRouter, *, only_ready: bool) -> list[dict[str, str]]:
    """List every version of every family with its state; a family that has none stands there with the reason."""
    found = []
    for family in router.families:
        loaded = loaded_versions(router, family)
        loading = [name for name in loading_versions(router, family) if name not in loaded]
        found += [_indexed(family, name, "READY") for name in loaded]
        found += [_indexed(family, name, "LOADING") for name in loading]
        if not loaded and not loading:
            found.append(_indexed(family, "", "UNAVAILABLE", router.last_error(family) or "it has no version yet"))
    return [one for one in found if one["state"] == "READY" or not only_ready]


def _indexed(family: str, name: str, state: str, reason: str = "") -> dict[str, str]:
    return {"name": family, "version": name, "state": state, "reason": reason}


def _only_ready(body: bytes) -> bool:
    ready = object_of(body).get("ready", False) if body.strip() else False
    if not isinstance(ready, bool):
        raise InvalidInputError(f"'ready': expected true or false, got {json_kind(ready)}")
    return ready


def _metadata(router: RequestRouter, family: str, wanted: str | None) -> Response:
    try:
        target = router.target(family, wanted)
    except ServeAppError as error:
        return json_response(error)
    loaded = router.loaded(target.family, target.version)
    engines: Sequence[str] = () if loaded is None else sorted({one.partition(":")[0] for one in loaded.engine.values()})
    return json_response(
        {
            "name": target.family,
            "versions": loaded_versions(router, target.family),
            "platform": ", ".join(engines),
            "inputs": [described(column) for column in target.signature.inputs],
            "outputs": [described(column) for column in target.signature.outputs],
        }
    )


def _ready(router: RequestRouter, family: str, wanted: str | None) -> Response:
    try:
        target = router.target(family, wanted)
    except ServeAppError as error:
        return json_response(error)
    return json_response({"name": target.family, "ready": True})


def _version() -> str:
    try:
        return version(NAME)
    except PackageNotFoundError:
        return "0"


def describe(api: APIRouter, infer: Callable[[Request], Awaitable[Response]]) -> None:
    """Add the routes of predictions to those of FastAPI, with what its document says of them."""
    body = {"required": True, "content": {"application/json": {"schema": _REQUEST}}}
    for path, parameters in zip(INFER, OF_PATH, strict=True):
        api.add_api_route(
            path, infer, methods=["POST"], summary="Predict, in the Open Inference Protocol", response_model=None,
            tags=["open inference"], openapi_extra={"requestBody": body, "parameters": parameters},
            responses={200: _ANSWER, **ERROR},
        )  # fmt: skip


_TENSOR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"enum": sorted(DATATYPES)},
        "data": {"type": "array", "description": "row-major, flat or as lists of lists"},
        "parameters": {"type": "object"},
    },
}
_REQUEST: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "stands in the answer again"},
        "parameters": {
            "type": "object",
            "properties": {
                "entity": {"type": "string", "description": "what the rows are about; may serve as targeting key"}
            },
        },
        "inputs": {
            "type": "array", "items": _TENSOR,
            "description": "one of shape [n, number of inputs], or one of shape [n] or [n, 1] for each input",
        },
        "outputs": {
            "type": "array", "description": "those wanted; default: all",
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
        },
    },
}  # fmt: skip
_ANSWER: Final[dict[str, Any]] = {
    "description": "A tensor of shape [n] for each output",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["model_name", "model_version", "outputs"],
                "properties": {
                    "model_name": {"type": "string"}, "model_version": {"type": "string"}, "id": {"type": "string"},
                    "outputs": {"type": "array", "items": _TENSOR},
                },
            }
        }
    },
}  # fmt: skip
