"""An overlay of `kuberay/`, rendered and running: nodes, Pods, the operator's double, promoters, a Service."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from serve_app.domain.manifest import Sidecar
from tests.builders import write_forecaster
from tests.contracts.postgres_server import NoPostgresError, postgres_server
from tests.kuberay.rendering import overlay, render, with_components
from tests.rehearsal.containers import REPOSITORY, has_user
from tests.rehearsal.kubelet_twin import Node, Objects, Pod
from tests.rehearsal.network import PodNetwork
from tests.rehearsal.operator_twin import DASHBOARD_PORT, OperatorTwin, World, await_that, dashboard
from tests.rehearsal.ray_cluster import Document, Place, RayCluster
from tests.rehearsal.service_proxy import ServiceProxy
from tests.traffic import Traffic

RUNNING_WITHIN_S: Final = 240.0
POLL_S: Final = 1
"""How often the sidecar looks, as the manifests of the bundles ask it to; its default would make the rehearsal long."""
SIDECAR: Final = Sidecar(poll_interval_seconds=POLL_S)
READY_MARK: Final = "READY"


@dataclass(slots=True)
class Rehearsal:
    """What tests act on."""

    documents: Sequence[Document]
    world: World
    operator: OperatorTwin
    http: httpx.Client
    folder: Path
    admin_token: str
    ray_token: str
    promoters: list[Pod] = field(default_factory=list)
    sets: list[Pod] = field(default_factory=list)
    """Pods of StatefulSets."""

    @property
    def cluster(self) -> RayCluster:
        """The cluster that the Services lead to."""
        assert self.world.selected is not None, "no cluster serves yet"
        return self.world.clusters[self.world.selected]

    @property
    def admin(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.admin_token}"}

    @property
    def serving_nodes(self) -> list[Node]:
        """Nodes on which models are served."""
        serving = self.cluster.workers or [self.cluster.head]
        return list({pod.node.name: pod.node for pod in serving}.values())

    def models(self, node: Node) -> Path:
        """Return the directory that the Pods of a node see as `/models`."""
        return models_of(self.world.service, node)

    def sidecars(self) -> list[Pod]:
        """Return the Pods whose container `promoter` promotes."""
        return self.promoters or [self.cluster.head]

    def restart_operator(self) -> None:
        """End the operator and start one that remembers nothing."""
        self.operator.stop()
        self.operator = OperatorTwin(self.world)
        self.operator.start()

    def serve_api(self) -> httpx.Client:
        return dashboard(self.cluster, self.ray_token)

    def serve_details(self) -> dict[str, Any]:
        with self.serve_api() as api:
            details: dict[str, Any] = api.get("/api/serve/applications/").json()
        return details

    def replicas(self) -> dict[str, list[str]]:
        """Return the ids of the replicas of each deployment."""
        application = self.serve_details()["applications"]["serve-app"]
        return {
            name: sorted(replica["replica_id"] for replica in deployment["replicas"])
            for name, deployment in application["deployments"].items()
        }

    def versions(self, family: str = "forecaster") -> set[str]:
        """Return the versions that the replicas of a family serve by default."""
        told = self.http.get("/health").json()["families"][family]
        return {told["model_version"]} if "model_version" in told else set()

    def predict(self, rows: Any, family: str = "forecaster", **headers: str) -> httpx.Response:
        return self.http.post(f"/predict/{family}", json={"instances": rows}, headers=headers)

    def traffic(self, rows: Any, *, connections: int, rate: float | None) -> contextlib.AbstractContextManager[Traffic]:
        """Send one request over and over to the Service."""
        body = httpx.Request("POST", ServiceProxy.address, json={"instances": rows}).content
        return Traffic.started(f"{ServiceProxy.address}/predict/forecaster", body, connections=connections, rate=rate)

    def drift(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `serve-app drift` with the RayService as it is now."""
        rayservice, token = self.folder / "rayservice.yaml", self.folder / "ray-token"
        rayservice.write_text(yaml.safe_dump(self.world.service))
        token.write_text(self.ray_token)
        command = [
            sys.executable,
            "-c",
            "from serve_app.cli import app; app()",
            "drift",
            "--rayservice",
            str(rayservice),
        ]
        command += [
            "--serve-api",
            f"http://{self.cluster.head.address}:{DASHBOARD_PORT}",
            "--ray-token-file",
            str(token),
        ]
        return subprocess.run(
            [*command, "--address", ServiceProxy.address, *options],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def story(self) -> str:
        """Return what the operator did and the last words of the Pods."""
        pods = [pod for cluster in self.world.clusters.values() for pod in cluster.pods]
        return "\n".join(
            [*self.operator.events[-20:], *(pod.last_words() for pod in [*pods, *self.promoters, *self.sets])]
        )

    def await_that(self, condition: Callable[[], bool], *, timeout_s: float) -> None:
        await_that(condition, timeout_s=timeout_s, otherwise=self.story)

    def await_running(self) -> None:
        """Wait until every application runs, every Pod is ready and the server says so."""
        self.await_that(lambda: self.operator.statuses.get("serve-app") == "RUNNING", timeout_s=RUNNING_WITHIN_S)
        self.await_that(lambda: bool(self.world.endpoints()), timeout_s=60)
        self.await_that(lambda: answers(self.http, "/ready") == 200, timeout_s=60)


def answers(http: httpx.Client, path: str) -> int:
    """Return the status of an answer, 0 where there is none."""
    try:
        return http.get(path).status_code
    except httpx.HTTPError:
        return 0


@contextmanager
def rehearsing(
    name: str,
    *,
    network: PodNetwork,
    folder: Path,
    components: Sequence[str] = (),
    store_url: str = "",
    change: Callable[[Document], None] | None = None,
    shared: Sequence[Path] = (),
) -> Iterator[Rehearsal]:
    """Run an overlay for as long as the context lasts: the operator's double makes what its RayService says.

    `change` may alter the RayService first, `shared` are directories that every container sees. Beside that, promoters
    wait less before they put a bad bundle aside; nothing else differs from what is rendered.
    """
    documents = render(with_components(folder / "overlay", name, *components) if components else overlay(name))
    (service,) = [document for document in documents if document["kind"] == "RayService"]
    if change is not None:
        change(service)
    _quicken(documents)
    admin_token, ray_token = secrets.token_hex(32), secrets.token_hex(32)
    nodes = [Node(f"node-{i}", folder / f"node-{i}") for i in range(1 + _n_workers(service))]
    services = _services(service)
    objects = _objects(store_url=store_url, admin_token=admin_token, ray_token=ray_token)
    place = Place(nodes, network, objects, folder / "pods", services=services, shared=shared)
    for node in nodes:
        write_forecaster(models_of(service, node), "v1", sidecar=SIDECAR)
        give_to_pods(models_of(service, node))
    sets = [_first_of(document, place) for document in documents if document["kind"] == "StatefulSet"]
    services |= _led_to(documents, sets)  # before any Pod of Ray is told of them
    world = World(place, service, ray_token)
    rehearsal = Rehearsal(
        documents, world, OperatorTwin(world), httpx.Client(base_url=ServiceProxy.address, trust_env=False, timeout=60),
        folder, admin_token, ray_token, sets=sets,
    )  # fmt: skip
    rehearsal.promoters = [
        pod for document in documents if document["kind"] == "DaemonSet" for pod in _daemons(document, place)
    ]
    try:
        with ServiceProxy(world.endpoints), rehearsal.http:
            for pod in [*sets, *rehearsal.promoters]:
                pod.start()
            rehearsal.operator.start()
            yield rehearsal
    finally:
        rehearsal.operator.stop()
        for cluster in world.clusters.values():
            cluster.stop()
        for pod in [*rehearsal.promoters, *sets]:
            pod.stop()


@contextmanager
def rehearsing_over_postgres(
    *,
    network: PodNetwork,
    folder: Path,
    components: Sequence[str] = (),
    change: Callable[[Document], None] | None = None,
) -> Iterator[Rehearsal]:
    """Run the overlay `cluster` as `rehearsing` does, with its state in a PostgreSQL of its own, until all of it runs.

    Skips the test where no PostgreSQL is installed.
    """
    try:
        with postgres_server() as postgres:
            postgres.root.chmod(0o755)  # the Pods' user reaches its socket, in place of a server in the network
            with rehearsing(
                "cluster", network=network, folder=folder, components=components,
                store_url=postgres.new_database(), change=change, shared=[postgres.root],
            ) as running:  # fmt: skip
                running.await_running()
                yield running
    except NoPostgresError as error:
        pytest.skip(f"the overlay `cluster` keeps its state in PostgreSQL: {error}")


def _n_workers(service: Document) -> int:
    groups = service["spec"]["rayClusterConfig"].get("workerGroupSpecs", ())
    return sum(int(group.get("replicas", 0)) for group in groups)


def _objects(*, store_url: str, admin_token: str, ray_token: str) -> Objects:
    """Return the Secrets that the manifests name and do not bring."""
    reload_token = secrets.token_hex(32)
    return Objects(
        secrets={
            "serve-app-ray": {"auth_token": ray_token},
            "serve-app-tokens": {"tokens": f"operator rollout {admin_token}\npromoter reload {reload_token}\n"},
            "serve-app-reload": {"token": reload_token},
            "serve-app-store": {"url": store_url},
            "serve-app-redis": {"password": secrets.token_hex(32)},
        }
    )


def _quicken(documents: Sequence[Document]) -> None:
    """Let promoters wait a second instead of ten for whoever may still be writing to a bad bundle."""
    for document in documents:
        if document["kind"] == "RayService":
            config = document["spec"]["rayClusterConfig"]
            templates = [group["template"] for group in (config["headGroupSpec"], *config.get("workerGroupSpecs", ()))]
        else:
            templates = [document["spec"]["template"]] if document["kind"] == "DaemonSet" else []
        for spec in (template["spec"] for template in templates):
            for container in [*spec.get("initContainers", ()), *spec["containers"]]:
                if container["name"] == "promoter":
                    container["env"].append({"name": "SETTLE_SECONDS", "value": str(POLL_S)})


def models_of(service: Mapping[str, Any], node: Node) -> Path:
    """Return where the volume `models` of the RayService's Pods lies on a node."""
    volumes = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["volumes"]
    (models,) = [volume for volume in volumes if volume["name"] == "models"]
    if "hostPath" in models:
        return node.place("host", models["hostPath"]["path"])
    return node.place("claims", models["persistentVolumeClaim"]["claimName"])


def stage(models: Path, version: str, *, seed: int = 0, ready: bool = True, **facts: Any) -> Path:
    """Put a bundle of the forecaster into `staging/`, with its mark last, and return that directory (S1)."""
    elsewhere = models.parent / f".{models.name}-outside"
    made = write_forecaster(elsewhere, version, seed=seed, current=False, **{"sidecar": SIDECAR, **facts})
    staging = models / "staging"
    staging.mkdir(exist_ok=True)
    for entry in made.iterdir():
        if (staging / entry.name).is_dir():  # left by a bundle that was put aside or never marked
            shutil.rmtree(staging / entry.name)
        shutil.move(entry, staging / entry.name)
    shutil.rmtree(elsewhere)
    give_to_pods(staging)
    if ready:
        (staging / READY_MARK).touch()
        give_to_pods(staging)
    return staging


def give_to_pods(path: Path, *, user: int = 1000) -> None:
    """Make the user of the Pods the owner, as what fills the volume has to."""
    if not has_user(user):
        return
    for entry in [path, *path.rglob("*")]:
        os.chown(entry, user, user, follow_symlinks=False)


def _services(service: Mapping[str, Any]) -> dict[str, str]:
    """Return the names under which Pods find the serve Service."""
    name, namespace = f"{service['metadata']['name']}-serve-svc", service["metadata"].get("namespace", "default")
    names = (name, f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local")
    return dict.fromkeys(names, PodNetwork.gateway)


def _led_to(documents: Sequence[Document], pods: Sequence[Pod]) -> dict[str, str]:
    """Return the names of Services with the Pod that each selects."""
    services = [document for document in documents if document["kind"] == "Service"]
    return {
        service["metadata"]["name"]: pod.address
        for service in services
        for pod in pods
        if service["spec"]["selector"].items() <= pod.labels.items()
    }


def _daemons(document: Document, place: Place) -> list[Pod]:
    """Return one Pod of a DaemonSet for each node."""
    made = []
    for node in place.nodes:
        name = f"{document['metadata']['name']}-{node.name}"
        template = document["spec"]["template"]
        metadata = {**template["metadata"], "name": name, "namespace": document["metadata"].get("namespace", "default")}
        made.append(place.pod({**template, "metadata": metadata}, node, place.folder / name))
    return made


def _first_of(document: Document, place: Place) -> Pod:
    """Return the only Pod of a StatefulSet, on the first node, with its claims."""
    name, template = f"{document['metadata']['name']}-0", document["spec"]["template"]
    metadata = {**template["metadata"], "name": name, "namespace": document["metadata"].get("namespace", "default")}
    claims = [claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", ())]
    volumes = [{"name": claim, "persistentVolumeClaim": {"claimName": f"{claim}-{name}"}} for claim in claims]
    spec = {**template["spec"], "volumes": [*template["spec"].get("volumes", ()), *volumes]}
    return place.pod({**template, "metadata": metadata, "spec": spec}, place.nodes[0], place.folder / name)
