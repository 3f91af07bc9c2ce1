"""The overlay of several nodes, run: probes, predictions, drift, an experiment, a canary, lost Pods.

With the component `embedded-gcs`. The tests build on one another, in their order: a cluster takes a minute or two to
come up.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from serve_app.domain.rollout_state import Phase
from tests.builders import rows, write_forecaster
from tests.kuberay.rendering import KUBERAY
from tests.rehearsal.harness import Rehearsal, give_to_pods, rehearsing_over_postgres, stage
from tests.rehearsal.kubelet_twin import await_ready
from tests.rehearsal.kuberay_pods import SERVE_PORT
from tests.rehearsal.network import PodNetwork
from tests.rehearsal.probes import ProbeKind
from tests.rehearsal.ray_cluster import Document
from tests.rehearsal.service_proxy import ServiceProxy

pytestmark = pytest.mark.rehearsal

TAKEN_WITHIN_S: Final = 90.0
SIGMAS: Final = 4
"""How far a measured share may be from its weight: more than four standard deviations happen once in 16,000 times."""
CLIENTS: Final = [f"client-{i}" for i in range(200)]
LOST_WITHIN_S: Final = 15.0
"""After the loss of a worker: connections that it held are cut, later ones go to the other."""
EXPERIMENT: Final = {
    "strategy": "ab",
    "steps": [{"weight": 50}],
    "analysis": None,
    "targeting": {"source": "header", "name": "X-Entity-Id"},
}


def keep_its_state(service: Document) -> None:
    """Let the head keep its state in RocksDB, as the component says."""
    component = yaml.safe_load((KUBERAY / "components" / "embedded-gcs" / "kustomization.yaml").read_text())
    (operation,) = yaml.safe_load(component["patches"][0]["patch"])
    assert operation["path"] == "/spec/rayClusterConfig/gcsFaultToleranceOptions"
    service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"] = operation["value"]


@pytest.fixture(scope="module")
def cluster(network: PodNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    folder = tmp_path_factory.mktemp("cluster")
    with rehearsing_over_postgres(network=network, folder=folder, change=keep_its_state) as running:
        yield running


def versions_of(clients: Sequence[str], *, at: str = ServiceProxy.address) -> dict[str, str]:
    """Ask once for each client, over a connection each, so in turn at both workers; return who got which version."""
    found = {}
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=at, limits=limits, trust_env=False, timeout=30) as http:
        for client in clients:
            body = {"instances": rows(1).tolist()}
            answered = http.post("/predict/forecaster", json=body, headers={"X-Entity-Id": client})
            assert answered.status_code == 200, answered.text
            found[client] = answered.headers["X-Model-Version"]
    return found


def assert_share(found: dict[str, str], version: str, weight: float) -> None:
    share, n = Counter(found.values())[version] / len(found), len(found)
    spread = SIGMAS * (weight * (1 - weight) / n) ** 0.5
    assert abs(share - weight) <= spread, f"{share:.3f} of {n} clients got {version}, expected {weight} ± {spread:.3f}"


def assert_sticky(cluster: Rehearsal, found: dict[str, str], n: int = 40) -> None:
    """Check that clients get the same version at every worker."""
    clients = list(found)[:n]
    for address in cluster.world.endpoints():
        again = versions_of(clients, at=f"http://{address}:{SERVE_PORT}")
        assert again == {client: found[client] for client in clients}


def served(n: int = 20) -> set[str]:
    return set(versions_of(CLIENTS[:n]).values())


def await_phase(cluster: Rehearsal, version: str, phase: Phase, *, timeout_s: float = 60.0) -> None:
    """Wait until the rollout of a version is in a phase."""

    def is_it() -> bool:
        told = cluster.http.get("/admin/rollouts/forecaster", headers=cluster.admin)
        state = told.json().get("state") or {}
        return bool(state) and (state["candidate"]["version"], state["phase"]) == (version, phase.value)

    cluster.await_that(is_it, timeout_s=timeout_s)


def await_weight(cluster: Rehearsal, weight: float) -> None:
    """Wait until both gateways give the new version this share."""

    def weight_at(address: str) -> float:
        told = httpx.get(
            f"http://{address}:{SERVE_PORT}/admin/route",
            params={"family": "forecaster", "key": "nobody"}, headers=cluster.admin, trust_env=False, timeout=10,
        )  # fmt: skip
        variants = told.json()["variants"]
        return sum(float(one["weight_percent"]) / 100 for one in variants if one["name"] not in ("stable", "a"))

    addresses = cluster.world.endpoints()
    expected = pytest.approx(weight, abs=0.001)
    cluster.await_that(lambda: all(weight_at(address) == expected for address in addresses), timeout_s=30)


def post(cluster: Rehearsal, path: str, **body: Any) -> None:
    told = cluster.http.post(f"/admin/rollouts{path}", headers=cluster.admin, json=body or None)
    assert told.is_success, told.text


def promote_everywhere(cluster: Rehearsal, version: str, *, seed: int) -> None:
    for node in cluster.serving_nodes:
        stage(cluster.models(node), version, seed=seed)
    links = [cluster.models(node) / "current" for node in cluster.serving_nodes]
    cluster.await_that(lambda: all(link.readlink() == Path(version) for link in links), timeout_s=TAKEN_WITHIN_S)


def test_head_and_workers_are_ready_and_the_service_leads_to_the_workers(cluster: Rehearsal) -> None:
    running = cluster.cluster
    await_ready(running.pods, timeout_s=120)
    assert cluster.world.endpoints() == [pod.address for pod in running.workers]
    assert len({pod.node.name for pod in running.pods}) == 3


def test_a_worker_is_ready_by_the_probe_of_the_manifest_and_nothing_restarted(cluster: Rehearsal) -> None:
    for worker in cluster.cluster.workers:
        readiness = [result for result in worker.results if result.kind is ProbeKind.READINESS]
        assert readiness[-1].succeeded
        assert worker.restarts == {}
        (container,) = worker.document["spec"]["containers"]
        assert container["readinessProbe"]["httpGet"]["path"] == "/-/healthz"


def test_the_forecaster_answers_its_golden_samples_and_iris_without_a_registry_says_so(cluster: Rehearsal) -> None:
    golden = json.loads((cluster.models(cluster.serving_nodes[0]) / "current" / "golden.json").read_text())
    answered = cluster.predict(golden["inputs"]).json()["predictions"]
    for found, expected in zip(answered, golden["outputs"], strict=True):
        assert list(found.values()) == pytest.approx(expected, rel=1e-9)
    assert cluster.predict([[5.1, 3.5, 1.4, 0.2]], family="iris").status_code == 503


def test_nothing_has_drifted(cluster: Rehearsal) -> None:
    told = cluster.drift()
    assert told.returncode == 0, told.stdout + told.stderr


def test_an_experiment_halves_the_clients_and_each_gets_the_same_version_at_every_gateway(cluster: Rehearsal) -> None:
    for node in cluster.serving_nodes:
        give_to_pods(write_forecaster(cluster.models(node), "other", seed=3, current=False))
    post(cluster, "", family="forecaster", version="other", plan=EXPERIMENT)
    await_phase(cluster, "other", Phase.EXPERIMENT)
    await_weight(cluster, 0.5)
    found = versions_of(CLIENTS)
    assert set(found.values()) == {"v1", "other"}
    assert_share(found, "other", 0.5)
    assert_sticky(cluster, found)
    post(cluster, "/forecaster/abort")
    await_phase(cluster, "other", Phase.ABORTED)
    assert served() == {"v1"}


def test_a_canary_gets_clients_by_steps_gives_them_back_when_aborted_and_all_of_them_in_the_end(
    cluster: Rehearsal,
) -> None:
    with cluster.traffic(rows(2).tolist(), connections=4, rate=20) as traffic:
        promote_everywhere(cluster, "v2", seed=1)
        await_phase(cluster, "v2", Phase.STEP, timeout_s=TAKEN_WITHIN_S)
        await_weight(cluster, 0.05)
        assert_share(versions_of(CLIENTS), "v2", 0.05)
        post(cluster, "/forecaster/abort")
        await_phase(cluster, "v2", Phase.ABORTED)
        assert served() == {"v1"}, "an abort takes every client back"
        post(cluster, "/forecaster/retry")
        await_phase(cluster, "v2", Phase.STEP)
        moved: set[str] = set()
        for weight in (0.05, 0.25, 0.5):
            await_weight(cluster, weight)
            found = versions_of(CLIENTS)
            assert_share(found, "v2", weight)
            assert_sticky(cluster, found)
            now = {client for client, version in found.items() if version == "v2"}
            assert moved <= now, "raising the weight takes nobody back"
            moved = now
            if weight < 0.5:
                post(cluster, "/forecaster/skip")
        post(cluster, "/forecaster/promote")
        await_phase(cluster, "v2", Phase.SUCCEEDED)
        assert served() == {"v2"}
    assert traffic.failed() == []


def test_a_lost_worker_comes_back_and_the_other_one_answers_meanwhile(cluster: Rehearsal) -> None:
    lost, other = cluster.cluster.workers
    with cluster.traffic(rows(1).tolist(), connections=8, rate=40) as traffic:
        killed_s = time.monotonic()
        lost.containers["ray-worker"].kill()
        cluster.await_that(lambda: lost.address not in cluster.world.endpoints(), timeout_s=30)
        assert cluster.world.endpoints() == [other.address]
        cluster.await_that(lambda: lost.address in cluster.world.endpoints(), timeout_s=180)
        back_s = time.monotonic()
        cluster.await_that(lambda: time.monotonic() > back_s + 2, timeout_s=10)
    assert lost.restarts == {"ray-worker": 1}
    late = [answer for answer in traffic.failed() if answer.at_s > killed_s + LOST_WITHIN_S]
    assert late == []


def test_a_lost_head_with_its_state_kept_stops_no_answer(cluster: Rehearsal) -> None:
    head, n_puts, replicas = cluster.cluster.head, len(cluster.operator.puts), cluster.replicas()
    with cluster.traffic(rows(1).tolist(), connections=4, rate=30) as traffic:
        head.containers["ray-head"].kill()
        cluster.await_that(lambda: head.restarts.get("ray-head") == 1, timeout_s=30)
        cluster.operator.statuses = {}  # what is told from now on
        cluster.await_that(lambda: head.is_ready, timeout_s=120)
        cluster.await_that(lambda: cluster.operator.statuses.get("serve-app") == "RUNNING", timeout_s=120)
    assert traffic.failed() == []
    assert len(cluster.operator.puts) == n_puts, "the config was kept, so nothing is sent again"
    assert cluster.replicas() == replicas
