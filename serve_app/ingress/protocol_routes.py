"""What the routes of the standard protocols share: which versions they tell of, and how they answer."""

from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response

from serve_app.domain.signature import shortened
from serve_app.ingress.error_responses import JSON_HEADER
from serve_app.ingress.protocol_bodies import error_response
from serve_app.usecases.route_request import RequestRouter

_FAMILY: Final[dict[str, Any]] = {"name": "family", "in": "path", "required": True, "schema": {"type": "string"}}
_VERSION: Final[dict[str, Any]] = {
    "name": "version", "in": "path", "required": True, "schema": {"type": "string"},
    "description": "one that is loaded; it answers whatever a split says",
}  # fmt: skip
OF_PATH: Final[tuple[list[dict[str, Any]], ...]] = ([_FAMILY], [_FAMILY, _VERSION])
"""Parameters of the paths without and with a version, for the OpenAPI document."""
_ERROR: Final[dict[str, Any]] = {
    "description": "What is wrong, in a sentence",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
        }
    },
}
ERROR: Final[dict[int | str, dict[str, Any]]] = dict.fromkeys((400, 404, 413, 415, 500, 503), _ERROR)


def json_response(answer: Any) -> Response:
    """Write an answer as JSON, or an error as `{"error": …}` with its status."""
    if not isinstance(answer, Exception):
        return Response(orjson.dumps(answer), media_type=JSON_HEADER[1].decode())
    status, headers, body = error_response(answer)
    response = Response(body, status_code=status)
    response.raw_headers.extend(headers)
    return response


def refuse_others(api: APIRouter, prefix: str) -> None:
    """Answer all else below a path in the form of the protocols, whose clients cannot read another; comes last."""

    async def unknown(request: Request) -> Response:
        said = f"no route {request.method} {shortened(request.url.path)}: this protocol's stand at /docs"
        return Response(orjson.dumps({"error": said}), status_code=404, media_type=JSON_HEADER[1].decode())

    api.add_api_route(prefix + "/{rest:path}", unknown, methods=["GET", "POST"], include_in_schema=False)


def loaded_versions(router: RequestRouter, family: str) -> list[str]:
    """Return the versions that some replica of a family holds, sorted."""
    return sorted({loaded.version for status in router.statuses(family) for loaded in status.versions})


def loading_versions(router: RequestRouter, family: str) -> list[str]:
    """Return the versions that some replica of a family is about to hold, sorted."""
    return sorted({version for status in router.statuses(family) for version in status.loading})
