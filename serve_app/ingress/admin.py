"""What the admin routes share: what they are made of, how a change is asked for, how errors become answers."""

import re
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import orjson
import structlog
from fastapi import Depends, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel

from serve_app.config import AppConfig
from serve_app.config_sources import DirectoryConfig, SourceConfig
from serve_app.domain.access import FailureTable, Scope
from serve_app.domain.errors import InvalidInputError, ServeAppError, UnknownFamilyError
from serve_app.domain.reload import Operation, Outcome
from serve_app.ingress.error_responses import error_response
from serve_app.ingress.reload_log import registry_facts
from serve_app.ingress.security import AdminGuard
from serve_app.usecases.admit_caller import CallerAdmission, RefusalMeter, TokenSource
from serve_app.usecases.follow_events import EventFeed
from serve_app.usecases.ports import Clock, ControlPlane
from serve_app.usecases.predict_windows import WindowForecaster
from serve_app.usecases.route_request import RequestRouter

OPERATIONS: Final = "/admin/operations"
ROLLOUTS: Final = "/admin/rollouts"
_ECHOED: Final = re.compile(r"[\x21-\x7e]{1,128}")
log = structlog.get_logger(__name__)

Document = BaseModel | Mapping[str, Any]
Refuse = Callable[[Exception], Response]
"""Turns any error of a route into its answer."""


@dataclass(frozen=True, slots=True)
class AdminFamily:
    """What the routes tell of a family: its directory of models as it is configured, and its `models_type`."""

    models_dir: str
    models_type: str


@dataclass(frozen=True, slots=True)
class Admin:
    """What the admin routes are made of."""

    plane: ControlPlane
    guard: AdminGuard
    families: Mapping[str, AdminFamily]
    wait_s: float
    max_wait_s: float
    forecasters: Mapping[str, WindowForecaster] = field(default_factory=dict)
    feed: EventFeed | None = None
    is_ingest_closed: bool = False

    @classmethod
    def of(
        cls,
        config: AppConfig,
        *,
        plane: ControlPlane,
        tokens: TokenSource,
        meter: RefusalMeter,
        clock: Clock,
        forecasters: Mapping[str, WindowForecaster] | None = None,
        feed: EventFeed | None = None,
    ) -> "Admin":
        """Put them together as the configuration says; `forecasters` are those of the temporal families.

        `feed` is for listeners to events; without one there is the list of events alone.
        """
        security = config.security
        failures = FailureTable(first_delay_s=security.first_refusal_delay_s, max_delay_s=security.max_refusal_delay_s)
        admission = CallerAdmission(tokens, failures=failures, meter=meter, clock=clock, is_open=security.open_admin)
        return cls(
            plane=plane,
            guard=AdminGuard(
                admission, token_header=security.token_header, client_address_header=security.client_address_header
            ),
            families={
                name: AdminFamily(models_dir=_place(family.source), models_type=family.models_type)
                for name, family in config.families.items()
            },
            wait_s=config.admin.wait_s,
            max_wait_s=config.admin.max_wait_s,
            forecasters=forecasters or {},
            feed=feed,
            is_ingest_closed=security.closed_ingest,
        )

    @property
    def of_ingest(self) -> Sequence[Any]:
        """What the routes that take observations and labels depend on: a token where they are closed."""
        return [Depends(self.guard.caller_with(Scope.INGEST))] if self.is_ingest_closed else []

    def waiting(self) -> Callable[..., Awaitable[float]]:
        """Return a dependency that reads how many seconds a request wants to wait for the end of its change."""

        async def wait_s(
            wait: Annotated[bool, Query(description="false: answer 202 at once")] = True,
            timeout_s: Annotated[
                float | None,
                Query(ge=0, le=self.max_wait_s, allow_inf_nan=False, description=f"seconds; default {self.wait_s:g}"),
            ] = None,
        ) -> float:
            return 0.0 if not wait else self.wait_s if timeout_s is None else timeout_s

        return wait_s


def _place(source: SourceConfig) -> str:
    """Name where versions come from, as the admin routes show it and take it before a version."""
    return source.root if isinstance(source, DirectoryConfig) else f"models:/{source.model}"


FamilyQuery = Annotated[str, Query(max_length=63, description="default: the default family")]
ForceQuery = Annotated[bool, Query(description="try a bundle again that was refused before")]
Strategy = Literal["immediate"] | None
StrategyQuery = Annotated[
    Strategy,
    Query(description="immediate: all traffic at once, whatever the family's plan says; ends a rollout"),
]


def family_named(router: RequestRouter, name: str) -> str:
    """Return the family of that name; the default family for an empty one.

    Raises:
        UnknownFamilyError: No such family.
    """
    if name and name not in router.families:
        raise UnknownFamilyError(name, router.families)
    return name or router.default_family


