"""`POST /admin/rollback`, and what has been done: operations and the audit log."""

from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel

from serve_app.domain.access import Scope
from serve_app.domain.errors import ServeAppError
from serve_app.domain.reload import AuditEntry, Operation, Outcome
from serve_app.ingress.admin import (
    OPERATIONS,
    Accepted,
    Admin,
    FamilyQuery,
    accepted,
    admin_route,
    answer,
    family_named,
    log_operation,
)
from serve_app.usecases.route_request import RequestRouter

MAX_AUDIT_ENTRIES: Final = 1000
log = structlog.get_logger(__name__)


class Rollback(BaseModel):
    """Body of `POST /admin/rollback`."""

    status: str
    detail: str
    family: str
    from_version: str | None
    to_version: str | None
    generation: int


class Audit(BaseModel):
    """Body of `GET /admin/audit`, newest first."""

    entries: list[AuditEntry]
    count: int


def operations_router(router: RequestRouter, admin: Admin) -> APIRouter:
    """Build the routes."""
    api = APIRouter(tags=["models"], route_class=admin_route())
    reader = admin.guard.caller_with(Scope.READ)

    @api.post(
        "/admin/rollback", summary="Go back to the last good version, or to another", response_model=Rollback,
        responses={202: {"model": Accepted}, 401: {}, 403: {}, 404: {}, 409: {}, 500: {}, 503: {}},
    )  # fmt: skip
    async def rollback(
        actor: Annotated[str, Depends(admin.guard.caller_with(Scope.RELOAD))],
        wait_s: Annotated[float, Depends(admin.waiting())],
        family: FamilyQuery = "",
        to: Annotated[str | None, Query(min_length=1, max_length=128, description="default: the last good one")] = None,
    ) -> Response:
        name = family_named(router, family)
        try:
            operation = await admin.plane.rollback(name, to=to, actor=actor, wait_s=wait_s)
        except ServeAppError as error:
            log.warning("Manual model rollback refused", family=name, actor=actor, version=to, reason=str(error))
            raise
        log_operation(router, admin, operation, "rollback", actor)
        return _rollback_answer(operation)

    @api.get(
        OPERATIONS + "/{operation_id}", summary="How a reload or rollback stands", response_model=Operation,
        responses={401: {}, 403: {}, 404: {}, 503: {}}, dependencies=[Depends(reader)],
    )  # fmt: skip
    async def operation(operation_id: Annotated[str, Path(max_length=128)]) -> Response:
        found = await admin.plane.operation(operation_id)
        if found is None:
            return answer({"detail": f"no operation {operation_id!r} is known"}, status=404)
        return answer(found.model_dump(mode="json"))

    @api.get(
        "/admin/audit", summary="Who changed what, newest first", response_model=Audit,
        responses={401: {}, 403: {}, 404: {}, 503: {}}, dependencies=[Depends(reader)],
    )  # fmt: skip
    async def audit(
        family: Annotated[str, Query(max_length=63, description="default: all families")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_AUDIT_ENTRIES)] = 100,
    ) -> Response:
        name = family_named(router, family) if family else None
        entries = await admin.plane.audit(family=name, limit=limit)
        return answer({"entries": [entry.model_dump(mode="json") for entry in entries], "count": len(entries)})

    return api


def _rollback_answer(operation: Operation) -> Response:
    if operation.outcome is Outcome.RUNNING:
        return accepted(operation)
    if operation.outcome is Outcome.FAILED:
        detail = f"Rollback failed, {operation.from_version} stays: {operation.detail}"
        return answer({"detail": detail}, status=500, operation=operation)
    is_done = operation.outcome is Outcome.RELOADED
    body = Rollback(
        status="rolled_back" if is_done else operation.outcome.value,
        detail=operation.detail or ("Model rolled back" if is_done else "This version answers already"),
        family=operation.family,
        from_version=operation.from_version,
        to_version=operation.to_version,
        generation=operation.generation,
    )
    return answer(body, operation=operation)
