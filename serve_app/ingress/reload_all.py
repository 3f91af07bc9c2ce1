"""`POST /reload`: reload every family at once and tell how each of them fared."""

import asyncio
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from serve_app.domain.access import Scope
from serve_app.domain.errors import PinnedError, ReloadDisabledError, ServeAppError, StoreError, UnavailableError
from serve_app.domain.reload import Operation, Outcome
from serve_app.ingress.admin import (
    OPERATIONS,
    Admin,
    FamilyQuery,
    ForceQuery,
    Strategy,
    StrategyQuery,
    admin_route,
    answer,
    family_named,
    reload_family,
    said,
)
from serve_app.usecases.route_request import NO_MODEL_RETRY_AFTER_S, RequestRouter

ROUTE = "/reload"
_STATUS: Mapping[str, int] = {
    "failed": 500,
    "unavailable": 503,
    "running": 202,
    "reloaded": 200,
    "unchanged": 200,
    "pinned": 409,
    "disabled": 409,
}
"""How a family can fare, the most telling first, and the HTTP status where nothing more telling happened.

A family whose pin or mode keeps it as it is has failed in nothing: it decides only where all are like that."""


class FamilyReload(BaseModel):
    """How one family fared."""

    status: str
    model_version: str | None = None
    detail: str = ""
    operation_id: str | None = None
    operation_url: str | None = None


class ReloadAll(BaseModel):
    """Body of the answer; `model_version` is that of the default family, where it was asked for."""

    status: str
    detail: str
    model_version: str | None = None
    families: dict[str, FamilyReload]


def reload_all_router(router: RequestRouter, admin: Admin) -> APIRouter:
    """Build the route."""
    api = APIRouter(tags=["models"], route_class=admin_route())

    @api.post(
        ROUTE, summary="Reload all families, or one", response_model=ReloadAll,
        responses={202: {"model": ReloadAll}, 401: {}, 403: {}, 409: {}, 500: {"model": ReloadAll}, 503: {}},
    )  # fmt: skip
    async def reload_all(
        actor: Annotated[str, Depends(admin.guard.caller_with(Scope.RELOAD))],
        wait_s: Annotated[float, Depends(admin.waiting())],
        family: FamilyQuery = "",
        force: ForceQuery = False,
        strategy: StrategyQuery = None,
    ) -> Response:
        names = [family_named(router, family)] if family else list(router.families)
        fared = await asyncio.gather(
            *(
                _reload(router, admin, name, force=force, strategy=strategy, actor=actor, wait_s=wait_s)
                for name in names
            )
        )
        body = _summary(dict(zip(names, fared, strict=True)), router.default_family)
        response = answer(body, status=_STATUS[body.status])
        if body.status == "unavailable":
            response.headers["retry-after"] = str(NO_MODEL_RETRY_AFTER_S)
        return response

    return api


async def _reload(
    router: RequestRouter, admin: Admin, family: str, *, force: bool, strategy: Strategy, actor: str, wait_s: float
) -> FamilyReload:
    target = router.current(family)
    served = target.version if target else None
    try:
        operation = await reload_family(
            router, admin, family, force=force, strategy=strategy, actor=actor, route=ROUTE, wait_s=wait_s
        )
    except ServeAppError as error:
        return FamilyReload(status=_status_of(error), model_version=served, detail=said(error))
    return _family_body(operation)


def _status_of(error: ServeAppError) -> str:
    if isinstance(error, PinnedError):
        return "pinned"
    if isinstance(error, ReloadDisabledError):
        return "disabled"
    return "unavailable" if isinstance(error, UnavailableError | StoreError) else "failed"


def _family_body(operation: Operation) -> FamilyReload:
    fared = FamilyReload(status=operation.outcome.value, model_version=operation.to_version, detail=operation.detail)
    if operation.outcome is Outcome.FAILED:
        stays = f"{operation.from_version} stays" if operation.from_version else "there is no model yet"
        detail = f"{operation.to_version}: {operation.detail}; {stays}"
        fared = fared.model_copy(update={"model_version": operation.from_version, "detail": detail})
    elif operation.outcome is Outcome.RUNNING:
        fared = fared.model_copy(update={"model_version": operation.from_version})
    if operation.operation_id:
        url = f"{OPERATIONS}/{operation.operation_id}"
        fared = fared.model_copy(update={"operation_id": operation.operation_id, "operation_url": url})
    return fared


def _summary(families: Mapping[str, FamilyReload], default_family: str) -> ReloadAll:
    happened = {fared.status for fared in families.values()}
    status = next(status for status in _STATUS if status in happened)
    detail = "; ".join(f"{name}: {fared.detail or fared.status}" for name, fared in families.items())
    default = families.get(default_family)
    return ReloadAll(
        status=status, detail=detail, model_version=default.model_version if default else None, families=dict(families)
    )