async def reload_family(
    router: RequestRouter,
    admin: Admin,
    family: str,
    *,
    version: str | None = None,
    force: bool,
    strategy: Strategy = None,
    actor: str,
    route: str,
    wait_s: float,
) -> Operation:
    """Ask for a reload, log what became of it, and return it. Raises as `ControlPlane.reload`."""
    try:
        operation = await admin.plane.reload(
            family, version=version, force=force, actor=actor, reason=f"POST {route}", wait_s=wait_s,
            immediate=strategy is not None,
        )  # fmt: skip
    except ServeAppError as error:
        log.warning("Manual model reload refused", family=family, actor=actor, version=version, reason=str(error))
        raise
    log_operation(router, admin, operation, "reload", actor)
    return operation


def log_operation(router: RequestRouter, admin: Admin, operation: Operation, action: str, actor: str) -> None:
    """Log how a change that somebody asked for stands."""
    said = {
        Outcome.RELOADED: "applied",
        Outcome.UNCHANGED: "changed nothing",
        Outcome.RUNNING: "under way",
        Outcome.FAILED: "failed",
    }[operation.outcome]
    family = operation.family
    write = log.error if operation.outcome is Outcome.FAILED else log.info
    write(
        f"Manual model {action} {said}", family=family, actor=actor, operation_id=operation.operation_id,
        detail=operation.detail, **registry_facts(operation, admin.families[family].models_dir, router.stage(family)),
    )  # fmt: skip


def answer(document: Document, *, status: int = 200, operation: Operation | None = None) -> Response:
    """Answer with a document; fields that were never set are left out."""
    body = document.model_dump(mode="json", exclude_unset=True) if isinstance(document, BaseModel) else document
    response = Response(orjson.dumps(body), status_code=status, media_type="application/json")
    if operation is not None and operation.operation_id:
        response.headers["x-operation-id"] = operation.operation_id
    return response


class Accepted(BaseModel):
    """A change is under way; `operation_url` tells how it goes on, `rollout_url` more of one that is gradual."""

    status: str = "running"
    detail: str
    operation: Operation
    operation_url: str
    rollout_url: str | None = None


def accepted(operation: Operation, /, **more: Any) -> Response:
    """Answer 202 for a change that has not ended yet."""
    url = f"{OPERATIONS}/{operation.operation_id}"
    body = Accepted(
        status="running", detail=f"still under way; GET {url} tells how it ends", operation=operation, operation_url=url
    )
    if operation.is_rollout:
        rollout_url = f"{ROLLOUTS}/{operation.family}"
        detail = f"a rollout of {operation.to_version} is under way; GET {rollout_url} tells how it stands"
        body = body.model_copy(update={"rollout_url": rollout_url, "detail": detail})
    told = body.model_dump(mode="json", exclude=None if operation.is_rollout else {"rollout_url"})
    response = answer(more | told, status=202, operation=operation)
    response.headers["location"] = body.rollout_url or url
    return response


def refused(error: Exception, /, **more: Any) -> Response:
    """Answer an error as the one table says; `more` goes before `detail`."""
    status, headers, body = error_response(error)
    if more:
        body = orjson.dumps(more | orjson.loads(body))
    response = Response(body, status_code=status)
    response.raw_headers.extend(headers)
    return response


def said(error: Exception) -> str:
    """Return what a client may read of an error."""
    return str(error) if isinstance(error, ServeAppError) else "internal error; the log has the details"


def admin_route(refuse: Refuse = refused) -> type[APIRoute]:
    """Make a class of routes whose errors, those of admission and of parameters too, are answered by `refuse`."""

    class AdminRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_all(request: Request) -> Response:
                request_id = _request_id(request)
                with structlog.contextvars.bound_contextvars(correlation_id=request_id):
                    response = await _handled(handle, request, refuse)
                response.headers["x-request-id"] = request_id
                response.headers["cache-control"] = "no-store"
                return response

            return handle_all

    return AdminRoute


async def _handled(
    handle: Callable[[Request], Coroutine[Any, Any, Response]], request: Request, refuse: Refuse
) -> Response:
    try:
        return await handle(request)
    except HTTPException:
        raise
    except RequestValidationError as error:
        return refuse(InvalidInputError(_sentence(error)))
    except ServeAppError as error:
        return refuse(error)
    except Exception as error:
        log.exception("request failed", path=request.url.path)
        return refuse(error)


def _request_id(request: Request) -> str:
    for name in ("x-correlation-id", "x-request-id"):  # HAProxy gives every request an id of the second name
        if _ECHOED.fullmatch(value := request.headers.get(name, "")):
            return value
    return uuid.uuid4().hex


def _sentence(error: RequestValidationError) -> str:
    """Say what is wrong with the parameters; the values stay out, for one could be a token in the wrong place."""
    return "; ".join(f"{'.'.join(map(str, problem['loc'][1:]))}: {problem['msg']}" for problem in error.errors())
