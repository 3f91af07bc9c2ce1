"""`POST /admin/reload` and `POST /models/reload`: reload one family, each with the answers its clients know."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from serve_app.domain.access import ForbiddenError, Scope, UnauthenticatedError
from serve_app.domain.errors import (
    InvalidInputError,
    PinnedError,
    ReloadDisabledError,
    StoreError,
    UnavailableError,
    UnknownFamilyError,
)
from serve_app.domain.reload import Outcome
from serve_app.ingress.admin import (
    Accepted,
    Admin,
    FamilyQuery,
    ForceQuery,
    StrategyQuery,
    accepted,
    admin_route,
    answer,
    family_named,
    refused,
    reload_family,
    said,
)
from serve_app.usecases.route_request import RequestRouter

ADMIN_RELOAD: Final = "/admin/reload"
MODELS_RELOAD: Final = "/models/reload"
STAGE: Final = "stable"
_AS_ELSEWHERE: Final = (UnknownFamilyError, InvalidInputError, PinnedError, ReloadDisabledError)


class AdminReload(BaseModel):
    """Body of `POST /admin/reload`."""

    status: str
    detail: str
    version: str | None
    stage: str | None


class ModelsReload(BaseModel):
    """Body of `POST /models/reload`."""

    status: str
    model_version: str | None


def admin_reload_router(router: RequestRouter, admin: Admin) -> APIRouter:
    """Build `POST /admin/reload`."""
    api = APIRouter(tags=["models"], route_class=admin_route(_admin_reload_refused))

    @api.post(
        ADMIN_RELOAD, summary="Reload a family: reloaded, or noop", response_model=AdminReload,
        responses={202: {"model": Accepted}, 403: {}, 404: {}, 409: {}, 500: {}, 503: {}},
    )  # fmt: skip
    async def admin_reload(
        actor: Annotated[str, Depends(admin.guard.caller_with(Scope.RELOAD))],
        wait_s: Annotated[float, Depends(admin.waiting())],
        family: FamilyQuery = "",
        force: ForceQuery = False,
        strategy: StrategyQuery = None,
    ) -> Response:
        name = family_named(router, family)
        operation = await reload_family(
            router, admin, name, force=force, strategy=strategy, actor=actor, route=ADMIN_RELOAD, wait_s=wait_s
        )
        match operation.outcome:
            case Outcome.RUNNING:
                return accepted(operation)
            case Outcome.FAILED:
                return answer({"detail": f"Reload failed: {operation.detail}"}, status=500, operation=operation)
            case Outcome.UNCHANGED:
                body = AdminReload(status="noop", detail="Model descriptor unchanged", version=None, stage=None)
            case Outcome.RELOADED:
                target = router.current(name)
                body = AdminReload(
                    status="reloaded", detail="Model reloaded successfully", version=operation.to_version,
                    stage=router.stage(name) or (target.variant if target else STAGE),
                )  # fmt: skip
        return answer(body, operation=operation)

    return api


def models_reload_router(router: RequestRouter, admin: Admin) -> APIRouter:
    """Build `POST /models/reload`."""
    api = APIRouter(tags=["models"], route_class=admin_route())

    @api.post(
        MODELS_RELOAD, summary="Look for a new version of a family now", response_model=ModelsReload,
        responses={202: {"model": Accepted}, 401: {}, 403: {}, 404: {}, 409: {}, 500: {}, 503: {}},
    )  # fmt: skip
    async def models_reload(
        actor: Annotated[str, Depends(admin.guard.caller_with(Scope.RELOAD))],
        wait_s: Annotated[float, Depends(admin.waiting())],
        family: FamilyQuery = "",
        force: ForceQuery = False,
        strategy: StrategyQuery = None,
    ) -> Response:
        name = family_named(router, family)
        operation = await reload_family(
            router, admin, name, force=force, strategy=strategy, actor=actor, route=MODELS_RELOAD, wait_s=wait_s
        )
        if operation.outcome is Outcome.RUNNING:
            return accepted(operation)
        if operation.outcome is Outcome.FAILED:
            stays = f"{operation.from_version} stays" if operation.from_version else "there is no model yet"
            detail = f"version {operation.to_version} was not taken up, {stays}: {operation.detail}"
            return answer({"detail": detail}, status=500, operation=operation)
        return answer(
            ModelsReload(status=operation.outcome.value, model_version=operation.to_version), operation=operation
        )

    return api


def _admin_reload_refused(error: Exception) -> Response:
    if isinstance(error, UnauthenticatedError | ForbiddenError):
        return answer({"detail": "Forbidden"}, status=403)
    if isinstance(error, UnavailableError | StoreError):
        response = answer({"detail": "Model manager unavailable"}, status=503)  # the log says why
        if isinstance(error, UnavailableError):
            response.headers["retry-after"] = str(error.retry_after_s)
        return response
    if isinstance(error, _AS_ELSEWHERE):
        return refused(error)
    return answer({"detail": f"Reload failed: {said(error)}"}, status=500)
