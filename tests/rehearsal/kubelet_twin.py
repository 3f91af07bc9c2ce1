"""A double of the kubelet: starts the containers of a Pod in its order, runs their probes, restarts what ended.

A Pod here has one network namespace, held by a process that does nothing, and lives on one `Node`, a directory with the
volumes of one machine. Every process ends with the Pod.
"""

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.rehearsal.containers import Container, ContainerPlan, Mount, has_user, image_environment, image_files
from tests.rehearsal.network import PodNetwork
from tests.rehearsal.probes import Probe, ProbeKind, ProbeResult

TICK_S: Final = 0.2
_LABEL: Final = re.compile(r"metadata\.labels\['(.+)'\]")
_NOBODY: Final = 65534

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Objects:
    """Secrets and config maps by name: their keys and values."""

    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Node:
    """One machine: where its host paths and the claims bound to it lie."""

    name: str
    folder: Path

    def place(self, kind: str, name: str) -> Path:
        """Return the directory of a claim or a host path, made when it is first asked for."""
        path = self.folder / kind / name.strip("/").replace("/", "-")
        path.mkdir(parents=True, exist_ok=True)
        return path


class PodFailedError(Exception):
    """A container ended that must not have, or did not start; the message ends with its last words."""


class Pod:
    """One Pod. Everything about its processes happens in a thread of its own; what tests read are plain attributes."""

    def __init__(
        self, document: Document, *, node: Node, network: PodNetwork, objects: Objects, hosts: Path, folder: Path,
        shared: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        self.document, self.node, self.folder, self._shared = document, node, folder, shared
        self.name: str = document["metadata"]["name"]
        self.labels: dict[str, str] = dict(document["metadata"].get("labels") or {})
        self.address = network.new_address()
        self.containers: dict[str, Container] = {}
        self.restarts: dict[str, int] = {}
        self.results: list[ProbeResult] = []
        self.problem: str | None = None
        self.is_ready = False
        self._network, self._objects, self._hosts = network, objects, hosts
        self._probes: dict[str, list[Probe]] = {}
        self._sandbox: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name=self.name, daemon=True)

    def start(self) -> None:
        """Begin; `is_ready` tells when it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        """End all of it."""
        self._stopping.set()
        self._thread.join(timeout=60)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self.problem is None

    def last_words(self, lines: int = 15) -> str:
        """Return the ends of the containers' logs."""
        parts = [f"{self.name}: {self.problem}"] if self.problem else []
        for log in sorted(self.folder.glob("*.log")):
            parts.append(f"--- {self.name} {log.stem}")
            parts += log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(parts)

    def _live(self) -> None:
        try:
            self._sandbox = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"], start_new_session=True
            )
            self._await_own_network()
            self._network.plug_in(self._sandbox.pid, self.address)
            self._start_all()
            while not self._stopping.wait(TICK_S):
                self._watch()
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"
        finally:
            self.is_ready = False
            for container in self.containers.values():
                container.kill()
            if self._sandbox is not None:
                self._sandbox.kill()
                self._sandbox.wait()

    def _await_own_network(self) -> None:
        assert self._sandbox is not None
        outside = Path("/proc/thread-self/ns/net").readlink()
        while Path(f"/proc/{self._sandbox.pid}/ns/net").readlink() == outside:
            if self._sandbox.poll() is not None or self._stopping.wait(0.01):
                raise PodFailedError("no network namespace")

    def _start_all(self) -> None:
        spec = self.document["spec"]
        for container in spec.get("initContainers", ()):
            self._start(container)
            if container.get("restartPolicy") != "Always":  # else a native sidecar, which goes on
                self._await_end(container["name"])
        for container in spec["containers"]:
            self._start(container)

    def _await_end(self, name: str) -> None:
        container = self.containers[name]
        while container.is_running:
            if self._stopping.wait(TICK_S):
                return
        if container.process.returncode:
            raise PodFailedError(f"init container {name} ended with {container.process.returncode}")
        del self.containers[name]

    def _start(self, container: Document) -> None:
        assert self._sandbox is not None
        name = container["name"]
        self.containers[name] = Container(self._plan(container), sandbox_pid=self._sandbox.pid, folder=self.folder)
        self._probes[name] = Probe.all_of(container, started_s=time.monotonic())

    def _watch(self) -> None:
        """Look at every container once: restart what ended, run the probes that are due."""
        specs = {
            c["name"]: c
            for c in [*self.document["spec"].get("initContainers", ()), *self.document["spec"]["containers"]]
        }
        are_ready = True
        for name, container in list(self.containers.items()):
            if not container.is_running or any(
                p.kind is not ProbeKind.READINESS and not p.holds for p in self._probes[name]
            ):
                self.is_ready = False
                container.kill()
                self.restarts[name] = self.restarts.get(name, 0) + 1
                self._start(specs[name])
                are_ready = False
                continue
            are_ready = self._probe(name, container) and are_ready
        self.is_ready = are_ready

    def _probe(self, name: str, container: Container) -> bool:
        probes = self._probes[name]
        startup = next((probe for probe in probes if probe.kind is ProbeKind.STARTUP), None)
        for probe in probes:
            waits = startup is not None and probe is not startup and not startup.has_succeeded
            is_done = probe is startup and probe.has_succeeded
            if time.monotonic() >= probe.due_s and not waits and not is_done:
                self.results.append(probe.run(container, self.address))
        return all(probe.holds for probe in probes if probe.kind is ProbeKind.READINESS)

    def _plan(self, container: Document) -> ContainerPlan:
        spec = self.document["spec"]
        security = {**(spec.get("securityContext") or {}), **(container.get("securityContext") or {})}
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        user = int(security.get("runAsUser", _NOBODY if security.get("runAsNonRoot") else 0))
        group = int(security.get("fsGroup", security.get("runAsGroup", user)))
        mounts = [self._mount(mount, volumes, user, group) for mount in container.get("volumeMounts", ())]
        mounts += [Mount(str(path), path) for path in self._shared]
        environment = image_environment()
        for variable in container.get("env", ()):
            value = self._value(variable)
            if value is not None:
                environment[variable["name"]] = _expand(value, environment)
        for source in container.get("envFrom", ()):
            found = self._objects.secrets.get((source.get("secretRef") or {}).get("name", ""), {})
            environment |= {**self._objects.config_maps.get((source.get("configMapRef") or {}).get("name", ""), found)}
        command = [_expand(word, environment) for word in [*container.get("command", ()), *container.get("args", ())]]
        files = {"/etc/hosts": self._hosts, **image_files()}
        return ContainerPlan(
            container["name"], command, environment, mounts, user=user, group=group, files=files,
            read_only_root=bool(security.get("readOnlyRootFilesystem")),
        )  # fmt: skip

    def _value(self, variable: Mapping[str, Any]) -> str | None:
        """Return the value of an environment variable of a container; None: it is not set."""
        if "valueFrom" not in variable:
            return str(variable.get("value", ""))
        source = variable["valueFrom"]
        if "fieldRef" in source:
            return self._field(source["fieldRef"]["fieldPath"])
        if "secretKeyRef" in source:
            return _entry(self._objects.secrets, source["secretKeyRef"])
        if "configMapKeyRef" in source:
            return _entry(self._objects.config_maps, source["configMapKeyRef"])
        raise PodFailedError(f"environment {variable['name']}: {sorted(source)} is not rehearsed")

    def _field(self, path: str) -> str:
        known = {
            "status.podIP": self.address,
            "status.hostIP": PodNetwork.gateway,
            "metadata.name": self.name,
            "metadata.namespace": self.document["metadata"].get("namespace", "default"),
            "spec.nodeName": self.node.name,
        }
        label = _LABEL.fullmatch(path)
        return self.labels[label[1]] if label else known[path]

    def _mount(self, mount: Mapping[str, Any], volumes: Mapping[str, Document], user: int, group: int) -> Mount:
        volume = volumes[mount["name"]]
        read_only = bool(mount.get("readOnly"))
        if "persistentVolumeClaim" in volume:
            source = self.node.place("claims", volume["persistentVolumeClaim"]["claimName"])
        elif "hostPath" in volume:
            source = self.node.place("host", volume["hostPath"]["path"])
        elif "emptyDir" in volume:
            if (volume["emptyDir"] or {}).get("medium") == "Memory":
                return Mount(mount["mountPath"], None)
            source = self.folder / "volumes" / volume["name"]
            source.mkdir(parents=True, exist_ok=True)
        else:
            source, read_only = self._written(volume), True
        source = source / str(mount["subPath"]) if "subPath" in mount else source
        if source.is_dir() and not read_only and has_user(user):
            shutil.chown(source, user, group)  # as the kubelet does with fsGroup, and an administrator with a host path
        return Mount(mount["mountPath"], source, read_only)

    def _written(self, volume: Mapping[str, Any]) -> Path:
        """Write a secret or config map to files."""
        asked = volume.get("secret") or volume.get("configMap")
        if asked is None:
            raise PodFailedError(f"volume {volume['name']}: {sorted(volume)} is not rehearsed")
        held = self._objects.secrets if "secret" in volume else self._objects.config_maps
        entries = held[asked.get("secretName") or asked["name"]]
        items = {item["key"]: item["path"] for item in asked.get("items", ())} or {key: key for key in entries}
        folder = self.folder / "volumes" / str(volume["name"])
        folder.mkdir(parents=True, exist_ok=True)
        for key, path in items.items():
            (folder / path).write_text(entries[key])
        return folder


def await_ready(pods: Sequence[Pod], *, timeout_s: float) -> None:
    """Wait until Pods are ready.

    Raises:
        PodFailedError: One failed, or it took too long.
    """
    deadline_s = time.monotonic() + timeout_s
    while not all(pod.is_ready for pod in pods):
        failed = [pod for pod in pods if not pod.is_alive]
        if failed or time.monotonic() > deadline_s:
            late = failed or [pod for pod in pods if not pod.is_ready]
            raise PodFailedError("not ready:\n" + "\n".join(pod.last_words() for pod in late))
        time.sleep(TICK_S)


def _entry(objects: Mapping[str, Mapping[str, str]], reference: Mapping[str, Any]) -> str | None:
    with contextlib.suppress(KeyError):
        return objects[reference["name"]][reference["key"]]
    if reference.get("optional"):
        return None
    raise PodFailedError(f"no key {reference['key']!r} in a secret or config map {reference['name']!r}")


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by the variable, as Kubernetes does; unknown ones stay."""
    return re.sub(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", lambda found: environment.get(found[1], found[0]), text)
