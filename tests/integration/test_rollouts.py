"""Rollouts on a real server under traffic: what is worse is taken back by itself, what is not is promoted."""

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from serve_app.domain.rollout_state import Phase
from tests.bad_bundles import FLAKY_SHARE, Kind, write_iris
from tests.integration import iris
from tests.integration.conftest import Server
from tests.integration.instance import await_that
from tests.traffic import Answer

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

ENDS_WITHIN_S = 240.0
GONE_WITHIN_S = 0.1
"""After the first answer of the generation that ended the rollout."""
ERRORS = {"kind": "error_rate", "max_increase": 0.005}
LATENCY = {"kind": "latency_quantile", "quantile": 0.5, "max_increase": 0.1}
"""Of the median: beside other work on the machine the slowest answers say little about the model."""


@pytest.fixture(autouse=True)
def nothing_under_way(server: Server) -> Iterator[None]:
    yield
    server.http.post("/admin/rollouts/iris/abort", headers=server.admin)
    await_that(lambda: phase(server) is None or phase(server) in ENDED, timeout_s=60)


ENDED = {Phase.SUCCEEDED.value, Phase.ABORTED.value, Phase.FAILED.value}


def start(server: Server, version: str, *, weight: float, metrics: list[dict[str, Any]], hold_s: float = 0) -> None:
    plan = {
        "strategy": "canary",
        "steps": [{"weight": weight, "hold_s": hold_s}],
        "analysis": {"metrics": metrics},
        "deadline_s": ENDS_WITHIN_S,
    }
    told = server.http.post(
        "/admin/rollouts", json={"family": "iris", "version": version, "plan": plan}, headers=server.admin
    )
    assert told.status_code in (200, 201, 202), told.text


def rollout(server: Server) -> dict[str, Any]:
    told: dict[str, Any] = server.http.get("/admin/rollouts/iris", headers=server.admin).json()
    return told


def phase(server: Server) -> str | None:
    state = rollout(server).get("state")
    return None if state is None else str(state["phase"])


def await_end(server: Server) -> str:
    await_that(lambda: phase(server) in ENDED, timeout_s=ENDS_WITHIN_S + 30)
    return str(phase(server))


def blamed(server: Server) -> set[str]:
    """Return the metrics by which the last analysis ended a rollout; a deadline or an operator ends it by none."""
    return {metric["name"] for metric in rollout(server)["analysis"]["metrics"] if metric["verdict"] == "fail"}


def stands_on(server: Server, version: str, kind: Kind = Kind.GOOD) -> None:
    """Make a version the only one in use."""
    write_iris(server.models / "iris", version, kind)
    told = iris.reload(server, version, strategy="immediate")
    assert told["success"] is True, told


def by(answers: list[Answer], version: str) -> list[Answer]:
    return [answer for answer in answers if answer.version == version]


def assert_gone_at_once(answers: list[Answer], canary: str) -> None:
    """The canary gets no request that was sent a moment after the first answer of the generation that ended it.

    After that answer, not its request: requests wait for those before them on their connection, and go where the routes
    say when it is their turn.
    """
    last = max(answer.generation for answer in answers)
    ended_at_s = min(answer.at_s for answer in answers if answer.generation == last)
    late = [answer for answer in by(answers, canary) if answer.at_s - answer.latency_s > ended_at_s + GONE_WITHIN_S]
    assert late == []


def test_a_canary_that_fails_now_and_then_is_taken_back_by_itself(server: Server) -> None:
    stands_on(server, "kept-1")
    write_iris(server.models / "iris", "flaky-1", Kind.FLAKY)
    with iris.traffic(server, connections=4, rate=200) as traffic:
        start(server, "flaky-1", weight=30, metrics=[ERRORS])
        assert await_end(server) == Phase.ABORTED.value
        assert blamed(server) == {"error_rate"}
        time_after_s = time.monotonic()
        await_that(lambda: time.monotonic() > time_after_s + 2, timeout_s=10)
    canary = by(traffic.answers, "flaky-1")
    assert canary
    assert {answer.version for answer in traffic.failed()} == {"flaky-1"}  # nobody else failed
    assert len(traffic.failed()) < 4 * FLAKY_SHARE * len(canary) + 10
    assert_gone_at_once(traffic.answers, "flaky-1")
    assert iris.current(server) == "kept-1"


