"""`POST /predict/{family}` and those of other protocols: the hot routes, and cheap questions that balancers ask often.

Plain ASGI, since FastAPI's machinery costs more than the prediction. They stand in the OpenAPI document through
`describe`, which registers the same paths with FastAPI.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

import structlog
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from serve_app.domain.errors import (
    InvalidInputError,
    PayloadTooLargeError,
    PredictionError,
    RefusedVersionError,
    ServeAppError,
    UnavailableError,
    UnknownVersionError,
)
from serve_app.ingress import error_responses, invocations, open_inference, tensorflow_rest
from serve_app.ingress.asked import OF_DEFAULT, OF_FAMILY, PREFIX, Asked, Scope, asked_of, family_of, spoken_of
from serve_app.ingress.dialect import Rows
from serve_app.ingress.targeting import Targeting
from serve_app.ingress.wire import PredictAnswer, PredictBody
from serve_app.usecases.mirror_requests import Copied, Mirror
from serve_app.usecases.name_versions import NamedVersions
from serve_app.usecases.ports import RequestMeter
from serve_app.usecases.record_requests import RequestRecorder
from serve_app.usecases.remember_predictions import PredictionMemory
from serve_app.usecases.route_request import RequestRouter, Target

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LIVE: Final = "/live"
COUNTED: Final = "serve_app.counted"
"""Key of an ASGI scope whose answer was counted where it was made, with its family and version."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER: Final = "other"
FLOAT32_MAX: Final = 3.4028234663852886e38
_ASKED_OFTEN: Final = frozenset({LIVE, invocations.PING, invocations.VERSION})
LIVE_BODY: Final = b'{"status":"alive"}'
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds of one request."""

    max_body_bytes: int
    max_rows: int


class AnswerMeter(RequestMeter, Protocol):
    """Counts answers by family and version, and by route. Called for each request: it must return in microseconds.

    A route is named by the template of its path, never by what a client sent.
    """

    def observe(
        self,
        family: str,
        version: str,
        variant: str,
        status: int,
        seconds: float,
        route: str = OF_FAMILY,
        method: str = "POST",
    ) -> None:
        """Count one answer to a prediction."""
        ...

    def observe_http(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer of any other route."""
        ...


