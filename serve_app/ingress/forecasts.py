"""`/observations`, `/predictions/…` and `POST /predict/{family}` of temporal families: windows in, forecasts out."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query, Request, Response

from serve_app.domain.errors import NotJsonError, UnknownFamilyError
from serve_app.domain.signature import shortened
from serve_app.domain.windows import NotReadyError, UnknownEntityError
from serve_app.ingress.admin import admin_route
from serve_app.ingress.asked import OF_DEFAULT, PREFIX
from serve_app.ingress.error_responses import JSON_HEADER
from serve_app.ingress.forecast_bodies import ForecastWriter, store_body, window_body
from serve_app.ingress.inference import COUNTED, AnswerMeter, route_headers, route_of
from serve_app.ingress.request_body import read_body
from serve_app.ingress.window_bodies import read_windows
from serve_app.usecases.ports import Clock
from serve_app.usecases.predict_windows import Forecasts, WindowForecaster
from serve_app.usecases.take_observations import Taken

OBSERVATIONS: Final = "/observations"
CURRENT: Final = "/predictions/current"
OF_SERVER: Final = "/predictions/{server}"
MAX_TOLD_NOT_READY: Final = 20
FamilyQuery = Annotated[str, Query(max_length=63, description="default: the default family, else the first of windows")]


_Answer = Callable[[Request, Forecasts, float], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class ForecastLimits:
    """Bounds of one request: bytes of observations by family, bytes and windows of a prediction."""

    observation_bytes: Mapping[str, int]
    body_bytes: int
    max_windows: int


@dataclass(frozen=True, slots=True)
class Temporal:
    """What the routes are made of.

    `forecasters` are the temporal families by name, `default` the one that answers where none is named; `answers_for`
    is the default family of all, to which `/predict/` belongs.
    """

    forecasters: Mapping[str, WindowForecaster]
    default: str
    answers_for: str
    limits: ForecastLimits
    meter: AnswerMeter
    clock: Clock

    def named(self, family: str) -> WindowForecaster:
        """Return what forecasts for a family; an empty name is the default.

        Raises:
            UnknownFamilyError: There is no such family, or it is none of windows.
        """
        found = self.forecasters.get(family or self.default)
        if found is None:
            raise UnknownFamilyError(family, tuple(self.forecasters))
        return found

    @property
    def paths(self) -> frozenset[str]:
        """Paths below `/predict` that are answered here."""
        own = {OF_DEFAULT + family for family in self.forecasters}
        return frozenset(own | {PREFIX, OF_DEFAULT} if self.answers_for in self.forecasters else own)

    def kept(self, family: str) -> Mapping[str, Any] | None:
        """Say what is kept for a family, as it was told last; None for a family without windows."""
        forecaster = self.forecasters.get(family)
        if forecaster is None:
            return None
        status = forecaster.store_status
        return {"last_error": "the store of windows does not answer"} if status is None else store_body(status)


def forecast_routers(temporal: Temporal, of_ingest: Sequence[Any] = ()) -> list[APIRouter]:
    """Build the routes; what takes observations depends on `of_ingest`."""
    return [_observing(temporal, of_ingest), _predicting(temporal)]


def _observing(temporal: Temporal, of_ingest: Sequence[Any]) -> APIRouter:
    api = APIRouter(tags=["windows"], route_class=admin_route())

    @api.post(
        OBSERVATIONS, summary="Take one record, a list, {\"records\": […]}, or NDJSON",
        responses={200: {}, 400: {}, 404: {}, 413: {}, 422: {}, 503: {}}, dependencies=of_ingest,
    )  # fmt: skip
    async def observe(request: Request, family: FamilyQuery = "") -> Response:
        forecaster = temporal.named(family)
        body = await read_body(request, most=temporal.limits.observation_bytes[forecaster.family])
        taken = await forecaster.store.observe(body, request.headers.get("content-type", "").encode("latin-1"))
        return _taken(taken)

    @api.get(OBSERVATIONS, summary="What is kept, and who has not enough of it yet", responses={404: {}, 503: {}})
    async def kept(family: FamilyQuery = "") -> Response:
        forecaster = temporal.named(family)
        status = await forecaster.store.status()
        told: dict[str, Any] = {"family": forecaster.family, **store_body(status)}
        if status.last_error is None and forecaster.has_model:
            windows = await forecaster.windows(await forecaster.store.entities())
            told |= {"ready": len(windows.entities), "not_ready": dict(windows.lacking)}
        return _json(told)

    @api.get(
        OBSERVATIONS + "/{server}", summary="Whether a server has warmed up, and its window as the model takes it",
        responses={404: {}, 503: {}},
    )  # fmt: skip
    async def window(server: str, family: FamilyQuery = "") -> Response:
        forecaster = temporal.named(family)
        windows = await forecaster.windows([server])
        return _json(window_body(server, windows, forecaster.target()[1]))

    return api


def _taken(taken: Taken) -> Response:
    counts = {fate.value: n for fate, n in taken.counts.items()}
    refused = sum(n for fate, n in taken.counts.items() if fate.is_refused)
    body = {
        "accepted": sum(taken.counts.values()) - refused,
        "refused": refused,
        "records": counts,
        "problems": [
            {"record": problem.place, "kind": problem.refusal.fate.value, "detail": problem.refusal.reason}
            for problem in taken.refused
        ],
    }
    if refused and refused == sum(taken.counts.values()):
        body["detail"] = f"none of {refused} records was taken; the first: {taken.refused[0].refusal.reason}"
        return _json(body, status=422)
    return _json(body)


def _predicting(temporal: Temporal) -> APIRouter:
    api = APIRouter(tags=["windows"], route_class=admin_route())
    writer = ForecastWriter()

    async def answer(request: Request, forecasts: Forecasts, started_s: float) -> Response:
        body = await writer.body(forecasts, now_s=temporal.clock.now_s())
        target, seconds = forecasts.target, temporal.clock.monotonic_s() - started_s
        method, path = route_of(request.scope)
        temporal.meter.observe(target.family, target.version, target.variant, 200, seconds, path, method)
        request.scope[COUNTED] = True
        response = Response(body)
        response.raw_headers.extend((JSON_HEADER, *route_headers(target)))
        return response

    @api.get(CURRENT, summary="Forecasts of all servers", responses={404: {}, 503: {}})
    async def current(request: Request, family: FamilyQuery = "") -> Response:
        started_s = temporal.clock.monotonic_s()
        return await answer(request, await temporal.named(family).fleet(_forced(request)), started_s)

    @api.get(OF_SERVER, summary="Forecast of one server", responses={404: {}, 409: {}, 503: {}})
    async def of_server(request: Request, server: str, family: FamilyQuery = "") -> Response:
        started_s = temporal.clock.monotonic_s()
        forecaster = temporal.named(family)
        forecasts = await forecaster.some([server], _forced(request))
        if server in forecasts.lacking:
            if server not in await forecaster.store.entities():
                raise UnknownEntityError(f"nothing was observed of server {shortened(server)}")
            raise NotReadyError(f"server {shortened(server)} cannot be predicted yet: {forecasts.lacking[server]}")
        return await answer(request, forecasts, started_s)

    for forecaster in temporal.forecasters.values():
        api.add_api_route(
            f"{OF_DEFAULT}{forecaster.family}", _given(temporal, forecaster, answer), methods=["POST"],
            response_model=None, summary="Forecast windows that the request brings",
            responses={400: {}, 404: {}, 413: {}, 422: {}, 503: {}},
        )  # fmt: skip
        if forecaster.family == temporal.answers_for:
            for path in (PREFIX, OF_DEFAULT):
                api.add_api_route(path, _given(temporal, forecaster, answer), methods=["POST"], include_in_schema=False)
    return api


def _given(temporal: Temporal, forecaster: WindowForecaster, answer: _Answer) -> Callable[..., Awaitable[Response]]:
    """Make the handler of one family."""

    async def predict(request: Request) -> Response:
        started_s = temporal.clock.monotonic_s()
        forced = _forced(request)
        body = await read_body(request, most=temporal.limits.body_bytes)
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise NotJsonError(f"expected JSON, got {len(body)} bytes that are none: {error}") from None
        _, shape = forecaster.target(forced)
        given = read_windows(document, shape, max_windows=temporal.limits.max_windows)
        forecasts = await forecaster.given(given.entities, given.end_times_s, given.windows, forced)
        return await answer(request, forecasts, started_s)

    return predict


def _forced(request: Request) -> str | None:
    return request.headers.get("x-model-version")


def _json(document: Mapping[str, Any], *, status: int = 200) -> Response:
    return Response(
        orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), status_code=status, media_type="application/json"
    )
