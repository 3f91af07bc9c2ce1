"""The head is lost with its state in Redis; then a new image: a second cluster, two of them for a while, and one again.

The overlay of several nodes with the component `redis`, made small: two clusters of it have to fit. The tests build on
one another, in their order.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, product
from typing import Final

import httpx
import pytest
import yaml

from serve_app.usecases.control_versions import LEASE_TTL_S
from tests.builders import rows, write_forecaster
from tests.rehearsal.containers import REDIS
from tests.rehearsal.harness import SIDECAR, Rehearsal, give_to_pods, rehearsing_over_postgres
from tests.rehearsal.kuberay_pods import SERVE_PORT
from tests.rehearsal.network import PodNetwork
from tests.rehearsal.ray_cluster import Document, RayCluster
from tests.rehearsal.service_proxy import ServiceProxy

pytestmark = pytest.mark.rehearsal

NEW_IMAGE: Final = "serve-app:0.1.1"
DELETION_DELAY_S: Final = 10
LEASE_WITHIN_S: Final = LEASE_TTL_S * 4 / 3 + 5
"""The lease runs out, the other cluster looks at it three times in its length; and the rest is for a busy machine."""
UNREACHABLE_S: Final = 15.0
"""KubeRay moves the Services when Serve says RUNNING. The proxies of the workers are ready some seconds later;
until then nobody takes new connections; those that are open stay with the first cluster."""
BODY: Final = {"instances": rows(1).tolist()}
PAUSE_S: Final = 0.05


def small(service: Document) -> None:
    """One worker, the forecaster alone, and a shorter wait before the old cluster goes."""
    spec = service["spec"]
    spec["rayClusterDeletionDelaySeconds"] = DELETION_DELAY_S
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    group |= {"replicas": 1, "minReplicas": 1, "maxReplicas": 1}
    config = yaml.safe_load(spec["serveConfigV2"])
    (application,) = config["applications"]
    application["args"]["gateway"]["num_replicas"] = 1
    del application["args"]["families"]["iris"]
    (pool,) = application["args"]["families"]["forecaster"]["pools"]
    pool["num_replicas"] = 1
    application["deployments"] = [one for one in application["deployments"] if one["name"] == "forecaster-cpu"]
    spec["serveConfigV2"] = yaml.safe_dump(config, sort_keys=False)


@pytest.fixture(scope="module")
def cluster(network: PodNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    if REDIS is None:
        pytest.skip("Ray's head keeps its state in Redis: none is installed (Debian: apt-get install redis-server)")
    folder = tmp_path_factory.mktemp("upgrade")
    with rehearsing_over_postgres(network=network, folder=folder, components=["redis"], change=small) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Told:
    """What one request got (monotonic clock): a version, or a problem."""

    at_s: float
    version: str = ""
    problem: str = ""


class NewConnections:
    """Asks over and over, over a new connection each time, as clients do that have not asked before."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._stopping = threading.Event()

    @property
    def versions(self) -> list[str]:
        """Versions in their order, each as often as it came anew."""
        return [version for version, _ in groupby(told.version for told in list(self.told) if not told.problem)]

    @property
    def problems(self) -> list[Told]:
        return [told for told in list(self.told) if told.problem]

    @contextmanager
    def asking(self) -> Iterator["NewConnections"]:
        thread = threading.Thread(target=self._ask, name="new connections", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            thread.join(60)

    def _ask(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=ServiceProxy.address, limits=limits, trust_env=False, timeout=30) as http:
            while not self._stopping.wait(PAUSE_S):
                self.told.append(_told(http))


def _told(http: httpx.Client) -> Told:
    begun_s = time.monotonic()
    try:
        answer = http.post("/predict/forecaster", json=BODY)
    except httpx.HTTPError as error:
        return Told(begun_s, problem=repr(error))
    if answer.status_code != 200:
        return Told(begun_s, problem=f"{answer.status_code}: {answer.text}")
    return Told(begun_s, version=answer.headers["X-Model-Version"])


def take_new_image(cluster: Rehearsal) -> None:
    config = cluster.world.spec["rayClusterConfig"]
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        group["template"]["spec"]["containers"][0]["image"] = NEW_IMAGE


def change_to(cluster: Rehearsal, version: str, *, at: RayCluster) -> httpx.Response:
    """Ask a cluster's own gateway to have another version answer."""
    return httpx.post(
        f"http://{at.workers[0].address}:{SERVE_PORT}/admin/rollback", params={"family": "forecaster", "to": version},
        headers=cluster.admin, trust_env=False, timeout=60,
    )  # fmt: skip


def test_a_head_that_is_lost_knows_everything_again_from_redis(cluster: Rehearsal) -> None:
    head, n_puts, replicas = cluster.cluster.head, len(cluster.operator.puts), cluster.replicas()
    with cluster.traffic(BODY["instances"], connections=4, rate=30) as traffic:
        head.containers["ray-head"].kill()
        cluster.await_that(lambda: head.restarts.get("ray-head") == 1, timeout_s=30)
        cluster.operator.statuses = {}  # what is told from now on
        cluster.await_that(lambda: head.is_ready, timeout_s=120)
        cluster.await_that(lambda: cluster.operator.statuses.get("serve-app") == "RUNNING", timeout_s=120)
    assert traffic.failed() == []
    assert len(cluster.operator.puts) == n_puts, "the config was kept, so nothing is sent again"
    assert cluster.replicas() == replicas


def test_a_new_image_is_a_second_cluster_that_follows_the_first_one_and_takes_over_when_that_is_gone(
    cluster: Rehearsal,
) -> None:
    first, nodes = cluster.cluster, cluster.world.place.nodes
    for node, seed in product(nodes, (2, 3)):  # from here on the state says something else than the source
        models = cluster.models(node)
        give_to_pods(write_forecaster(models, f"v{seed}", seed=seed, current=False, sidecar=SIDECAR))
    assert change_to(cluster, "v2", at=first).status_code == 200
    with NewConnections().asking() as client:
        with cluster.traffic(BODY["instances"], connections=4, rate=20) as traffic:
            take_new_image(cluster)
            cluster.await_that(lambda: cluster.world.selected != first.name, timeout_s=240)
            switched_s, second = time.monotonic(), cluster.cluster
            cluster.await_that(lambda: bool(cluster.world.endpoints()), timeout_s=60)
            refused = change_to(cluster, "v1", at=second)
            assert refused.status_code == 503, refused.text
            assert f"another cluster ({first.name}:serve-app) may change versions" in refused.json()["detail"]
            assert client.versions == ["v2"]
            assert change_to(cluster, "v3", at=first).status_code == 200
            cluster.await_that(lambda: client.versions == ["v2", "v3"], timeout_s=30)
        cluster.await_that(lambda: first.name not in cluster.world.clusters, timeout_s=DELETION_DELAY_S + 30)
        cluster.await_that(lambda: change_to(cluster, "v3", at=second).status_code == 200, timeout_s=LEASE_WITHIN_S)
        assert change_to(cluster, "v1", at=second).status_code == 200
        cluster.await_that(lambda: client.versions == ["v2", "v3", "v1"], timeout_s=30)
    answered = [told.problem for told in client.problems if told.problem[0].isdigit()]
    assert answered == [], "a cluster was led traffic to before it had its model"
    late = [told for told in client.problems if not -2 <= told.at_s - switched_s <= UNREACHABLE_S]
    assert late == []
    assert traffic.failed() == []
    assert {answer.version for answer in traffic.answers} == {"v2", "v3"}
    assert [put.cluster for put in cluster.operator.puts] == [first.name, second.name]
    assert list(cluster.world.clusters) == [second.name]
