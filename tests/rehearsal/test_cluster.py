"""The overlay of several nodes, run: a canary, a lost worker, another image, a lost head that kept its state."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.domain.rollout_state import Phase
from tests.builders import rows
from tests.contracts.postgres_server import NoPostgresError, postgres_server
from tests.kuberay.rendering import KUBERAY
from tests.rehearsal.harness import Rehearsal, rehearsing, stage
from tests.rehearsal.kubelet_twin import await_ready
from tests.rehearsal.network import PodNetwork
from tests.rehearsal.probes import ProbeKind
from tests.rehearsal.ray_cluster import Document

pytestmark = pytest.mark.rehearsal

TAKEN_WITHIN_S = 90.0
SIGMAS = 4
"""How far a measured share may be from its weight: more than four standard deviations happen once in 16,000 times."""
CLIENTS = [f"client-{i}" for i in range(200)]
LOST_WITHIN_S = 15.0
"""After the loss of a worker: connections that it held are cut, later ones go to the other."""
NEW_IMAGE = "serve-app:0.1.1"


@pytest.fixture(scope="module")
def cluster(network: PodNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    try:
        with postgres_server() as postgres:
            postgres.root.chmod(0o755)  # the Pods' user reaches its socket, in place of a server in the network
            with rehearsing(
                "cluster",
                network=network,
                folder=tmp_path_factory.mktemp("cluster"),
                store_url=postgres.new_database(),
                shared=[postgres.root],
            ) as running:
                running.await_running()
                yield running
    except NoPostgresError as error:
        pytest.skip(f"the overlay `cluster` keeps its state in PostgreSQL: {error}")


def versions_of(cluster: Rehearsal, clients: list[str]) -> dict[str, str]:
    """Ask once for each client, over a new connection each, and return who got which version."""
    found = {}
    for client in clients:
        answered = httpx.post(
            f"{cluster.http.base_url}/predict/forecaster",
            json={"instances": rows(1).tolist()},
            headers={"X-Entity-Id": client},
            trust_env=False,
            timeout=30,
        )
        assert answered.status_code == 200, answered.text
        found[client] = answered.headers["X-Model-Version"]
    return found


def assert_share(found: dict[str, str], version: str, weight: float) -> None:
    share, n = Counter(found.values())[version] / len(found), len(found)
    spread = SIGMAS * (weight * (1 - weight) / n) ** 0.5
    assert abs(share - weight) <= spread, f"{share:.3f} of {n} clients got {version}, expected {weight} ± {spread:.3f}"


def state(cluster: Rehearsal) -> dict[str, Any]:
    told = cluster.http.get("/admin/rollouts/forecaster", headers=cluster.admin)
    return dict(told.json().get("state") or {})


def command(cluster: Rehearsal, name: str) -> None:
    told = cluster.http.post(f"/admin/rollouts/forecaster/{name}", headers=cluster.admin)
    assert told.is_success, told.text


def stable(cluster: Rehearsal) -> str:
    """Return the version of those who name no client and so get the stable one, or what became of the rollout."""
    return str(cluster.predict(rows(1).tolist()).headers.get("X-Model-Version"))


def weight_of(cluster: Rehearsal) -> float:
    """Return the share that the rollout gives its new version now; 0 before and after it."""
    told = cluster.http.get("/admin/route", params={"family": "forecaster", "key": "nobody"}, headers=cluster.admin)
    return sum(float(one["weight_percent"]) / 100 for one in told.json()["variants"] if one["name"] != "stable")


def await_weight(cluster: Rehearsal, weight: float) -> None:
    cluster.await_that(lambda: weight_of(cluster) == pytest.approx(weight, abs=0.001), timeout_s=60)


def promote_everywhere(cluster: Rehearsal, version: str, *, seed: int) -> None:
    for node in cluster.serving_nodes:
        stage(cluster.models(node), version, seed=seed)
    links = [cluster.models(node) / "current" for node in cluster.serving_nodes]
    cluster.await_that(lambda: all(link.readlink() == Path(version) for link in links), timeout_s=TAKEN_WITHIN_S)


def await_phase(cluster: Rehearsal, is_it: Callable[[dict[str, Any]], bool], *, timeout_s: float = 90.0) -> None:
    cluster.await_that(lambda: is_it(state(cluster)), timeout_s=timeout_s)


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


def test_a_promoted_version_gets_traffic_by_steps_and_clients_stay_where_they_are(cluster: Rehearsal) -> None:
    before = versions_of(cluster, CLIENTS)
    assert set(before.values()) == {"v1"}
    promote_everywhere(cluster, "v2", seed=1)
    await_phase(cluster, lambda s: s.get("phase") == Phase.STEP.value)
    moved: set[str] = set()
    for weight in (0.05, 0.25, 0.5):
        await_weight(cluster, weight)
        found = versions_of(cluster, CLIENTS)
        assert_share(found, "v2", weight)
        now = {client for client, version in found.items() if version == "v2"}
        assert moved <= now, "raising the weight takes nobody back"
        assert versions_of(cluster, CLIENTS[:50]) == {client: found[client] for client in CLIENTS[:50]}
        moved = now
        if weight < 0.5:
            command(cluster, "skip")
    command(cluster, "promote")
    await_phase(cluster, lambda s: s.get("phase") == Phase.SUCCEEDED.value)
    assert set(versions_of(cluster, CLIENTS[:50]).values()) == {"v2"}


def test_a_canary_that_is_aborted_takes_all_its_clients_back_and_nobody_fails(cluster: Rehearsal) -> None:
    body = rows(2).tolist()
    with cluster.traffic(body, connections=4, rate=40) as traffic:
        promote_everywhere(cluster, "v3", seed=2)
        await_phase(cluster, lambda s: s.get("phase") == Phase.STEP.value)
        command(cluster, "abort")
        await_phase(cluster, lambda s: s.get("phase") == Phase.ABORTED.value)
        assert set(versions_of(cluster, CLIENTS[:50]).values()) == {"v2"}
    assert traffic.failed() == []


def test_a_lost_worker_is_replaced_and_the_other_one_answers_meanwhile(cluster: Rehearsal) -> None:
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


def upgraded(service: Document) -> None:
    """Ask for another image, and for a head that keeps its state: both build a new cluster."""
    config = service["spec"]["rayClusterConfig"]
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        group["template"]["spec"]["containers"][0]["image"] = NEW_IMAGE
    component = yaml.safe_load((KUBERAY / "components" / "embedded-gcs" / "kustomization.yaml").read_text())
    (operation,) = yaml.safe_load(component["patches"][0]["patch"])
    assert operation["path"] == "/spec/rayClusterConfig/gcsFaultToleranceOptions"
    config["gcsFaultToleranceOptions"] = operation["value"]


def may_change(cluster: Rehearsal, address: str) -> bool:
    """Ask one cluster's own gateway to look for new versions; a cluster without the lease says 409."""
    asked = httpx.post(f"http://{address}:8000/admin/reload", headers=cluster.admin, trust_env=False, timeout=60)
    return asked.status_code != 409


