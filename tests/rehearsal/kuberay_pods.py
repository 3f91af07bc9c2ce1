"""A double of how KubeRay 1.7 makes Pods of a RayCluster: the container's command, environment, probes and volumes.

Each rule names the Go function that it mirrors (`ray-operator/controllers/ray/common/pod.go` unless another file is
named). Rules for things that our manifests do not use (TLS, the history server, several hosts per replica) are absent.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from tests.rehearsal.quantities import whole_units

GCS_PORT: Final = "6379"
AGENT_PORT: Final = "52365"
METRICS_PORT: Final = "8080"
SERVE_PORT: Final = 8000
SERVE_LABEL: Final = "ray.io/serve"
CLUSTER_LABEL: Final = "ray.io/cluster"
GROUP_LABEL: Final = "ray.io/group"
NODE_LABEL: Final = "ray.io/node-type"
EMBEDDED_STORE: Final = "/data/gcs"
_TAKES_A_BOOLEAN: Final = frozenset({"log-color", "include-dashboard", "include-log-monitor"})

Document = dict[str, Any]


class NodeType(StrEnum):
    """What a Pod of Ray is."""

    HEAD = "head"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class ClusterNames:
    """What Pods of one RayCluster are told of it."""

    cluster: str
    namespace: str

    @property
    def head_service(self) -> str:
        """The name by which workers find the head: `utils.GenerateFQDNServiceName`."""
        return f"{self.cluster}-head-svc.{self.namespace}.svc.cluster.local"


def head_pod(cluster: Mapping[str, Any], names: ClusterNames) -> Document:
    """Return the head's Pod: `DefaultHeadPodTemplate`, then `BuildPod`."""
    return _pod(cluster, cluster["headGroupSpec"], names, NodeType.HEAD, "headgroup", name=f"{names.cluster}-head")


def worker_pods(cluster: Mapping[str, Any], names: ClusterNames) -> list[Document]:
    """Return the workers' Pods: `DefaultWorkerPodTemplate`, then `BuildPod`, as often as each group has replicas."""
    return [
        _pod(
            cluster, group, names, NodeType.WORKER, group["groupName"], name=f"{names.cluster}-{group['groupName']}-{i}"
        )
        for group in cluster.get("workerGroupSpecs", ())
        for i in range(group.get("replicas", group.get("minReplicas", 0)))
    ]


def _pod(
    cluster: Mapping[str, Any], group: Mapping[str, Any], names: ClusterNames, kind: NodeType, label: str, *, name: str
) -> Document:
    pod: Document = copy.deepcopy(dict(group["template"]))
    metadata = pod.setdefault("metadata", {})
    metadata["name"], metadata["namespace"] = name, names.namespace
    # `labelPod`: these three cannot be overridden. `BuildPod`: a worker serves by its probe, the head by its label.
    fixed = {CLUSTER_LABEL: names.cluster, NODE_LABEL: str(kind), GROUP_LABEL: label}
    serves = {SERVE_LABEL: "false" if kind is NodeType.HEAD else "true"}
    metadata["labels"] = {**(metadata.get("labels") or {}), **fixed, **serves}
    spec: Document = pod["spec"]
    container: Document = spec["containers"][0]
    container["env"] = list(container.get("env") or [])
    params = _start_params(cluster, group, kind, names)
    if kind is NodeType.WORKER:
        spec.setdefault("initContainers", []).append(_wait_for_head(container, names))
    _set_fault_tolerance(cluster, pod, kind, params, names)
    _set_authentication(cluster, spec, names)
    _mount_empty_dir(spec, container, "shared-mem", "/dev/shm")
    command = ray_start_command(kind, params, container.get("resources") or {})
    overwrites = str((metadata.get("annotations") or {}).get("ray.io/overwrite-container-cmd", "")).lower() == "true"
    own = " ".join([*(container.get("command") or ()), *(container.get("args") or ())])
    if not overwrites and "ray start" not in own:  # `BuildPod`
        started = f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {command}"
        container["command"] = ["/bin/bash", "-c", "--"]
        container["args"] = [f"{own} && {started}" if own else started]
    _set_environment(container, kind, command, names, pod=pod)
    _set_probes(container, kind, params, str(cluster.get("rayVersion", "")))
    return pod


