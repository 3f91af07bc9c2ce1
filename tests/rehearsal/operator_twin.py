"""A double of KubeRay 1.7's operator for a RayService: what it decides, driving real Ray processes.

Each rule names the function of `ray-operator/controllers/ray/rayservice_controller.go` that it mirrors. Incremental
upgrades are absent: they need a Gateway. The suite on a true cluster has the same scenarios, and there the operator is
the real one.
"""

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import yaml

from tests.rehearsal.kuberay_pods import SERVE_LABEL, SERVE_PORT, ClusterNames
from tests.rehearsal.ray_cluster import Document, Place, RayCluster, masked_hash

PERIOD_S: Final = 2.0
DELETION_DELAY_S: Final = 60.0
DASHBOARD_PORT: Final = 8265
APPLICATIONS: Final = "/api/serve/applications/"
_HEALTH_TIMEOUT_S: Final = 2.0
_PUT_TIMEOUT_S: Final = 60.0


@dataclass(slots=True)
class World:
    """What the API server keeps, so what a restart of the operator does not forget."""

    place: Place
    service: Document
    token: str | None = None
    clusters: dict[str, RayCluster] = field(default_factory=dict)
    active: str | None = None
    pending: str | None = None
    selected: str | None = None
    """Cluster that the Services lead to."""
    made: int = 0

    @property
    def spec(self) -> Document:
        spec: Document = self.service["spec"]
        return spec

    def endpoints(self) -> list[str]:
        """Return the addresses behind `<name>-serve-svc`: ready Pods of the selected cluster with the serve label."""
        if self.selected is None or self.selected not in self.clusters:
            return []
        pods = self.clusters[self.selected].pods
        return [pod.address for pod in pods if pod.is_ready and pod.labels.get(SERVE_LABEL) == "true"]


@dataclass(frozen=True, slots=True)
class Put:
    """One config sent to a head: which cluster, why, and what was sent."""

    cluster: str
    reason: str
    config: Mapping[str, Any]


