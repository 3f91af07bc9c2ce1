"""How versions would have answered: `GET /admin/rollouts/{family}/shadow`, and `POST /admin/replay`.

Both tell of differences in the same words. The one is of the copies that a version on trial got beside live traffic,
the other of recorded requests, which a version is run on before it gets any.
"""

from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from serve_app.domain.access import Scope
from serve_app.domain.diff_report import ShadowDiff
from serve_app.domain.errors import ServeAppError
from serve_app.domain.recording import ReplayReport
from serve_app.ingress.admin import ROLLOUTS, Admin, admin_route, answer, family_named
from serve_app.usecases.route_request import RequestRouter

REPLAY: Final = "/admin/replay"
log = structlog.get_logger(__name__)


class AskedReplay(BaseModel):
    """Body of `POST /admin/replay`: what is run, and on how many of the newest requests; default: on all."""

    model_config = ConfigDict(extra="forbid")

    family: Annotated[str, Field(max_length=63)] = ""
    version: Annotated[str, Field(min_length=1, max_length=128)]
    limit: Annotated[int | None, Field(ge=1, le=10_000_000)] = None


def shadow_router(router: RequestRouter, admin: Admin) -> APIRouter:
    """Build the routes."""
    api = APIRouter(tags=["rollouts"], route_class=admin_route())
    reader = Depends(admin.guard.caller_with(Scope.READ))
    operator = admin.guard.caller_with(Scope.ROLLOUT)

    @api.get(
        ROLLOUTS + "/{family}/shadow", summary="How the answers of a shadow differ from the live ones",
        response_model=ShadowDiff, responses={401: {}, 403: {}, 404: {}, 503: {}}, dependencies=[reader],
    )  # fmt: skip
    async def shadow(family: Annotated[str, Path(max_length=63)]) -> Response:
        told = await admin.plane.shadow(family_named(router, family))
        return answer(told.model_dump(mode="json"))

    @api.post(
        REPLAY, summary="Run a version on recorded requests, beside serving", response_model=ReplayReport,
        responses={401: {}, 403: {}, 404: {}, 409: {}, 422: {}, 503: {}},
    )  # fmt: skip
    async def replay(actor: Annotated[str, Depends(operator)], asked: AskedReplay) -> Response:
        family = family_named(router, asked.family)
        try:
            report = await admin.plane.replay(family, version=asked.version, limit=asked.limit, actor=actor)
        except ServeAppError as error:
            log.warning("replay refused", family=family, actor=actor, version=asked.version, reason=str(error))
            raise
        return answer(report.model_dump(mode="json"))

    return api