def test_a_new_image_is_a_second_cluster_that_changes_nothing_while_the_first_one_leads(cluster: Rehearsal) -> None:
    first = cluster.cluster
    version = stable(cluster)
    with cluster.traffic(rows(1).tolist(), connections=4, rate=30) as traffic:
        upgraded(cluster.world.service)
        cluster.await_that(lambda: cluster.world.selected not in (None, first.name), timeout_s=360)
        second = cluster.cluster
        cluster.await_that(lambda: len(cluster.world.endpoints()) == 2, timeout_s=60)
        assert not may_change(cluster, second.workers[0].address), "the first cluster holds the lease"
        assert may_change(cluster, first.workers[0].address)
        assert set(versions_of(cluster, CLIENTS[:20]).values()) == {version}
    assert traffic.failed() == []
    first.stop()
    cluster.await_that(lambda: may_change(cluster, second.workers[0].address), timeout_s=60)


def test_a_lost_head_with_its_state_kept_stops_no_answer(cluster: Rehearsal) -> None:
    head, n_puts = cluster.cluster.head, len(cluster.operator.puts)
    replicas = cluster.replicas()

    with cluster.traffic(rows(1).tolist(), connections=4, rate=30) as traffic:
        head.containers["ray-head"].kill()
        cluster.await_that(lambda: head.restarts.get("ray-head") == 1, timeout_s=30)
        cluster.operator.statuses = {}  # what is told from now on
        cluster.await_that(lambda: head.is_ready, timeout_s=120)
        cluster.await_that(lambda: cluster.operator.statuses.get("serve-app") == "RUNNING", timeout_s=120)
    assert traffic.failed() == []
    assert len(cluster.operator.puts) == n_puts, "the config was kept, so nothing is sent again"
    assert cluster.replicas() == replicas
