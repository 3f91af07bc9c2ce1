"""`POST /predict/{family}`: the hot route. Plain ASGI, since FastAPI's machinery costs more than the prediction.

It stands in the OpenAPI document through `describe`, which registers the same paths with FastAPI.
"""

import contextlib
import itertools
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import structlog
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from serve_app.domain.errors import PayloadTooLargeError, ServeAppError, UnavailableError, UnknownVersionError
from serve_app.ingress import error_responses
from serve_app.ingress.wire import (
    PredictAnswer,
    PredictBody,
    answer_tail,
    check_media_type,
    predictions_json,
    read_rows,
)
from serve_app.usecases.ports import RequestMeter
from serve_app.usecases.route_request import RequestRouter, Target

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

PREFIX: Final = "/predict"
_ECHOED: Final = re.compile(rb"[\x21-\x7e]{1,128}")
"""A request id of the client that is safe in a header and in a log; any other is replaced by ours."""
LIVE_BODY: Final = b'{"status":"alive"}'
_LIVE_HEADERS: Final = [(b"content-type", b"application/json"), (b"content-length", str(len(LIVE_BODY)).encode())]
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds of one request."""

    max_body_bytes: int
    max_rows: int


@dataclass(slots=True)
class _Asked:
    """The headers of a request that matter here."""

    content_type: bytes = b""
    content_length: int = 0
    request_id: bytes = b""
    forced_version: str | None = None


class Inference:
    """Answers predictions. Lives on one event loop."""

    def __init__(self, router: RequestRouter, *, limits: RequestLimits, meter: RequestMeter, access_log: bool) -> None:
        self._router = router
        self._limits = limits
        self._meter = meter
        self._access_log = access_log
        self._id_prefix = os.urandom(6).hex()
        self._ids = itertools.count(1)
        self._next_overload_line_s = 0.0

    @staticmethod
    def is_hot(scope: Scope) -> bool:
        """Say whether `__call__` answers this request; all others belong to FastAPI."""
        if scope["type"] != "http":
            return False
        path: str = scope["path"]
        if scope["method"] == "POST":
            return path.startswith("/predict/") or path == PREFIX
        return path == "/live" and scope["method"] in ("GET", "HEAD")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request as an ASGI application; errors become answers, nothing is raised."""
        if scope["method"] != "POST":
            await send({"type": "http.response.start", "status": 200, "headers": _LIVE_HEADERS})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else LIVE_BODY})
            return
        asked = _read_headers(scope["headers"])
        try:
            body = await self._read_body(asked, receive)
        except ServeAppError as error:
            status, headers, answer = self._refuse(asked, scope["path"], error)
            headers.append((b"connection", b"close"))  # the rest of the body is not read
        else:
            status, headers, answer = await self.answer(scope["path"], asked, body)
        headers.append((b"content-length", str(len(answer)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def answer(self, path: str, asked: _Asked, body: bytes) -> error_responses.Response:
        """Predict for a whole body; every error becomes the answer that belongs to it."""
        started_s = time.perf_counter()
        family = path[len(PREFIX) :].strip("/")
        target: Target | None = None
        try:
            check_media_type(asked.content_type)
            target = self._router.target(family, asked.forced_version)
            rows = read_rows(body, target.input_names, max_rows=self._limits.max_rows)
            try:
                outputs = await target.coalescer.submit(rows)
            except UnknownVersionError:
                if target.reason == "forced":
                    raise
                target, outputs = await self._fall_back(target, rows)
            answer = b'{"predictions":' + predictions_json(outputs, target.output_names) + _tail(target)
        except Exception as error:
            return self._refuse(asked, path, error, target, time.perf_counter() - started_s)
        headers = [error_responses.JSON_HEADER, *self._id_headers(asked), *_route_headers(target)]
        seconds = time.perf_counter() - started_s
        self._meter.observe(target.family, target.version, target.variant, 200, seconds)
        if self._access_log:
            log.info(
                "predicted", family=target.family, version=target.version, rows=len(rows), seconds=round(seconds, 6)
            )
        return 200, headers, answer

    async def _fall_back(self, target: Target, rows: list[list[float]]) -> tuple[Target, NDArray[Any]]:
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
        self, asked: _Asked, path: str, error: Exception, target: Target | None = None, seconds: float = 0.0
    ) -> error_responses.Response:
        status, headers, answer = error_responses.error_response(error)
        headers += self._id_headers(asked)
        family, version, variant = "", "", ""
        if target is not None:
            family, version, variant = target.family, target.version, target.variant
            headers += _route_headers(target)
        self._meter.observe(family, version, variant, status, seconds)
        if status >= 500 and self._is_worth_a_line(error):
            known = isinstance(error, ServeAppError)
            log.error(
                "request failed", path=path, status=status, reason=str(error), family=family, version=version,
                request_id=dict(headers)[b"x-request-id"].decode("latin-1"), exc_info=None if known else error,
            )  # fmt: skip
        return status, headers, answer

    def _is_worth_a_line(self, error: Exception) -> bool:
        """True but for an overload within a second of the last that was logged: its thousand lines say the same."""
        if not isinstance(error, UnavailableError):
            return True
        now_s = time.monotonic()
        is_due = now_s >= self._next_overload_line_s
        if is_due:
            self._next_overload_line_s = now_s + 1.0
        return is_due

    async def _read_body(self, asked: _Asked, receive: Receive) -> bytes:
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

    def _id_headers(self, asked: _Asked) -> list[tuple[bytes, bytes]]:
        prediction_id = f"{self._id_prefix}-{next(self._ids)}".encode()
        return [(b"x-request-id", asked.request_id or prediction_id), (b"x-prediction-id", prediction_id)]

    def describe(self) -> APIRouter:
        """Return the routes for FastAPI: they document the hot route, and answer where FastAPI is mounted alone."""
        api = APIRouter(tags=["predict"])
        schema = {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": PredictBody.model_json_schema()}},
            }
        }

        async def predict(request: Request) -> Response:
            asked = _read_headers(request.scope["headers"])
            status, headers, answer = await self.answer(request.url.path, asked, await request.body())
            response = Response(answer, status_code=status)
            response.raw_headers.extend(headers)
            return response

        family = {"name": "family", "in": "path", "required": True, "schema": {"type": "string"}}
        for path, summary, parameters in (
            ("/predict/{family}", "Predict with a family", [family]),
            ("/predict/", "Predict with the default family", []),
        ):
            api.add_api_route(
                path, predict, methods=["POST"], summary=summary, response_model=None,
                openapi_extra=schema | {"parameters": parameters},
                responses={200: {"model": PredictAnswer}, 400: {}, 404: {}, 413: {}, 415: {}, 422: {}, 503: {}},
            )  # fmt: skip
        api.add_api_route(PREFIX, predict, methods=["POST"], response_model=None, include_in_schema=False)
        return api


def _read_headers(headers: Headers) -> _Asked:
    asked = _Asked()
    correlation_id = b""
    for name, value in headers:
        if name == b"content-type":
            asked.content_type = value
        elif name == b"content-length":
            asked.content_length = int(value[:20]) if value.isdigit() else 0
        elif name == b"x-request-id" and _ECHOED.fullmatch(value):
            asked.request_id = value
        elif name == b"x-correlation-id" and _ECHOED.fullmatch(value):
            correlation_id = value
        elif name == b"x-model-version":
            asked.forced_version = value.decode("latin-1")
    asked.request_id = asked.request_id or correlation_id
    return asked


@lru_cache(maxsize=512)
def _route_headers(target: Target) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"x-model-family", target.family.encode()),
        (b"x-model-version", target.version.encode()),
        (b"x-model-variant", target.variant.encode()),
        (b"x-route-reason", target.reason.encode()),
        (b"x-generation", str(target.generation).encode()),
    )


@lru_cache(maxsize=512)
def _tail(target: Target) -> bytes:
    return answer_tail(target.family, target.version)
