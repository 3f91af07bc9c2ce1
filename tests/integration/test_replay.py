"""Versions that are run on recorded requests, and beside live ones, on a real server."""

import re
import time
from typing import Any

import pytest
from sklearn.datasets import load_iris

from serve_app.domain.diff_report import ShadowDiff
from serve_app.domain.recording import ReplayReport
from tests.bad_bundles import Kind, write_iris
from tests.integration import iris
from tests.integration.conftest import Server
from tests.integration.instance import await_that
from tests.recorded import write_other_iris
from tests.traffic import quantile

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

N = 150


def stands_on(server: Server, version: str) -> None:
    write_iris(server.models / "iris", version)
    told = iris.reload(server, version, strategy="immediate")
    assert told["success"] is True, told


def ask_all(server: Server) -> None:
    """Ask for each of iris's flowers, one after the other."""
    for row in load_iris().data.tolist():
        assert server.predict("iris", [row]).status_code == 200


def recorded(server: Server) -> int:
    """Return how many requests of iris have been recorded."""
    page = server.http.get("/metrics").text
    found = re.findall(r'^serve_app_recorded_requests_total{.*outcome="kept".*} ([0-9.e+]+)$', page, re.MULTILINE)
    return int(sum(map(float, found)))


def replay(server: Server, version: str, **wish: Any) -> ReplayReport:
    body = {"family": "iris", "version": version, "limit": N, **wish}
    told = server.http.post("/admin/replay", json=body, headers=server.admin, timeout=300)
    assert told.status_code == 200, told.text
    return ReplayReport.model_validate_json(told.content)


def test_a_version_is_run_on_what_was_asked_before_it_gets_any_traffic(server: Server) -> None:
    stands_on(server, "replayed-1")
    before = recorded(server)
    ask_all(server)
    await_that(lambda: recorded(server) >= before + N, timeout_s=30)
    write_iris(server.models / "iris", "equal-to-replayed-1")
    same = replay(server, "equal-to-replayed-1")
    assert (same.record.requests, same.record.answered_by, same.replayed) == (N, {"replayed-1": N}, N)
    assert same.record.from_s is not None
    assert same.record.to_s is not None
    assert time.time() - 300 < same.record.from_s < same.record.to_s <= time.time()
    assert (same.diff.agreement, same.diff.compared, same.diff.failed, same.failures) == (1.0, N, 0, ())
    assert (same.diff.live.count, same.diff.latency.count) == (N, N)

    write_other_iris(server.models / "iris", "other-than-replayed-1")
    other = replay(server, "other-than-replayed-1")
    assert (other.diff.agreement, other.diff.compared) == (0.0, N)
    assert other.diff.differences.largest is not None
    assert other.diff.differences.largest >= 1
    assert iris.current(server) == "replayed-1"
    assert "other-than-replayed-1" not in iris.health(server)["replicas"][0]["loaded"]


def test_what_cannot_be_replayed_is_told_in_one_sentence(server: Server) -> None:
    write_iris(server.models / "iris", "raising-replay", Kind.RAISING)
    for body, status, said in (
        ({"family": "forecaster", "version": "v1"}, 422, "families.forecaster.record"),
        ({"family": "iris", "version": "none-such"}, 404, "has no version 'none-such'"),
        ({"family": "iris", "version": "raising-replay"}, 422, "this model raises"),
        ({"family": "none", "version": "v1"}, 404, "unknown family 'none'"),
    ):
        told = server.http.post("/admin/replay", json=body, headers=server.admin, timeout=300)
        assert (told.status_code, said in told.json()["detail"]) == (status, True), told.text


def test_serving_does_not_notice_a_replay(server: Server) -> None:
    stands_on(server, "replayed-2")
    write_iris(server.models / "iris", "equal-to-replayed-2")
    before = recorded(server)
    with iris.traffic(server, connections=4, rate=200) as traffic:
        await_that(lambda: recorded(server) > before + 400, timeout_s=60)
        report = replay(server, "equal-to-replayed-2", limit=400)
    assert traffic.failed() == []
    assert {answer.version for answer in traffic.answers} == {"replayed-2"}
    assert report.replayed
    assert quantile(traffic.answers, 0.99) < 1.0


def test_the_shadow_of_a_rollout_tells_how_it_differs_and_still_does_after_the_end(server: Server) -> None:
    stands_on(server, "lit-1")
    write_other_iris(server.models / "iris", "shadow-1")
    plan = {"strategy": "shadow", "shadow_first": {"hold_s": 600, "sample": 100}, "deadline_s": 900}
    body = {"family": "iris", "version": "shadow-1", "plan": plan}
    assert server.http.post("/admin/rollouts", json=body, headers=server.admin).status_code == 202

    def shadow() -> ShadowDiff | None:
        told = server.http.get("/admin/rollouts/iris/shadow", headers=server.admin)
        return ShadowDiff.model_validate_json(told.content) if told.status_code == 200 else None

    def compared() -> int:
        assert server.predict("iris", [[5.1, 3.5, 1.4, 0.2]]).headers["x-model-version"] == "lit-1"
        told = shadow()
        return 0 if told is None else told.diff.compared

    try:
        await_that(lambda: compared() >= 20, timeout_s=120)
    finally:
        server.http.post("/admin/rollouts/iris/abort", headers=server.admin)
    told = shadow()
    assert told is not None
    assert (told.live_version, told.diff.version, told.gateways, told.away) == ("lit-1", "shadow-1", 1, 0)
    assert told.diff.agreement == 0.0
    assert (told.diff.differences.p50, told.diff.worst) == (1.0, ())
    assert told.diff.live.count == told.diff.latency.count - told.diff.failed
