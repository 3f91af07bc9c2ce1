"""One RayCluster of the rehearsal: its Pods on their nodes, replaced when they are gone."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.rehearsal.kubelet_twin import Node, Objects, Pod
from tests.rehearsal.kuberay_pods import ClusterNames, head_pod, worker_pods
from tests.rehearsal.network import PodNetwork

_MASKED: Final = ("replicas", "minReplicas", "maxReplicas", "scaleStrategy")
_MASKED_IN_PODS: Final = ("tolerations", "schedulingGates")

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where Pods are put: machines, network, secrets, and the directory of logs."""

    nodes: Sequence[Node]
    network: PodNetwork
    objects: Objects
    folder: Path
    services: Mapping[str, str] = field(default_factory=dict)
    """Addresses by the names under which Pods look them up."""
    shared: Sequence[Path] = ()
    """Directories that every container sees under the same path, in place of a server elsewhere."""

    def pod(self, document: Document, node: Node, folder: Path, *, names: Mapping[str, str] | None = None) -> Pod:
        """Make a Pod on a node. Its file of names is shared by all Pods that are given the same `names`."""
        hosts = folder.parent / "hosts"
        self.write_hosts(hosts, names or {})
        return Pod(
            document,
            node=node,
            network=self.network,
            objects=self.objects,
            hosts=hosts,
            folder=folder,
            shared=self.shared,
        )

    def write_hosts(self, hosts: Path, names: Mapping[str, str]) -> None:
        """Write a file of names, in place: containers hold this very file."""
        hosts.parent.mkdir(parents=True, exist_ok=True)
        known = {**self.services, **names}
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in known.items()))


@dataclass(slots=True)
class RayCluster:
    """A head and its workers. The head lies on the first node, worker i on the one after it, and so on in turn."""

    names: ClusterNames
    spec: Mapping[str, Any]
    place: Place
    head: Pod = field(init=False)
    workers: list[Pod] = field(init=False)

    def __post_init__(self) -> None:
        self.head = self._made(head_pod(self.spec, self.names), 0)
        self.workers = [self._made(document, i + 1) for i, document in enumerate(worker_pods(self.spec, self.names))]
        self._write_hosts()

    @property
    def name(self) -> str:
        return self.names.cluster

    @property
    def pods(self) -> list[Pod]:
        return [self.head, *self.workers]

    def start(self) -> None:
        """Start every Pod."""
        for pod in self.pods:
            pod.start()

    def stop(self) -> None:
        """End every Pod."""
        for pod in reversed(self.pods):
            pod.stop()

    def replace_lost(self) -> list[str]:
        """Make a new Pod for each that is gone (`reconcilePods` in raycluster_controller.go); return their names."""
        lost = [i for i, pod in enumerate(self.workers) if not pod.is_alive]
        documents = worker_pods(self.spec, self.names)
        for i in lost:
            self.workers[i] = self._made(documents[i], i + 1)
            self.workers[i].start()
        if self.head.is_alive:
            return [self.workers[i].name for i in lost]
        self.head = self._made(head_pod(self.spec, self.names), 0)
        self._write_hosts()
        self.head.start()
        return [self.head.name, *(self.workers[i].name for i in lost)]

    def _made(self, document: Document, index: int) -> Pod:
        node = self.place.nodes[index % len(self.place.nodes)]
        return self.place.pod(document, node, self._folder / document["metadata"]["name"], names=self._head_names())

    @property
    def _folder(self) -> Path:
        return self.place.folder / self.names.cluster

    def _head_names(self) -> dict[str, str]:
        """Return the names of the head's Service, which lead to the head."""
        if not hasattr(self, "head"):
            return {}
        service = self.names.head_service
        return dict.fromkeys((service, service.partition(".")[0]), self.head.address)

    def _write_hosts(self) -> None:
        self.place.write_hosts(self._folder / "hosts", self._head_names())


def masked_hash(spec: Mapping[str, Any]) -> str:
    """Return what decides whether a change needs a new cluster: `generateHashWithoutReplicasAndWorkersToDelete`."""
    document = json.loads(json.dumps(spec))
    document.pop("suspend", None)
    for group in (document.get("headGroupSpec") or {}, *document.get("workerGroupSpecs", ())):
        for key in (*_MASKED, "suspend"):
            group.pop(key, None)
        for key in _MASKED_IN_PODS:
            group.get("template", {}).get("spec", {}).pop(key, None)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
