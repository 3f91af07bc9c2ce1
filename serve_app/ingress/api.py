"""build_api(): FastAPI with its routers, and in front of it the hot routes as plain ASGI."""

import time
from importlib.metadata import PackageNotFoundError, version

import structlog
from fastapi import APIRouter, FastAPI, Request, Response

from serve_app.ingress.admin import Admin
from serve_app.ingress.admin_models import admin_models_routers
from serve_app.ingress.asked import Scope
from serve_app.ingress.error_responses import error_response
from serve_app.ingress.events import events_router
from serve_app.ingress.explain import Explanations, explain_router
from serve_app.ingress.forecasts import Temporal, forecast_routers
from serve_app.ingress.health import CollectMetrics, health_router
from serve_app.ingress.inference import COUNTED, Inference, Message, Receive, Send, route_of
from serve_app.ingress.open_inference import open_inference_router
from serve_app.ingress.operations import operations_router
from serve_app.ingress.reload_all import reload_all_router
from serve_app.ingress.reload_routes import admin_reload_router, models_reload_router
from serve_app.ingress.rollouts import rollouts_router
from serve_app.ingress.route_explanation import route_explanation_router
from serve_app.ingress.shadow import shadow_router
from serve_app.ingress.tensorflow_rest import tensorflow_router
from serve_app.usecases.route_request import RequestRouter

log = structlog.get_logger(__name__)


class Api:
    """The ASGI application of a gateway: the hot routes where they fit, FastAPI for the rest, which is counted here."""

    def __init__(self, inference: Inference, rest: FastAPI) -> None:
        self.inference = inference
        self.rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self.inference.is_hot(scope):
            await self.inference(scope, receive, send)
        elif scope["type"] == "http":
            await self._counted(scope, receive, send)
        else:
            await self.rest(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_s = time.perf_counter()
        status = 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.rest(scope, receive, send_on)
        finally:
            seconds = time.perf_counter() - started_s
            if COUNTED not in scope:
                self.inference.meter.observe_http(*route_of(scope), status, seconds)


def build_api(
    router: RequestRouter,
    inference: Inference,
    *,
    required: frozenset[str],
    collect_metrics: CollectMetrics,
    admin: Admin | None = None,
    hooks: APIRouter | None = None,
    temporal: Temporal | None = None,
    explanations: Explanations | None = None,
    feedback: APIRouter | None = None,
) -> Api:
    """Put the routes together; without `admin` there are no admin routes, and so on."""
    rest = FastAPI(title="serve-app", version=_version(), description="Model server on Ray Serve.")
    of_ingest = admin.of_ingest if admin is not None else ()
    for routes in forecast_routers(temporal, of_ingest) if temporal is not None else ():
        rest.include_router(routes)  # before those of `inference`, whose `/predict/{family}` fits them too
    rest.include_router(inference.describe())
    windows = temporal.kept if temporal is not None else _nothing_kept
    rest.include_router(health_router(router, required, collect_metrics, windows))
    rest.include_router(open_inference_router(router, required))
    rest.include_router(tensorflow_router(router))
    for routes in admin_routers(router, admin) if admin is not None else ():
        rest.include_router(routes)
    if explanations is not None:
        rest.include_router(explain_router(explanations))
    for optional in (hooks, feedback):
        if optional is not None:
            rest.include_router(optional)

    @rest.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("request failed", path=request.url.path, exc_info=error)
        status, headers, body = error_response(error)
        return Response(body, status_code=status, headers={name.decode(): value.decode() for name, value in headers})

    return Api(inference, rest)


def _nothing_kept(_family: str) -> None:
    return None


def admin_routers(router: RequestRouter, admin: Admin) -> list[APIRouter]:
    """Build all admin routes."""
    return [
        reload_all_router(router, admin),
        admin_reload_router(router, admin),
        models_reload_router(router, admin),
        *admin_models_routers(router, admin),
        operations_router(router, admin),
        rollouts_router(router, admin),
        shadow_router(router, admin),
        route_explanation_router(router, admin),
        events_router(router, admin),
    ]


def _version() -> str:
    try:
        return version("serve-app")
    except PackageNotFoundError:
        return "0"