def test_a_canary_that_is_a_third_slower_is_taken_back_by_itself(server: Server) -> None:
    stands_on(server, "lagging-1", Kind.LAGGING)
    write_iris(server.models / "iris", "lagging-more-1", Kind.LAGGING_MORE)
    with iris.traffic(server, connections=2, rate=40) as traffic:
        start(server, "lagging-more-1", weight=50, metrics=[ERRORS, LATENCY])
        assert await_end(server) == Phase.ABORTED.value
        assert blamed(server) == {"latency_p50"}
    assert by(traffic.answers, "lagging-more-1")
    assert traffic.failed() == []
    assert iris.current(server) == "lagging-1"


def test_an_equal_canary_is_promoted_and_no_request_fails(server: Server) -> None:
    stands_on(server, "kept-2")
    write_iris(server.models / "iris", "equal-2")
    with iris.traffic(server, connections=8, rate=800) as traffic:
        start(server, "equal-2", weight=50, metrics=[ERRORS])
        assert await_end(server) == Phase.SUCCEEDED.value
    assert traffic.failed() == []
    assert iris.current(server) == "equal-2"
    assert traffic.answers[-1].version == "equal-2"


@pytest.mark.parametrize("weight", [1, 5, 50])
def test_the_split_is_the_one_that_was_asked_for_and_a_key_never_flips(server: Server, weight: int) -> None:
    stands_on(server, f"kept-{weight}-3")
    write_iris(server.models / "iris", f"split-{weight}-3")
    plan = {
        "strategy": "ab", "steps": [{"weight": weight}], "analysis": None, "deadline_s": 600,
        "targeting": {"source": "header", "name": "X-Entity-Id"},
    }  # fmt: skip
    body = {"family": "iris", "version": f"split-{weight}-3", "plan": plan}
    assert server.http.post("/admin/rollouts", json=body, headers=server.admin).status_code in (200, 201, 202)
    await_that(lambda: phase(server) == Phase.EXPERIMENT.value, timeout_s=60)
    n = 3000
    chosen = [answered_by(server, f"key-{i}") for i in range(n)]
    assert [answered_by(server, f"key-{i}") for i in range(200)] == chosen[:200]
    share, expected = chosen.count(f"split-{weight}-3") / n, weight / 100
    assert abs(share - expected) < 4.5 * (expected * (1 - expected) / n) ** 0.5  # 1 of 100,000 runs


def answered_by(server: Server, key: str) -> str:
    told = server.http.post("/predict/iris", content=iris.BODY, headers={"X-Entity-Id": key})
    assert told.status_code == 200, told.text
    return told.headers["x-model-version"]


def test_generations_grow_through_a_rollout_and_each_is_answered_by_its_split(server: Server) -> None:
    stands_on(server, "kept-4")
    write_iris(server.models / "iris", "equal-4")
    with iris.traffic(server, connections=4, rate=300) as traffic:
        plan = {
            "strategy": "canary", "analysis": None, "deadline_s": 120,
            "steps": [{"weight": 10, "hold_s": 2}, {"weight": 60, "hold_s": 2}],
        }  # fmt: skip
        body = {"family": "iris", "version": "equal-4", "plan": plan}
        server.http.post("/admin/rollouts", json=body, headers=server.admin)
        assert await_end(server) == Phase.SUCCEEDED.value
    assert traffic.failed() == []
    assert iris.never_goes_back(traffic.answers)
    shares = []
    for generation in sorted({answer.generation for answer in traffic.answers}):
        found = [answer for answer in traffic.answers if answer.generation == generation]
        shares.append(len(by(found, "equal-4")) / len(found))
    assert all(later >= earlier - 0.05 for earlier, later in pairwise(shares)), shares
    assert shares[0] == 0
    assert shares[-1] == 1