def _start_params(
    cluster: Mapping[str, Any], group: Mapping[str, Any], kind: NodeType, names: ClusterNames
) -> dict[str, str]:
    """Complete `rayStartParams`: `setMissingRayStartParams`, and `DefaultHeadPodTemplate` for the autoscaler."""
    params = {key: str(value) for key, value in (group.get("rayStartParams") or {}).items()}
    if kind is NodeType.WORKER:
        params.setdefault("address", f"{names.head_service}:{GCS_PORT}")
    else:
        params.setdefault("dashboard-host", "0.0.0.0")
        if cluster.get("enableInTreeAutoscaling"):
            params["no-monitor"] = "true"
    params.setdefault("metrics-export-port", METRICS_PORT)
    params["block"] = "true"
    params.setdefault("dashboard-agent-listen-port", AGENT_PORT)
    return params


def ray_start_command(kind: NodeType, params: dict[str, str], resources: Mapping[str, Any]) -> str:
    """Return the command and complete `params` by the container's resources: `generateRayStartCommand`.

    CPUs: the limit, else the request. Memory: the limit. GPUs: the first limit whose name ends in `gpu`.
    """
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    cpu = whole_units(limits.get("cpu", 0)) or whole_units(requests.get("cpu", 0))
    if cpu and "num-cpus" not in params:
        params["num-cpus"] = str(cpu)
    if "memory" in limits and "memory" not in params:
        params["memory"] = str(whole_units(limits["memory"]))
    for resource in sorted(limits):
        if resource.endswith("gpu") and whole_units(limits[resource]) and "num-gpus" not in params:
            params["num-gpus"] = str(whole_units(limits[resource]))
    head = "--head " if kind is NodeType.HEAD else ""
    return f"ray start {head}{_flags(params)}"


def _flags(params: Mapping[str, str]) -> str:
    """Write options in order of their names: `convertParamMap`."""
    flags = []
    for option, argument in sorted(params.items()):
        if argument.lower() not in ("true", "false") or option in _TAKES_A_BOOLEAN:
            flags.append(f"--{option}={argument}")
        elif argument.lower() == "true":
            flags.append(f"--{option}")
    return " ".join(flags)


def _wait_for_head(container: Mapping[str, Any], names: ClusterNames) -> Document:
    """Return the init container of workers: `DefaultWorkerPodTemplate`. Its limits are fixed in KubeRay."""
    address = f"{names.head_service}:{GCS_PORT}"
    amounts = {"cpu": "200m", "memory": "256Mi"}
    return {
        "name": "wait-gcs-ready",
        "image": container.get("image"),
        "command": ["/bin/bash", "-c", "--"],
        "args": [f"until ray health-check --address {address} > /dev/null 2>&1; do sleep 5; done"],
        "env": copy.deepcopy(container["env"]),
        "volumeMounts": copy.deepcopy(container.get("volumeMounts") or []),
        "securityContext": copy.deepcopy(container.get("securityContext") or {}),
        "resources": {"limits": amounts, "requests": amounts},
    }


def _set_fault_tolerance(
    cluster: Mapping[str, Any], pod: Document, kind: NodeType, params: dict[str, str], names: ClusterNames
) -> None:
    """`configureGCSFaultTolerance` with `configureRedisFT` and `configureEmbeddedFT`."""
    options = cluster.get("gcsFaultToleranceOptions")
    if options is None:
        return
    container = pod["spec"]["containers"][0]
    if kind is NodeType.WORKER:
        _add(container, "RAY_gcs_rpc_server_reconnect_timeout_s", "600")
        return
    if "redisAddress" in options:
        _add(container, "RAY_external_storage_namespace", str(options.get("externalStorageNamespace", names.cluster)))
        _add(container, "RAY_REDIS_ADDRESS", str(options["redisAddress"]))
        if "redisPassword" in options:
            params["redis-password"] = "$REDIS_PASSWORD"
            container["env"].append({"name": "REDIS_PASSWORD", **options["redisPassword"]})
        return
    _add(container, "RAY_gcs_storage", "rocksdb")
    _add(container, "RAY_gcs_storage_path", EMBEDDED_STORE)
    container.setdefault("volumeMounts", []).append({"name": "gcs-storage", "mountPath": EMBEDDED_STORE})
    claim = (options.get("storage") or {}).get("claimName") or f"{names.cluster}-gcs-storage"
    volume = {"name": "gcs-storage", "persistentVolumeClaim": {"claimName": claim}}
    pod["spec"].setdefault("volumes", []).append(volume)


