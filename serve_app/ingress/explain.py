"""`POST /explain/{family}`: what predictions rest on, said by the version that makes them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from serve_app.domain.errors import CannotExplainError, InvalidInputError, NotJsonError, UnavailableError
from serve_app.domain.signature import json_kind, shortened
from serve_app.domain.temporal import TemporalShape
from serve_app.ingress.admin import admin_route
from serve_app.ingress.error_responses import JSON_HEADER
from serve_app.ingress.explanation_bodies import contributions_json, weights_json
from serve_app.ingress.inference import route_headers
from serve_app.ingress.observation_bodies import MAX_ENTITY_CHARACTERS
from serve_app.ingress.request_body import read_body
from serve_app.ingress.window_bodies import WINDOWS_KEY, read_windows
from serve_app.ingress.wire import PredictBody, check_media_type, read_rows
from serve_app.usecases.explain_prediction import ExplainPrediction
from serve_app.usecases.explanation import Contributions
from serve_app.usecases.name_versions import NamedVersions
from serve_app.usecases.route_request import RequestRouter, Target
from serve_app.usecases.window_ports import FleetWindows, WindowReader
from serve_app.usecases.window_rows import pack_rows

OF_FAMILY: Final = "/explain/{family}"
SERVERS_KEY: Final = "servers"
DETAIL_KEY: Final = "detail"


class Explanations:
    """What the route is made of. `stores` keep the windows of temporal families; one without takes `windows` only."""

    def __init__(
        self,
        router: RequestRouter,
        names: NamedVersions,
        explain: ExplainPrediction,
        *,
        max_body_bytes: int,
        stores: Mapping[str, WindowReader] | None = None,
    ) -> None:
        self._router = router
        self._names = names
        self._explain = explain
        self._stores = dict(stores or {})
        self.max_body_bytes = max_body_bytes

    async def target(self, family: str, request: Request) -> Target:
        """Return whose predictions are explained, by the rules of `/predict`."""
        forced, query = request.headers.get("x-model-version"), request.query_params
        if "model" not in query and "version" not in query:
            return self._router.target(family, forced)
        if forced is not None:
            raise InvalidInputError("expected model and version in the query or X-Model-Version, got both")
        return await self._names.target(family, query.get("model"), query.get("version"))

    async def answer(self, target: Target, body: bytes) -> bytes:
        """Return the body of the answer."""
        if not target.has_tensors:
            rows = read_rows(body, target.signature, max_rows=self._explain.limits.max_rows)
            found = await self._explain.explain(target, np.array(rows, dtype=np.float64))
            if not isinstance(found, Contributions):
                raise CannotExplainError(f"expected contributions of features, got a {type(found).__name__}")
            return contributions_json(found, target)
        loaded = self._router.loaded(target.family, target.version)
        if loaded is None:
            raise UnavailableError(f"version {target.version!r} of {target.family!r} is being replaced; try again")
        if loaded.temporal is None:
            raise CannotExplainError("only models of plain rows and of windows can be explained")
        document = _parsed(body)
        return await self._of_windows(target, loaded.temporal, document, has_detail=_detail(document))

    async def _of_windows(
        self, target: Target, shape: TemporalShape, document: dict[str, Any], *, has_detail: bool
    ) -> bytes:
        most = self._explain.limits.max_rows
        if SERVERS_KEY in document:
            windows = await self._kept(target, shape, _servers(document[SERVERS_KEY], most=most))
            if not windows.entities:
                name, lack = next(iter(windows.lacking.items()))
                raise InvalidInputError(f"server {shortened(name)} cannot be predicted yet: {lack}")
        else:
            given = read_windows(document, shape, max_windows=most)
            windows = FleetWindows(0, given.entities, given.windows, given.end_times_s)
        found = await self._explain.explain(target, self._rows(shape, windows))
        if isinstance(found, Contributions):
            raise CannotExplainError("expected what a temporal model looked at, got contributions of features")
        return weights_json(
            found, target, shape, entities=windows.entities, end_times_s=windows.end_times_s, lacking=windows.lacking,
            has_detail=has_detail,
        )  # fmt: skip

    async def _kept(self, target: Target, shape: TemporalShape, servers: Sequence[str]) -> FleetWindows:
        store = self._stores.get(target.family)
        if store is None:
            raise InvalidInputError(f"no windows are kept for family {target.family!r}: send them as {WINDOWS_KEY!r}")
        windows = await store.windows(shape, servers)
        assert windows is not None, "no revision was named"
        return windows

    @staticmethod
    def _rows(shape: TemporalShape, windows: FleetWindows) -> NDArray[np.float64]:
        return pack_rows(shape, windows.values, windows.end_times_s, windows.entities)


def explain_router(explanations: Explanations) -> APIRouter:
    """Build the route."""
    api = APIRouter(tags=["explain"], route_class=admin_route())
    schema = {
        "anyOf": [
            PredictBody.model_json_schema(),
            {"type": "object", "required": [SERVERS_KEY], "properties": {SERVERS_KEY: {"type": "array"}}},
            {"type": "object", "required": [WINDOWS_KEY], "properties": {WINDOWS_KEY: {"type": "array"}}},
        ]
    }

    @api.post(
        OF_FAMILY, summary="What predictions rest on, said by the version that makes them", response_model=None,
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
        responses={200: {}, 400: {}, 404: {}, 413: {}, 415: {}, 422: {}, 501: {}, 503: {}},
    )  # fmt: skip
    async def explain(family: str, request: Request) -> Response:
        check_media_type(request.headers.get("content-type", "").encode("latin-1"))
        body = await read_body(request, most=explanations.max_body_bytes)
        target = await explanations.target(family, request)
        response = Response(await explanations.answer(target, body))
        response.raw_headers.extend((JSON_HEADER, *route_headers(target)))
        return response

    return api


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotJsonError(f"expected a JSON document, got {len(body)} bytes that are none: {error}") from None
    if not isinstance(document, dict) or (SERVERS_KEY in document) == (WINDOWS_KEY in document):
        raise InvalidInputError(
            f"expected an object with one of {SERVERS_KEY!r} and {WINDOWS_KEY!r}, got {json_kind(document)}"
        )
    unknown = next((key for key in document if key not in (SERVERS_KEY, WINDOWS_KEY, DETAIL_KEY)), None)
    if unknown is not None:
        raise InvalidInputError(f"unknown key {shortened(unknown)}; expected {DETAIL_KEY!r} alone beside the windows")
    return document


def _detail(document: Mapping[str, Any]) -> bool:
    has_detail = document.get(DETAIL_KEY, False)
    if not isinstance(has_detail, bool):
        raise InvalidInputError(f"{DETAIL_KEY!r}: expected true or false, got {json_kind(has_detail)}")
    return has_detail


def _servers(given: Any, *, most: int) -> list[str]:
    if not isinstance(given, list) or not 0 < len(given) <= most:
        raise InvalidInputError(f"{SERVERS_KEY!r}: expected a list of 1 to {most} servers, got {json_kind(given)}")
    for i, name in enumerate(given):
        if not isinstance(name, str) or not 0 < len(name) <= MAX_ENTITY_CHARACTERS:
            expected = f"{SERVERS_KEY!r}, {i}: expected a name of 1 to {MAX_ENTITY_CHARACTERS} characters"
            raise InvalidInputError(f"{expected}, got {json_kind(name)}")
    return list(dict.fromkeys(given))
