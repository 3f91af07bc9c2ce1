"""`GET /admin/rollouts/{family}/report`: what a rollout or an experiment has found, as JSON, as a page, as a plot."""

from enum import StrEnum
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Path, Query, Response

from serve_app.domain.access import Scope
from serve_app.domain.experiment_report import ExperimentReport
from serve_app.ingress.admin import ROLLOUTS, Admin, answer, family_named
from serve_app.usecases.draw_report import plot_of
from serve_app.usecases.route_request import RequestRouter
from serve_app.usecases.write_report import page_of

SHUT: Final = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""A plot that is opened by itself may look as it does, and nothing else."""


class ReportForm(StrEnum):
    """How a report is told."""

    JSON = "json"
    MARKDOWN = "markdown"
    SVG = "svg"

    @property
    def media_type(self) -> str:
        """The type of the answer."""
        return _MEDIA_TYPES[self]


_MEDIA_TYPES: Final = {
    ReportForm.JSON: "application/json",
    ReportForm.MARKDOWN: "text/markdown",
    ReportForm.SVG: "image/svg+xml",
}


def add_report(api: APIRouter, router: RequestRouter, admin: Admin) -> None:
    """Add the route."""

    @api.get(
        ROLLOUTS + "/{family}/report", summary="Effects over time, exposure, segments, moves: JSON, Markdown or SVG",
        response_model=ExperimentReport, dependencies=[Depends(admin.guard.caller_with(Scope.READ))],
        responses={
            200: {"content": {form.media_type: {} for form in ReportForm}}, 401: {}, 403: {}, 404: {}, 422: {}, 503: {},
        },
    )  # fmt: skip
    async def report(
        family: Annotated[str, Path(max_length=63)],
        form: Annotated[
            ReportForm | None, Query(alias="format", description="default: what the header Accept asks for, else json")
        ] = None,
        accept: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Response:
        name = family_named(router, family)
        response = _told(await admin.plane.rollout_report(name), form or accepted_form(accept))
        response.headers["vary"] = "accept"
        return response


def accepted_form(accept: str) -> ReportForm:
    """Return what a header asks for most; JSON where it asks for nothing that there is."""
    wanted = []
    for place, part in enumerate(accept.split(",")):
        media_type, *parameters = (word.strip().lower() for word in part.split(";"))
        form = next((form for form in ReportForm if form.media_type == media_type), None)
        if form is not None and (weight := _weight(parameters)) > 0:
            wanted.append((-weight, place, form))
    return min(wanted)[2] if wanted else ReportForm.JSON


def _weight(parameters: list[str]) -> float:
    told = next((one.removeprefix("q=") for one in parameters if one.startswith("q=")), "1")
    try:
        return float(told)
    except ValueError:
        return 0.0


def _told(report: ExperimentReport, form: ReportForm) -> Response:
    match form:
        case ReportForm.JSON:
            return answer(report.model_dump(mode="json"))
        case ReportForm.MARKDOWN:
            page = page_of(report, plot=f"{ROLLOUTS}/{report.family}/report?format={ReportForm.SVG.value}")
            return Response(page, media_type=form.media_type)
        case ReportForm.SVG:
            headers = {"content-security-policy": SHUT, "x-content-type-options": "nosniff"}
            return Response(plot_of(report), media_type=form.media_type, headers=headers)