def _set_authentication(cluster: Mapping[str, Any], spec: Document, names: ClusterNames) -> None:
    """`configureTokenAuth`: the Ray container and `wait-gcs-ready` get the token of the Secret."""
    options = cluster.get("authOptions") or {}
    if options.get("mode") != "token":
        return
    waiting = [c for c in spec.get("initContainers", ()) if c["name"] == "wait-gcs-ready"]
    reference = {"name": options.get("secretName") or names.cluster, "key": "auth_token"}
    for container in [spec["containers"][0], *waiting]:
        _add(container, "RAY_AUTH_MODE", "token")
        if not _has(container, "RAY_AUTH_TOKEN"):
            container["env"].append({"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": reference}})


def _mount_empty_dir(spec: Document, container: Document, name: str, path: str) -> None:
    """`addEmptyDir`: nothing where something is mounted there already; the size is the container's memory request."""
    mounts = container.setdefault("volumeMounts", [])
    if any(mount["mountPath"] == path for mount in mounts):
        return
    mounts.append({"name": name, "mountPath": path})
    volumes = spec.setdefault("volumes", [])
    if all(volume["name"] != name for volume in volumes):
        volumes.append({"name": name, "emptyDir": {"medium": "Memory"}})


def _set_environment(
    container: Document, kind: NodeType, command: str, names: ClusterNames, *, pod: Mapping[str, Any]
) -> None:
    """`setContainerEnvVars`; what the manifest sets wins, but for what KubeRay always writes itself."""
    address = "127.0.0.1" if kind is NodeType.HEAD else names.head_service
    written = {
        "RAY_CLUSTER_NAME": names.cluster,
        "RAY_CLUSTER_NAMESPACE": names.namespace,
        "RAY_CLOUD_INSTANCE_ID": pod["metadata"]["name"],
        "RAY_NODE_TYPE_NAME": pod["metadata"]["labels"][GROUP_LABEL],
        "KUBERAY_GEN_RAY_START_CMD": command,
    }
    if kind is NodeType.WORKER:
        written |= {"FQ_RAY_IP": address, "RAY_IP": address.partition(".")[0]}
    container["env"] += [{"name": name, "value": value} for name, value in written.items()]
    _add(container, "RAY_PORT", GCS_PORT)
    _add(container, "RAY_timeout_ms_task_wait_for_death_info", "0")
    _add(container, "RAY_gcs_server_request_timeout_seconds", "5")
    _add(container, "RAY_SERVE_KV_TIMEOUT_S", "5")
    _add(container, "RAY_ADDRESS", f"{address}:{GCS_PORT}")
    _add(container, "RAY_USAGE_STATS_KUBERAY_IN_USE", "1")
    _add(container, "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE", "1")


def _set_probes(container: Document, kind: NodeType, params: Mapping[str, str], ray_version: str) -> None:
    """`initLivenessAndReadinessProbe` for Ray 2.53 and newer; probes of the manifest stay as they are."""
    release = re.match(r"(\d+)\.(\d+)", ray_version)
    if release is None or (int(release[1]), int(release[2])) < (2, 53):
        raise ValueError(f"rayVersion: expected 2.53 or newer, where nodes answer /api/healthz, found {ray_version!r}")
    port = int(params["dashboard-agent-listen-port"])
    timeout_s = 5 if kind is NodeType.HEAD else 2
    http = {"httpGet": {"path": "/api/healthz", "port": port}, "timeoutSeconds": timeout_s, "periodSeconds": 5}
    container.setdefault("livenessProbe", {**http, "initialDelaySeconds": 30, "failureThreshold": 120})
    if "readinessProbe" in container:
        return
    container["readinessProbe"] = {**http, "initialDelaySeconds": 10, "failureThreshold": 10}
    if kind is NodeType.WORKER:
        command = (
            f"wget --tries 1 -T 2 -q -O- http://localhost:{port}/api/local_raylet_healthz | grep success && "
            f"wget --tries 1 -T 10 -q -O- http://localhost:{SERVE_PORT}/-/healthz | grep success"
        )
        container["readinessProbe"] |= {"exec": {"command": ["bash", "-c", command]}, "failureThreshold": 1}
        del container["readinessProbe"]["httpGet"]


def _has(container: Mapping[str, Any], name: str) -> bool:
    return any(variable["name"] == name for variable in container["env"])


def _add(container: Document, name: str, value: str) -> None:
    if not _has(container, name):
        container["env"].append({"name": name, "value": value})