class OperatorTwin:
    """One process of the operator. Its memory is what a restart loses: the cache of configs and the deletion times."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.puts: list[Put] = []
        self.events: list[str] = []
        self.statuses: dict[str, str] = {}
        self._cache: dict[str, str] = {}
        self._deletions: dict[str, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)

    def start(self) -> None:
        """Reconcile every 2 s (`ServiceDefaultRequeueDuration`)."""
        self._thread.start()

    def stop(self) -> None:
        """End this process; Pods go on."""
        self._stopping.set()
        self._thread.join(timeout=_PUT_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            try:
                self._reconcile()
            except (httpx.HTTPError, KeyError, ValueError) as error:
                self.events.append(f"{type(error).__name__}: {error}")
            if self._stopping.wait(PERIOD_S):
                return

    def _reconcile(self) -> None:
        """`Reconcile`: clusters, head labels, Serve, Services, in this order."""
        world = self.world
        self._clean_up()
        if world.spec.get("suspend"):
            self._suspend()
            return
        self._make_cluster_if_needed()
        for name in (world.active, world.pending):
            if name is not None:
                lost = world.clusters[name].replace_lost()
                self.events += [f"made Pod {pod} anew" for pod in lost]
                self._update_head_label(world.clusters[name])
        # While there is a pending cluster, the config goes to it alone.
        target = world.pending or world.active
        if target is not None and self._reconcile_serve(world.clusters[target]):
            self._switch_to(target)

    def _suspend(self) -> None:
        """`spec.suspend` of KubeRay 1.7: all that the RayService made goes at once, and its status is empty again."""
        world = self.world
        world.active = world.pending = world.selected = None
        self.statuses = {}
        for name in list(world.clusters):
            world.clusters.pop(name).stop()
            self._cache.pop(name, None)
            self._deletions.pop(name, None)
            self.events.append(f"deleted cluster {name}: suspended")

    def _make_cluster_if_needed(self) -> None:
        """`shouldPrepareNewCluster` and `isClusterSpecHashEqual`."""
        world = self.world
        wanted = masked_hash(world.spec["rayClusterConfig"])
        latest = world.pending or world.active
        if latest is not None and masked_hash(world.clusters[latest].spec) == wanted:
            return
        is_upgrade = latest is not None
        if is_upgrade and (world.spec.get("upgradeStrategy") or {}).get("type") == "None":
            return
        if world.pending is not None:  # the spec changed again: the cluster under way is given up
            self._deletions[world.pending] = time.monotonic()
        world.made += 1
        metadata = world.service["metadata"]
        names = ClusterNames(f"{metadata['name']}-{world.made:05d}", metadata.get("namespace", "default"))
        cluster = RayCluster(names, copy.deepcopy(world.spec["rayClusterConfig"]), world.place)
        world.clusters[names.cluster] = cluster
        world.pending = names.cluster
        cluster.start()
        self.events.append(f"created cluster {names.cluster}")

    def _update_head_label(self, cluster: RayCluster) -> None:
        """`updateHeadPodServeLabel`: the head serves when its proxy is well; its readiness probe has no say in it."""
        if cluster.head.is_ready:
            excluded = bool(self.world.spec.get("excludeHeadPodFromServeSvc"))
            cluster.head.labels[SERVE_LABEL] = str(not excluded and _proxy_is_well(cluster.head.address)).lower()

    def _reconcile_serve(self, cluster: RayCluster) -> bool:
        """`reconcileServe`: send the config when it must be; true when every application runs."""
        if not cluster.head.is_ready:
            return False
        with self._api(cluster) as api:
            self.statuses = _statuses(api)
            config = str(self.world.spec["serveConfigV2"])
            reason = why_submit(self._cache.get(cluster.name, ""), config, self.statuses)
            if reason is not None:
                self._submit(api, cluster, config, reason)
                self.statuses = _statuses(api)
        # `getAndCheckServeStatus`: one application that does not run holds everything up.
        return bool(self.statuses) and all(status == "RUNNING" for status in self.statuses.values())

    def _submit(self, api: httpx.Client, cluster: RayCluster, config: str, reason: str) -> None:
        """`updateServeDeployment` and `cacheServeConfig`: the YAML as JSON, read only into a map."""
        document = yaml.safe_load(config)
        answer = api.put(APPLICATIONS, json=document, timeout=_PUT_TIMEOUT_S)
        if answer.is_error:
            self.events.append(f"FailedToUpdateServeApplications: {answer.status_code}: {answer.text[-500:]}")
            return
        self._cache[cluster.name] = config
        self.puts.append(Put(cluster.name, reason, document))

    def _switch_to(self, name: str) -> None:
        """`reconcileServicesToReadyCluster` and `reconcilePromotionAndServingStatus`."""
        world = self.world
        if name == world.pending:
            if world.active is not None:
                delay_s = world.spec.get("rayClusterDeletionDelaySeconds", DELETION_DELAY_S)
                self._deletions[world.active] = time.monotonic() + float(delay_s)
            world.active, world.pending = name, None
        if world.selected != name:
            world.selected = name
            self.events.append(f"Services lead to {name}")

    def _clean_up(self) -> None:
        """`cleanUpRayClusterInstance` and `cleanUpServeConfigCache`."""
        world = self.world
        for name in list(world.clusters):
            if name in (world.active, world.pending):
                continue
            due_s = self._deletions.setdefault(name, time.monotonic() + DELETION_DELAY_S)
            if time.monotonic() >= due_s:
                world.clusters.pop(name).stop()
                self._cache.pop(name, None)
                self.events.append(f"deleted cluster {name}")

    def _api(self, cluster: RayCluster) -> httpx.Client:
        return dashboard(cluster, self.world.token)


def dashboard(cluster: RayCluster, token: str | None) -> httpx.Client:
    """Return a client of the head's API, with the header that the operator sends."""
    headers = {} if token is None else {"x-ray-authorization": f"Bearer {token}"}
    address = f"http://{cluster.head.address}:{DASHBOARD_PORT}"
    return httpx.Client(base_url=address, headers=headers, trust_env=False, timeout=10.0)


def why_submit(cached: str, config: str, statuses: Mapping[str, str]) -> str | None:
    """Return why the config has to be sent, or None: `checkIfNeedSubmitServeApplications`.

    The config that runs is never looked at: one that somebody else sent stays until one of these holds.
    """
    if not cached:
        return "nothing is cached for the cluster"
    if not statuses:
        return "no Serve application"
    if cached != config:
        return "the config differs from the cached one"
    return None


def await_that(condition: Callable[[], bool], *, timeout_s: float, otherwise: Callable[[], str]) -> None:
    """Wait until a condition holds; fail with what `otherwise` says when it does not within the time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"still not so after {timeout_s} s: {otherwise()}"
        time.sleep(0.1)


def _statuses(api: httpx.Client) -> dict[str, str]:
    """Return the declarative applications and their states (`GetMultiApplicationStatus`)."""
    answer = api.get(APPLICATIONS, params={"api_type": "declarative"})
    answer.raise_for_status()
    return {name: application["status"] for name, application in answer.json()["applications"].items()}


def _proxy_is_well(address: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.get(f"http://{address}:{SERVE_PORT}/-/healthz", timeout=_HEALTH_TIMEOUT_S, trust_env=False)
        return answer.status_code == 200
    return False
