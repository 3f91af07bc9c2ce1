"""The overlay of several nodes, run: head and workers, their probes, predictions through the Service, drift."""

import json
from collections.abc import Iterator

import pytest

from tests.contracts.postgres_server import NoPostgresError, postgres_server
from tests.rehearsal.harness import Rehearsal, rehearsing
from tests.rehearsal.kubelet_twin import await_ready
from tests.rehearsal.network import PodNetwork
from tests.rehearsal.probes import ProbeKind

pytestmark = pytest.mark.rehearsal


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
