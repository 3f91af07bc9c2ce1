"""`/admin/rollouts/{family}/report`: in which form it is told, to whom, and what is said instead."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.errors import UnavailableError
from serve_app.domain.experiment_report import ExperimentReport
from serve_app.ingress.rollout_report import ReportForm, accepted_form
from tests.unit.ingress.test_rollouts import OPERATOR, READER, Administered, started

PATH = "/admin/rollouts/forecaster/report"


async def test_report_is_json_that_can_be_read_back() -> None:
    answer = await (await started()).get(PATH)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    told = ExperimentReport.model_validate_json(answer.content)
    assert (told.family, told.canary.version.version, told.reason) == ("forecaster", "v2", "POST /admin/rollouts")
    assert [move.to for move in told.moves] == ["step"]


@pytest.mark.parametrize(
    ("query", "accept", "media_type"),
    [
        ("", "text/markdown", "text/markdown; charset=utf-8"),
        ("?format=markdown", "*/*", "text/markdown; charset=utf-8"),
        ("?format=svg", "application/json", "image/svg+xml"),
        ("?format=json", "text/markdown", "application/json"),
        ("", "text/html, */*", "application/json"),
        ("", "", "application/json"),
    ],
)
async def test_format_goes_before_what_is_accepted(query: str, accept: str, media_type: str) -> None:
    answer = await (await started()).get(PATH + query, headers={**OPERATOR, "accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert answer.headers["vary"] == "accept"


async def test_page_names_its_plot_and_plot_is_shut() -> None:
    served = await started()
    page = (await served.get(PATH + "?format=markdown")).text
    assert page.startswith("# v2 against v1: forecaster")
    plot = await served.get(PATH + "?format=svg")
    assert "default-src 'none'" in plot.headers["content-security-policy"]
    assert ElementTree.fromstring(plot.text).tag.endswith("svg")


@pytest.mark.parametrize("asked", ["png", "JSON", "", "json,svg", "%00", "../etc", "9" * 5_000])
async def test_unknown_format_is_refused_in_one_sentence(asked: str) -> None:
    answer = await (await started()).get(f"{PATH}?format={asked}")
    assert answer.status_code == 422
    assert answer.json()["detail"] == "format: Input should be 'json', 'markdown' or 'svg'"


@pytest.mark.parametrize("family", ["iris", "none", "%2e%2e"])
async def test_family_without_a_rollout_has_no_report(family: str) -> None:
    assert (await (await started()).get(f"/admin/rollouts/{family}/report")).status_code == 404


async def test_report_of_what_has_ended_stays() -> None:
    served = await started()
    await served.post("/admin/rollouts/forecaster/abort?reason=enough")
    told = ExperimentReport.model_validate_json((await served.get(PATH)).content)
    assert (told.moves[-1].reason, told.phase) == ("enough", "aborting")


async def test_readers_may_read_it_and_nobody_else() -> None:
    served = await started()
    assert (await served.get(PATH, headers=READER)).status_code == 200
    assert (await served.get(PATH, headers={})).status_code == 401


async def test_control_plane_that_cannot_be_reached_is_503() -> None:
    served: Administered = await started()
    served.plane.error = UnavailableError("gone")
    assert (await served.get(PATH)).status_code == 503


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("text/markdown;q=0.5, image/svg+xml", ReportForm.SVG),
        ("text/markdown;q=0.5, image/svg+xml;q=0.4", ReportForm.MARKDOWN),
        ("text/markdown;q=0, image/svg+xml;q=x", ReportForm.JSON),
        ("TEXT/Markdown ; charset=utf-8", ReportForm.MARKDOWN),
        ("application/json, text/markdown", ReportForm.JSON),
    ],
)
def test_what_is_asked_for_most_is_told(accept: str, form: ReportForm) -> None:
    assert accepted_form(accept) is form


@given(st.text(max_size=200))
def test_any_header_has_a_form(accept: str) -> None:
    assert accepted_form(accept) in ReportForm
