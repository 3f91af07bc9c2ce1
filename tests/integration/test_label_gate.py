"""Labels decide, late and at whatever gateway they come; and plans that a deploy changes while requests go on."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serve_app.adapters.bundle_writer import set_current
from serve_app.domain.rollout_state import Phase
from tests.bad_bundles import write_iris
from tests.integration import iris
from tests.integration.conftest import Server
from tests.integration.instance import await_that, running, shipped_config

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

N_GATEWAYS = 2
ENDS_WITHIN_S = 240.0
ENDED = {Phase.SUCCEEDED.value, Phase.ABORTED.value, Phase.FAILED.value}
ERRORS = {"kind": "error_rate", "max_increase": 0.1}
LOSS = {"kind": "loss", "loss": "zero_one", "max_increase": 1.0, "min_samples": 100}
RIGHT, WRONG = 0, 1
USUALLY_WRONG = 0.1
"""Share of wrong answers of every version, unless a test says otherwise; without any, a mean has no spread."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two gateways that take labels of iris, without a plan."""
    directory = tmp_path_factory.mktemp("labels")
    document = shipped_config("bench.yaml")
    args = document["applications"][0]["args"]
    args["gateway"] = {"num_replicas": N_GATEWAYS, "num_cpus": 0.1}
    family = args["families"].pop("iris")
    family |= {"pools": [{"num_cpus": 0.1}], "reload": {"interval_s": 1.0}, "labels": {"remember": 0}}
    args["families"], args["default_family"] = {"iris": family}, "iris"
    document["applications"][0].pop("deployments", None)
    write_iris(directory / "state" / "models" / "iris", "first", current=True)
    with running(directory, document) as (instance, http):
        yield Server(instance, http)


@pytest.fixture(autouse=True)
def nothing_under_way(server: Server) -> Iterator[None]:
    yield
    server.http.post("/admin/rollouts/iris/abort", headers=server.admin)
    await_that(lambda: phase(server) is None or phase(server) in ENDED, timeout_s=60)


def stands_on(server: Server, version: str) -> None:
    """Make a version the only one in use."""
    write_iris(server.models / "iris", version)
    told = iris.reload(server, version, strategy="immediate")
    assert told["success"] is True, told


def start(server: Server, version: str, **plan: Any) -> None:
    write_iris(server.models / "iris", version)
    document = {"strategy": "canary", "steps": [{"weight": 50}], "deadline_s": ENDS_WITHIN_S, **plan}
    body = {"family": "iris", "version": version, "plan": document}
    told = server.http.post("/admin/rollouts", json=body, headers=server.admin)
    assert told.status_code == 202, told.text


def rollout(server: Server) -> dict[str, Any]:
    told: dict[str, Any] = server.http.get("/admin/rollouts/iris", headers=server.admin).json()
    return told


def phase(server: Server) -> str | None:
    state = rollout(server).get("state")
    return None if state is None else str(state["phase"])


def metric(server: Server, name: str) -> dict[str, Any]:
    """What the last analysis says of one metric; empty before the first one."""
    analysis = rollout(server)["analysis"] or {"metrics": []}
    return next((dict(one) for one in analysis["metrics"] if one["name"] == name), {})


def predicted(server: Server, n: int) -> list[tuple[str, str]]:
    """Ask for so many predictions, and return the id and the version of each; none may fail."""

    def one(_: int) -> tuple[str, str]:
        told = server.http.post("/predict/iris", content=iris.BODY)
        assert told.status_code == 200, told.text
        return told.headers["x-prediction-id"], told.headers["x-model-version"]

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(n)))


def labelled(server: Server, predictions: Sequence[tuple[str, str]], wrong: dict[str, float]) -> dict[str, int]:
    """Say how right each prediction was, `wrong` being the share of those of a version that were not."""
    dice = random.Random(1)
    counts: dict[str, int] = {}
    for some in (predictions[i : i + 500] for i in range(0, len(predictions), 500)):
        labels = [
            {"prediction_id": one, "label": WRONG if dice.random() < wrong.get(version, USUALLY_WRONG) else RIGHT}
            for one, version in some
        ]
        told = server.http.post("/feedback", json=labels)
        assert told.status_code == 200, told.text
        for fate in ("joined", "unknown", "expired", "duplicate", "refused"):
            counts[fate] = counts.get(fate, 0) + told.json()[fate]
    return counts


def prefixes(predictions: Sequence[tuple[str, str]]) -> set[str]:
    """Name the processes that have predicted."""
    return {one.partition("-")[0] for one, _ in predictions}


def moves(server: Server) -> list[tuple[str, str]]:
    return [(move["to"], move["reason"]) for move in rollout(server)["state"]["history"]]


