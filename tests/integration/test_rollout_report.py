"""The report of an experiment on a real server: counted by its gateways, analysed by its control plane."""

from collections.abc import Iterator
from xml.etree import ElementTree

import httpx
import pytest

from serve_app.domain.experiment_report import ExperimentReport
from serve_app.domain.rollout_state import Phase
from tests.bad_bundles import write_iris
from tests.integration import iris
from tests.integration.conftest import IRIS_ROW, Server
from tests.integration.instance import await_that

pytestmark = pytest.mark.ray

PATH = "/admin/rollouts/iris/report"
PLAN = {
    "strategy": "ab",
    "steps": [{"weight": 50}],
    "targeting": {"source": "header", "name": "X-Entity-Id"},
    "groups": [{"name": "edge", "entities": ["edge-*"]}],
    "analysis": {"metrics": [{"kind": "error_rate", "max_increase": 0.005}]},
    "deadline_s": 600,
}
N_KEYS = 300


@pytest.fixture(autouse=True)
def nothing_under_way(server: Server) -> Iterator[None]:
    yield
    server.http.post("/admin/rollouts/iris/abort", headers=server.admin)
    await_that(lambda: told(server).is_over, timeout_s=60)


def asked(server: Server, **query: str) -> httpx.Response:
    return server.http.get(PATH, params=query, headers=server.admin)


def told(server: Server) -> ExperimentReport:
    return ExperimentReport.model_validate_json(asked(server).content)


def test_report_counts_what_was_answered_and_stays_when_the_experiment_is_over(server: Server) -> None:
    write_iris(server.models / "iris", "report-a")
    assert iris.reload(server, "report-a", strategy="immediate")["success"] is True
    write_iris(server.models / "iris", "report-b")
    wish = {"family": "iris", "version": "report-b", "plan": PLAN}
    assert server.http.post("/admin/rollouts", json=wish, headers=server.admin).status_code == 202
    await_that(lambda: told(server).phase is Phase.EXPERIMENT, timeout_s=60)
    versions = []
    for i in range(N_KEYS):
        entity = {"X-Entity-Id": f"{'edge' if i % 3 == 0 else 'core'}-{i}"}
        versions.append(server.predict("iris", [IRIS_ROW], **entity).json()["model_version"])
    counted = versions.count("report-a"), versions.count("report-b")
    await_that(lambda: told(server).stable.requests + told(server).canary.requests == N_KEYS, timeout_s=30)

    report = told(server)
    assert (report.stable.requests, report.canary.requests) == counted
    assert (report.exposed_requests, report.exposed_entities) == (counted[1], counted[1])
    assert {group.name: group.n_stable + group.n_canary for group in report.groups} == {"edge": 100, "others": 200}
    assert report.metrics[0].over_time
    assert report.metrics[0].over_time[-1].lower <= 0 <= report.metrics[0].over_time[-1].upper
    assert asked(server, format="markdown").text.startswith("# report-b against report-a: iris\n")
    ElementTree.fromstring(asked(server, format="svg").text)

    server.http.post("/admin/rollouts/iris/abort", params={"reason": "seen enough"}, headers=server.admin)
    await_that(lambda: told(server).is_over, timeout_s=60)
    ended = told(server)
    assert (ended.stable.requests, ended.canary.requests) == counted
    assert "seen enough" in [move.reason for move in ended.moves]
    assert ended.metrics[0].over_time[: len(report.metrics[0].over_time)] == report.metrics[0].over_time