class Inference:
    """Answers predictions. Lives on one event loop. `elsewhere` are paths below `/predict` that others answer."""

    def __init__(
        self,
        router: RequestRouter,
        names: NamedVersions,
        *,
        limits: RequestLimits,
        meter: AnswerMeter,
        access_log: bool,
        elsewhere: frozenset[str] = frozenset(),
        mirror: Mirror | None = None,
        memory: PredictionMemory | None = None,
        recorder: RequestRecorder | None = None,
    ) -> None:
        self._router = router
        self._targeting = Targeting(router)
        self._mirror = mirror
        self._memory = memory
        self._recorder = recorder
        self._elsewhere = elsewhere
        self._names = names
        self._limits = limits
        self.meter = meter
        self._access_log = access_log
        self._version = invocations.protocol_version()
        self._id_prefix = os.urandom(6).hex() if memory is None else memory.prefix
        self._ids = itertools.count(1)
        self._next_overload_line_s = 0.0

    def is_hot(self, scope: Scope) -> bool:
        """Say whether `__call__` answers this request; all others belong to FastAPI."""
        if scope["type"] != "http":
            return False
        path: str = scope["path"]
        if scope["method"] == "POST":
            is_ours = path.startswith(OF_DEFAULT) or path in (PREFIX, invocations.PATH) or spoken_of(path) is not None
            return is_ours and path not in self._elsewhere
        return path in _ASKED_OFTEN and scope["method"] in ("GET", "HEAD")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request as an ASGI application; errors become answers, nothing is raised."""
        copied: Copied | None = None
        if scope["method"] != "POST":
            status, headers, answer = self.tell(scope)
        else:
            asked = asked_of(scope)
            try:
                body = await self._read_body(asked, receive)
            except ServeAppError as error:
                status, headers, answer = self._refuse(asked, error)
                headers.append((b"connection", b"close"))  # the rest of the body is not read
            else:
                status, headers, answer = await self.answer(asked, body)
                copied = asked.copied
        headers.append((b"content-length", str(len(answer)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer})
        if copied is not None and self._mirror is not None:
            self._mirror.offer(copied)

    def tell(self, scope: Scope) -> error_responses.Response:
        """Answer `/live`, `/ping` or `/version`."""
        path: str = scope["path"]
        if path == invocations.PING:
            status, headers, answer = invocations.ping(self._router, family_of(scope))
        else:
            status, headers = 200, [error_responses.JSON_HEADER]
            answer = self._version if path == invocations.VERSION else LIVE_BODY
        self.meter.observe_http(scope["method"], path, status, 0.0)
        return status, headers, answer

    async def answer(self, asked: Asked, body: bytes) -> error_responses.Response:
        """Predict for a whole body; every error becomes the answer that belongs to it."""
        started_s = time.perf_counter()
        dialect = asked.dialect
        target: Target | None = None
        try:
            if asked.is_named:
                target = await self._named(asked)
            elif self._router.splits:
                asked.placed = self._targeting.place(
                    asked.family, asked.forced_version, asked.headers, body, dialect.entity
                )
                target = asked.placed.target
            else:
                target = self._router.target(asked.family, asked.forced_version)
            rows = dialect.read(body, asked.content_type, target, self._limits.max_rows)
            try:
                outputs = await target.coalescer.submit(rows)
            except UnknownVersionError:
                if target.reason == "forced":
                    raise
                if target.reason == "named":
                    target = await self._names.again(asked.family, asked.model, asked.version)
                    rows = dialect.read(body, asked.content_type, target, self._limits.max_rows)
                    outputs = await self._outputs_of_named(target, rows)
                else:
                    target, outputs = await self._fall_back(target, rows)
            except PredictionError as error:
                if _are_ordinary(rows):
                    raise
                problem = str(error).partition("\n")[0]
                raise InvalidInputError(f"expected numbers that the model can take: {problem}") from error
            answer = dialect.write(outputs, target)
        except Exception as error:
            return self._refuse(asked, error, target, time.perf_counter() - started_s)
        number = next(self._ids)
        headers = [error_responses.JSON_HEADER, *self._id_headers(asked, number), *route_headers(target)]
        if self._memory is not None:
            self._memory.offer(number, target, outputs)
        seconds = time.perf_counter() - started_s
        self.meter.observe(target.family, target.version, target.variant, 200, seconds, asked.route)
        if self._recorder is not None:
            self._recorder.offer(target, rows, outputs, seconds)
        if (placed := asked.placed) is not None:
            if target.tally is not None:  # none where another version than the split's has answered
                target.tally.count(200, seconds)
            if placed.cookie is not None:
                headers.append(placed.cookie)
            if (
                (route := placed.copies_to) is not None
                and target is placed.target
                and self._mirror is not None
                and self._mirror.has_room(route, target)
            ):
                asked.copied = Copied(route, target, rows, outputs, seconds)
        if self._access_log:
            log.info(
                "predicted", family=target.family, version=target.version, rows=len(rows), seconds=round(seconds, 6)
            )
        return 200, headers, answer

    async def _named(self, asked: Asked) -> Target:
        """Return where a request goes whose query names a model or a version; what is not loaded is waited for.

        The header is for looking at what is loaded, and loads nothing; so a request has one of the two.
        """
        if asked.forced_version is not None:
            raise InvalidInputError("expected model and version in the query or X-Model-Version, got both")
        return await self._names.target(asked.family, asked.model, asked.version)

    @staticmethod
    async def _outputs_of_named(target: Target, rows: Rows) -> NDArray[Any]:
        """Predict with what was loaded just now.

        Raises:
            UnavailableError: It is gone once more: more versions are asked for than fit into memory.
        """
        try:
            return await target.coalescer.submit(rows)
        except UnknownVersionError:
            raise UnavailableError(
                f"version {target.version!r} of {target.family!r} was let go of again: more are in use than fit"
            ) from None

    async def _fall_back(self, target: Target, rows: Rows) -> tuple[Target, NDArray[Any]]:
        """Answer by the last good version when no replica holds the right one; the answer's headers say so.

        Raises:
            UnavailableError: There is no last good version either; the routes follow within a second.
        """
        other = self._router.fallback(target)
        if other is not None:
            with contextlib.suppress(UnknownVersionError):  # the client asked for neither: no 404
                return other, await other.coalescer.submit(rows)
        raise UnavailableError(f"version {target.version!r} of {target.family!r} is being replaced; try again")

    def _refuse(
        self, asked: Asked, error: Exception, target: Target | None = None, seconds: float = 0.0
    ) -> error_responses.Response:
        status, headers, answer = asked.dialect.refuse(error)
        headers += self._id_headers(asked, next(self._ids))
        family, version, variant = "", "", ""
        if target is not None:
            family, version, variant = target.family, target.version, target.variant
            headers += route_headers(target)
            if target.tally is not None:
                target.tally.count(status, seconds)
        self.meter.observe(family, version, variant, status, seconds, asked.route)
        if status >= 500 and self._is_worth_a_line(error):
            known = isinstance(error, ServeAppError)
            log.error(
                "request failed", path=asked.path, status=status, reason=str(error), family=family, version=version,
                request_id=dict(headers)[b"x-request-id"].decode("latin-1"), exc_info=None if known else error,
            )  # fmt: skip
        return status, headers, answer

    def _is_worth_a_line(self, error: Exception) -> bool:
        """True but for an overload within a second of the last that was logged: its thousand lines say the same.

        So it is with a version that is refused: the control plane has logged it, and clients may name it for ever.
        """
        if not isinstance(error, UnavailableError | RefusedVersionError):
            return True
        now_s = time.monotonic()
        is_due = now_s >= self._next_overload_line_s
        if is_due:
            self._next_overload_line_s = now_s + 1.0
        return is_due

    async def _read_body(self, asked: Asked, receive: Receive) -> bytes:
        limit = self._limits.max_body_bytes
        if asked.content_length > limit:
            raise PayloadTooLargeError(f"expected a body of at most {limit} bytes, got {asked.content_length}")
        message = await receive()
        body: bytes = message.get("body", b"")
        parts, size = [body], len(body)
        while size <= limit and message.get("more_body", False):
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        if size > limit:
            raise PayloadTooLargeError(f"expected a body of at most {limit} bytes, got more")
        return body if len(parts) == 1 else b"".join(parts)

    def _id_headers(self, asked: Asked, number: int) -> list[tuple[bytes, bytes]]:
        prediction_id = f"{self._id_prefix}-{number}".encode()
        return [(b"x-request-id", asked.request_id or prediction_id), (b"x-prediction-id", prediction_id)]

    def describe(self) -> APIRouter:
        """Return the routes for FastAPI: they document the hot routes, and answer where FastAPI is mounted alone."""
        api = APIRouter()

        async def predict(request: Request) -> Response:
            return _response(await self.answer(asked_of(request.scope), await request.body()))

        async def tell(request: Request) -> Response:
            return _response(self.tell(request.scope))

        body = {"required": True, "content": {"application/json": {"schema": PredictBody.model_json_schema()}}}
        family = {"name": "family", "in": "path", "required": True, "schema": {"type": "string"}}
        for path, summary, parameters in (
            (OF_FAMILY, "Predict with a family", [family, *invocations.NAMED]),
            (OF_DEFAULT, "Predict with the default family", list(invocations.NAMED)),
        ):
            api.add_api_route(
                path, predict, methods=["POST"], summary=summary, response_model=None, tags=["predict"],
                openapi_extra={"requestBody": body, "parameters": parameters},
                responses={200: {"model": PredictAnswer}, 400: {}, 404: {}, 413: {}, 415: {}, 422: {}, 503: {}},
            )  # fmt: skip
        api.add_api_route(PREFIX, predict, methods=["POST"], response_model=None, include_in_schema=False)
        invocations.describe(api, predict, tell)
        open_inference.describe(api, predict)
        tensorflow_rest.describe(api, predict)
        return api


def _are_ordinary(rows: Rows) -> bool:
    """False where a number is missing, infinite, or beyond float32: then it is the client's, if the model fails."""
    return all(abs(value) <= FLOAT32_MAX for row in rows for value in row)


def route_of(scope: Mapping[str, Any]) -> tuple[str, str]:
    """Return the method and the template of the path that FastAPI found; `other` for what is neither ours nor HTTP's.

    Never what the client sent: each new value would be a series of metrics for ever.
    """
    path = getattr(scope.get("route"), "path", OTHER)
    return scope["method"] if scope["method"] in METHODS else OTHER, path


def _response(answered: error_responses.Response) -> Response:
    status, headers, body = answered
    response = Response(body, status_code=status)
    response.raw_headers.extend(headers)
    return response


@lru_cache(maxsize=512)
def route_headers(target: Target) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that say who answered, and why it was chosen."""
    return (
        (b"x-model-family", target.family.encode()),
        (b"x-model-version", target.version.encode()),
        (b"x-model-variant", target.variant.encode()),
        (b"x-route-reason", target.reason.encode()),
        (b"x-generation", str(target.generation).encode()),
    )
