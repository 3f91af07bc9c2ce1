"""The front door: an ASGI middleware around Ray's own, inside the process of a Gateway replica.

In HAProxy mode a Gateway replica takes HTTP itself, through Ray's ASGI wrapper, which costs about 0.3 ms of processor
time a request. The hot route needs nothing of it, so the front door answers that route at once and passes on the rest.
Ray asks for it by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.deployments.front_door:middlewares` (set by
`serve-app up` and in the KubeRay manifests). Without that variable, or in Ray's own proxy process, everything works
the slower way. docs/decisions/0001 has the figures and the drawbacks.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
            await _open[0](scope, receive, send)
        else:
            await self._app(scope, receive, send)


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
