"""The front door: an ASGI middleware around Ray's own, inside the process of a Gateway replica.

In HAProxy mode a Gateway replica takes HTTP itself, through Ray's ASGI wrapper, which costs about 0.3 ms of processor
time a request. The hot route needs nothing of it, so the front door answers that route at once and passes on the rest.
Ray asks for it by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.deployments.front_door:middlewares` (set by
`serve-app up` and in the KubeRay manifests). Without that variable, or in Ray's own proxy process, everything works
the slower way. docs/decisions/0001 has the figures and the drawbacks.
"""

from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from serve_app.ingress.inference import Inference

_open: list[Inference] = []


def open_for(inference: Inference) -> None:
    """Answer hot requests of this process by `inference` from now on."""
    _open[:] = [inference]


class FrontDoor:
    """Answers the hot route itself where a Gateway lives in this process."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if _open and _open[0].is_hot(scope):
            await _open[0](scope, receive, in_one_write(send))
        else:
            await self._app(scope, receive, send)


class _Joined:
    """Stands for a transport and keeps what is written, until it is sent in one write."""

    __slots__ = ("_parts", "_transport", "closes")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self.closes = False

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def close(self) -> None:
        self.closes = True

    def send(self) -> Any:
        """Write it all, close if that was asked for, and return the transport."""
        if self._parts:
            self._transport.write(b"".join(self._parts))
        if self.closes:
            self._transport.close()
        return self._transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def in_one_write(send: Send) -> Send:
    """Have the head of an answer sent together with its body, which must be whole.

    uvicorn writes them one after the other, and each write is a system call of some 40 µs. With another server than
    uvicorn's on httptools, `send` is returned as it is.
    """
    cycle = getattr(send, "__self__", None)
    if not isinstance(cycle, RequestResponseCycle):
        return send
    head: list[Message] = []

    async def send_joined(message: Message) -> None:
        if message["type"] == "http.response.start":
            head.append(message)
            return
        joined = _Joined(cycle.transport)
        cycle.transport = joined  # type: ignore[assignment]  # it has of a transport what a cycle uses
        try:
            await send(head.pop())
            await send(message)
        finally:
            cycle.transport = joined.send()

    return send_joined


def without_request_id(app: ASGIApp) -> ASGIApp:
    """Leave the header `X-Request-ID` to Ray's own middleware, which is around every application of Serve."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
            await send(message)

        await app(scope, receive, send_on)

    return wrapped


def middlewares() -> list[Middleware]:
    """Return what Ray Serve is to wrap its HTTP application in."""
    return [Middleware(FrontDoor)]