def test_canary_that_labels_alone_call_worse_is_aborted_though_a_gateway_that_predicted_is_gone(server: Server) -> None:
    stands_on(server, "kept-1")
    start(server, "worse-1", analysis={"metrics": [ERRORS, LOSS]})
    await_that(lambda: phase(server) == Phase.STEP.value, timeout_s=60)
    found: list[tuple[str, str]] = []

    def is_fine_without_labels() -> bool:
        found.extend(predicted(server, 200))
        return metric(server, "error_rate").get("verdict") == "pass"

    await_that(is_fine_without_labels, timeout_s=60)
    assert len(prefixes(found)) == N_GATEWAYS
    assert rollout(server)["analysis"]["verdict"] == "inconclusive"
    assert "no labels of both variants yet" in metric(server, "loss_zero_one")["reason"]
    assert phase(server) == Phase.STEP.value

    gateways = iris.processes_of(server, iris.GATEWAY)
    gateways[0].kill()
    await_that(
        lambda: len({one.pid for one in iris.processes_of(server, iris.GATEWAY)} - {gateways[0].pid}) == N_GATEWAYS,
        timeout_s=90,
    )
    counts = labelled(server, found, {"worse-1": 0.6})
    assert counts["joined"] >= len(found) - 200, counts  # of half a second at the kill
    await_that(lambda: phase(server) == Phase.ABORTED.value, timeout_s=60)
    assert "loss_zero_one" in next(reason for to, reason in moves(server) if to == Phase.ABORTING)
    assert metric(server, "error_rate")["verdict"] == "pass"
    iris.await_version(server, "kept-1")
    assert {version for _, version in predicted(server, 100)} == {"kept-1"}


def test_labels_that_turn_bad_after_the_promotion_bring_the_former_version_back(server: Server) -> None:
    stands_on(server, "kept-2")
    start(server, "turning-2", analysis={"metrics": [LOSS]}, watch_s=ENDS_WITHIN_S, holdback=20)
    await_that(lambda: phase(server) == Phase.STEP.value, timeout_s=60)
    waiting: list[tuple[str, str]] = []

    def go_on(until: Phase, wrong: dict[str, float]) -> bool:
        """Ask, and label what was asked the time before: labels are late."""
        waiting.extend(predicted(server, 200))
        late, waiting[:] = waiting[:-200], waiting[-200:]
        if late:
            assert labelled(server, late, wrong)["joined"] == len(late)
        return phase(server) == until.value

    await_that(lambda: go_on(Phase.WATCHING, {}), timeout_s=ENDS_WITHIN_S)
    iris.await_version(server, "turning-2")  # gateways flip together, a moment later
    assert {version for _, version in predicted(server, 100)} == {"turning-2", "kept-2"}
    assert rollout(server)["weight"] == 80

    await_that(lambda: go_on(Phase.ABORTED, {"turning-2": 0.6}), timeout_s=ENDS_WITHIN_S)
    iris.await_version(server, "kept-2")
    assert {version for _, version in predicted(server, 100)} == {"kept-2"}
    assert "fail after the promotion: loss_zero_one" in next(why for to, why in moves(server) if to == Phase.ABORTING)
    audit = server.http.get("/admin/audit", params={"family": "iris", "limit": 20}, headers=server.admin).json()
    assert any("fail after the promotion" in entry["reason"] for entry in audit["entries"])


def plan(weight: float) -> dict[str, Any]:
    return {"strategy": "canary", "steps": [{"weight": weight, "hold_s": 200}], "analysis": None, "deadline_s": 600}


def deploy(server: Server, **said: Any) -> None:
    server.deploy({"name": "reconciler", "user_config": {"rollouts": {"iris": said}}})


def test_plan_of_a_deploy_is_what_the_next_rollout_goes_by(server: Server) -> None:
    stands_on(server, "kept-3")
    titles = (iris.MODEL_REPLICA, iris.GATEWAY, iris.RECONCILER)
    before = {one.pid for title in titles for one in iris.processes_of(server, title)}
    try:
        with iris.traffic(server, rate=150) as traffic:
            deploy(server, plan=plan(20))
            new_version(server, "next-3")
            await_that(lambda: phase(server) == Phase.STEP.value, timeout_s=60)
            state = rollout(server)["state"]
            assert (state["plan_from"], state["plan"]["steps"][0]["weight"]) == ("user_config", 20)

            deploy(server, plan=plan(30), paused=True)
            await_that(lambda: phase(server) == Phase.PAUSED.value, timeout_s=60)
            told = rollout(server)
            assert (told["weight"], told["next_plan"]["plan"]["steps"][0]["weight"]) == (20, 30)
            refused = server.http.post("/admin/rollouts/iris/resume", headers=server.admin)
            assert refused.status_code == 409, refused.text

            deploy(server, plan={"strategy": "canary", "stepz": []})
            await_that(lambda: "did you mean 'steps'" in str(iris.health(server)["last_error"]), timeout_s=60)
            assert rollout(server)["next_plan"]["is_paused"] is True  # as the last good one said
            deploy(server, plan=plan(30))
            await_that(lambda: phase(server) == Phase.STEP.value, timeout_s=60)
            assert iris.health(server)["last_error"] is None

            server.http.post("/admin/rollouts/iris/abort", headers=server.admin)
            new_version(server, "next-4")
            await_that(lambda: rollout(server)["state"]["candidate"]["version"] == "next-4", timeout_s=60)
            assert rollout(server)["state"]["plan"]["steps"][0]["weight"] == 30
            server.http.post("/admin/rollouts/iris/abort", headers=server.admin)

            deploy(server, plan=None)
            new_version(server, "next-5")
            iris.await_version(server, "next-5")
        assert traffic.failed() == []
        assert {one.pid for title in titles for one in iris.processes_of(server, title)} == before
    finally:
        server.deploy()


def new_version(server: Server, version: str) -> None:
    write_iris(server.models / "iris", version)
    set_current(server.models / "iris", version)
