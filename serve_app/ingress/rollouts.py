"""`/admin/rollouts`: how rollouts stand, starting one, an operator's commands, and the verdict for other controllers.

The verdict is told in three forms. `value` is for Argo Rollouts' `web` metric: always 200, with `verdict` and `value`
to select. `confirm` and `rollback` are for Flagger's webhooks of these kinds, which read the status alone: 200 is yes,
anything else is no.
"""

from enum import StrEnum
from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from serve_app.domain.access import Scope
from serve_app.domain.errors import ServeAppError
from serve_app.domain.rollout import Command
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutReport
from serve_app.domain.rollout_state import NoRolloutError
from serve_app.domain.rollout_verdict import RolloutVerdict, verdict_of
from serve_app.ingress.admin import ROLLOUTS, Admin, admin_route, answer, family_named
from serve_app.ingress.rollout_report import add_report
from serve_app.usecases.route_request import RequestRouter

NOT_YET: Final = 409
log = structlog.get_logger(__name__)


class CommandName(StrEnum):
    """Commands as the routes name them."""

    PROMOTE = "promote"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    SKIP = "skip"
    RETRY = "retry"

    @property
    def command(self) -> Command:
        """What it stands for."""
        return Command.SKIP_STEP if self is CommandName.SKIP else Command(self.value)


class VerdictForm(StrEnum):
    """Who asks: Argo's `web` metric, or Flagger's webhooks `confirm-…` and `rollback`."""

    VALUE = "value"
    CONFIRM = "confirm"
    ROLLBACK = "rollback"


class StartRollout(BaseModel):
    """Body of `POST /admin/rollouts`. What is left out: the default family, what its source calls current, its plan."""

    model_config = ConfigDict(extra="forbid")

    family: Annotated[str, Field(max_length=63)] = ""
    version: Annotated[str | None, Field(min_length=1, max_length=128)] = None
    plan: RolloutPlan | None = None
    force: bool = False
    reason: Annotated[str, Field(max_length=500)] = ""


class Rollouts(BaseModel):
    """Body of `GET /admin/rollouts`."""

    rollouts: list[RolloutReport]
    count: int


FamilyPath = Annotated[str, Path(max_length=63)]


def rollouts_router(router: RequestRouter, admin: Admin) -> APIRouter:
    """Build the routes."""
    api = APIRouter(tags=["rollouts"], route_class=admin_route())
    _add_readers(api, router, admin)
    add_report(api, router, admin)
    _add_commands(api, router, admin)
    return api


def _add_readers(api: APIRouter, router: RequestRouter, admin: Admin) -> None:
    reader = Depends(admin.guard.caller_with(Scope.READ))

    @api.get(
        ROLLOUTS, summary="The last rollout of each family", response_model=Rollouts,
        responses={401: {}, 403: {}, 503: {}}, dependencies=[reader],
    )  # fmt: skip
    async def rollouts() -> Response:
        reports = await admin.plane.rollouts()
        told = [report.model_dump(mode="json") for report in reports]
        return answer({"rollouts": told, "count": len(told)})

    @api.get(
        ROLLOUTS + "/{family}", summary="State, split, analysis and history of a rollout",
        response_model=RolloutReport, responses={401: {}, 403: {}, 404: {}, 503: {}}, dependencies=[reader],
    )  # fmt: skip
    async def rollout(family: FamilyPath) -> Response:
        return _told(await _report(router, admin, family))

    async def verdict(
        family: FamilyPath,
        form: Annotated[VerdictForm, Query(description="who asks: decides the status")] = VerdictForm.VALUE,
    ) -> Response:
        found = verdict_of(await _report(router, admin, family))
        is_yes = {
            VerdictForm.VALUE: True,
            VerdictForm.CONFIRM: found.is_pass,
            VerdictForm.ROLLBACK: found.is_fail,
        }[form]
        return answer(found.model_dump(mode="json"), status=200 if is_yes else NOT_YET)

    for method in ("GET", "POST"):  # one by one: an operation of the documentation has one method
        api.add_api_route(
            ROLLOUTS + "/{family}/verdict", verdict, methods=[method], summary="The verdict, for other controllers",
            operation_id=f"verdict_{method.lower()}", response_model=RolloutVerdict, dependencies=[reader],
            responses={401: {}, 403: {}, 404: {}, 409: {}, 503: {}},
        )  # fmt: skip


def _add_commands(api: APIRouter, router: RequestRouter, admin: Admin) -> None:
    operator = admin.guard.caller_with(Scope.ROLLOUT)

    @api.post(
        ROLLOUTS, summary="Start a rollout", response_model=RolloutReport, status_code=202,
        responses={401: {}, 403: {}, 404: {}, 409: {}, 422: {}, 500: {}, 503: {}},
    )  # fmt: skip
    async def start(actor: Annotated[str, Depends(operator)], wish: StartRollout) -> Response:
        family = family_named(router, wish.family)
        try:
            report = await admin.plane.start_rollout(
                family, version=wish.version, plan=wish.plan, force=wish.force, actor=actor,
                reason=wish.reason or f"POST {ROLLOUTS}",
            )  # fmt: skip
        except ServeAppError as error:
            log.warning("rollout refused", family=family, actor=actor, version=wish.version, reason=str(error))
            raise
        response = _told(report, status=202)
        response.headers["location"] = f"{ROLLOUTS}/{family}"
        return response

    @api.post(
        ROLLOUTS + "/{family}/{command}", summary="promote, pause, resume, abort, skip or retry",
        response_model=RolloutReport, responses={401: {}, 403: {}, 404: {}, 409: {}, 422: {}, 503: {}},
    )  # fmt: skip
    async def command(
        actor: Annotated[str, Depends(operator)],
        family: FamilyPath,
        command: CommandName,
        reason: Annotated[str, Query(max_length=500, description="why, for the audit log")] = "",
    ) -> Response:
        name = family_named(router, family)
        try:
            report = await admin.plane.command_rollout(name, command.command, actor=actor, reason=reason)
        except ServeAppError as error:
            log.warning("rollout command refused", family=name, actor=actor, command=command.value, reason=str(error))
            raise
        return _told(report)


async def _report(router: RequestRouter, admin: Admin, family: str) -> RolloutReport:
    """Return what is told of a family's rollout.

    Raises:
        UnknownFamilyError: No such family.
        NoRolloutError: It has had none.
    """
    name = family_named(router, family)
    for report in await admin.plane.rollouts():
        if report.family == name:
            return report
    raise NoRolloutError(name)


def _told(report: RolloutReport, *, status: int = 200) -> Response:
    return answer(report.model_dump(mode="json"), status=status)
