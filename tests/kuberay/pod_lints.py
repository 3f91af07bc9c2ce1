"""Lints of Pods: containers, probes, volumes, images, resources, privileges."""

import re
from collections.abc import Iterator
from typing import Any, Final

from tests.kuberay import objects
from tests.kuberay.objects import Document
from tests.rehearsal.quantities import whole_units

MODELS: Final = "/models"
SERVE_PORT: Final = 8000
HEALTH_OF_SERVE: Final = "/-/healthz"
HEALTH_OF_RAY: Final = "/api/healthz"
PROMOTER: Final = "promoter"
_TAG: Final = re.compile(r"(?:[^:@]+(?::\d+/[^:@]+)?):(?P<tag>[\w.-]+)|.+@sha256:[0-9a-f]{64}")
_WRITABLE: Final = ("/tmp",)


def ray_comes_first(documents: list[Document]) -> Iterator[str]:
    """KubeRay gives its command and its variables to the first container, and looks for a port named `serve` there."""
    for group in objects.all_groups(documents):
        if not group.ray["name"].startswith("ray-"):
            yield f"{group.where}: expected Ray's container first, found {group.ray['name']}"
        ports = {port.get("name"): port["containerPort"] for port in group.ray.get("ports", ())}
        if ports.get("serve") != SERVE_PORT:
            yield f"{group.where}: expected a port named serve ({SERVE_PORT}), found {ports}"


def probes_are_our_own(documents: list[Document]) -> Iterator[str]:
    """KubeRay's probe of a RayService's workers needs bash and wget and forgives nothing.

    The head's must not ask for Serve: the operator deploys to a head that is ready, and no sooner.
    """
    for group in objects.all_groups(documents):
        probe = group.ray.get("readinessProbe") or {}
        wanted = (HEALTH_OF_RAY, 52365) if group.is_head else (HEALTH_OF_SERVE, SERVE_PORT)
        found = (probe.get("httpGet", {}).get("path"), probe.get("httpGet", {}).get("port"))
        if found != wanted:
            yield f"{group.where}: readinessProbe: expected httpGet {wanted[0]} on {wanted[1]}, found {probe or 'none'}"
        elif probe.get("failureThreshold", 3) < 2:
            yield f"{group.where}: readinessProbe: expected to forgive a miss, found failureThreshold 1"
        if "livenessProbe" not in group.ray:
            yield f"{group.where}: livenessProbe: expected one of our own, found none"


def sidecars_are_native(documents: list[Document]) -> Iterator[str]:
    """Ray's Pods may get `restartPolicy: Never`: an ordinary container that ends makes them unready for good."""
    for group in objects.all_groups(documents):
        spec = group.template["spec"]
        if others := [container["name"] for container in spec["containers"][1:]]:
            yield f"{group.where}: expected {', '.join(others)} among initContainers with restartPolicy Always"
        for container in spec.get("initContainers", ()):
            if container.get("restartPolicy") != "Always":
                yield f"{group.where}: {container['name']}: expected restartPolicy Always, found another"


def models_are_mounted_whole(documents: list[Document]) -> Iterator[str]:
    """A subPath resolves the link `current` once, when the container starts. Only the promoter may write."""
    for where, template in objects.templates(documents):
        for container in objects.containers(template):
            mounts = [mount for mount in container.get("volumeMounts", ()) if mount["name"] == "models"]
            is_promoter = container["name"].startswith(PROMOTER)
            for mount in mounts:
                if mount["mountPath"] != MODELS or "subPath" in mount or "subPathExpr" in mount:
                    yield f"{where}: {container['name']}: expected the whole of models at {MODELS}, found {mount}"
                if bool(mount.get("readOnly")) == is_promoter:
                    yield f"{where}: {container['name']}: expected models {'writable' if is_promoter else 'readOnly'}"
    for group in objects.all_groups(documents):
        if not any(mount["mountPath"] == MODELS for mount in group.ray.get("volumeMounts", ())):
            yield f"{group.where}: expected {MODELS} in Ray's container, found none"


def temporary_files_have_a_place(documents: list[Document]) -> Iterator[str]:
    """Ray's sessions and HAProxy's sockets are in /tmp."""
    for group in objects.all_groups(documents):
        mounted = {mount["mountPath"] for mount in group.ray.get("volumeMounts", ()) if not mount.get("readOnly")}
        for path in _WRITABLE:
            if path not in mounted:
                yield f"{group.where}: expected a volume at {path} that Ray can write to, found none"


def volumes_are_there(documents: list[Document]) -> Iterator[str]:
    """What is mounted is a volume of the Pod, and a claim is one of the manifests."""
    claims = {document["metadata"]["name"] for document in documents if document["kind"] == "PersistentVolumeClaim"}
    made = {
        claim["metadata"]["name"]
        for document in documents
        if document["kind"] == "StatefulSet"
        for claim in document["spec"].get("volumeClaimTemplates", ())
    }
    for where, template in objects.templates(documents):
        volumes = template["spec"].get("volumes", [])
        names = {volume["name"] for volume in volumes} | made
        for container in objects.containers(template):
            for mount in container.get("volumeMounts", ()):
                if mount["name"] not in names:
                    yield f"{where}: {container['name']}: expected a volume {mount['name']}, found none"
        for volume in volumes:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                yield f"{where}: expected a claim {claim}, found none"


def images_are_fixed(documents: list[Document]) -> Iterator[str]:
    """A tag that moves gives each node another program."""
    for where, template in objects.templates(documents):
        for container in objects.containers(template):
            found = _TAG.fullmatch(container.get("image", ""))
            if found is None or found["tag"] in ("latest", "nightly", "stable"):
                yield f"{where}: {container['name']}: expected a fixed tag, found {container.get('image')}"
            if container.get("imagePullPolicy") not in ("IfNotPresent", "Never"):
                yield f"{where}: {container['name']}: expected imagePullPolicy IfNotPresent, images may be imported"


def resources_are_stated(documents: list[Document]) -> Iterator[str]:
    """Every container asks for CPU and memory, has a limit of memory, and asks for no more than its limits."""
    for where, template in objects.templates(documents):
        for container in objects.containers(template):
            requests = container.get("resources", {}).get("requests", {})
            limits = container.get("resources", {}).get("limits", {})
            missing = [f"requests.{name}" for name in ("cpu", "memory") if name not in requests]
            missing += [] if "memory" in limits else ["limits.memory"]
            if missing:
                yield f"{where}: {container['name']}: expected {', '.join(missing)}"
            for name in sorted(requests.keys() & limits.keys()):
                if _thousandths(requests[name]) > _thousandths(limits[name]):
                    yield (
                        f"{where}: {container['name']}: expected a request of {name} up to the limit, "
                        f"found {requests[name]} above {limits[name]}"
                    )


def privileges_are_restricted(documents: list[Document]) -> Iterator[str]:
    """The rules of the Pod Security Standard `restricted`, but for directories of the node that hold bundles."""
    for where, template in objects.templates(documents):
        pod = template["spec"].get("securityContext", {})
        if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{where}: seccompProfile: expected RuntimeDefault"
        if pod.get("runAsNonRoot") is not True or not pod.get("runAsUser"):
            yield f"{where}: expected runAsNonRoot and a runAsUser"
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if template["spec"].get(name):
                yield f"{where}: {name}: expected false"
        for container in objects.containers(template):
            yield from (f"{where}: {container['name']}: {problem}" for problem in _privileges(container))
        for volume in template["spec"].get("volumes", ()):
            if "hostPath" in volume and volume["name"] != "models":
                yield f"{where}: {volume['name']}: expected no directory of the node but that of models"


def pods_have_no_account(documents: list[Document]) -> Iterator[str]:
    """No Pod talks to the API server; and variables of Services (`RAY_…`) would be read as settings of Ray."""
    for where, template in objects.templates(documents):
        if template["spec"].get("automountServiceAccountToken") is not False:
            yield f"{where}: automountServiceAccountToken: expected false"
        if template["spec"].get("enableServiceLinks") is not False:
            yield f"{where}: enableServiceLinks: expected false"


def namespace_allows_the_pods(documents: list[Document]) -> Iterator[str]:
    """The namespace enforces `restricted`, unless a Pod mounts a directory of the node, which that forbids."""
    on_node = any(
        "hostPath" in volume
        for _, template in objects.templates(documents)
        for volume in template["spec"].get("volumes", ())
    )
    wanted = "privileged" if on_node else "restricted"
    for document in documents:
        if document["kind"] == "Namespace":
            found = document["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
            if found != wanted:
                yield f"pod-security.kubernetes.io/enforce: expected {wanted} here, found {found}"


def _privileges(container: dict[str, Any]) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation: expected false"
    if context.get("privileged"):
        yield "privileged: expected false"
    capabilities = context.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield f"capabilities: expected all dropped and none added, found {capabilities or 'none named'}"


def _thousandths(quantity: object) -> int:
    """Return a quantity in thousandths, in which requests of CPUs are whole."""
    text = str(quantity)
    return whole_units(text.removesuffix("m")) if text.endswith("m") else 1000 * whole_units(text)


POD_LINTS: Final = (
    ray_comes_first, probes_are_our_own, sidecars_are_native, models_are_mounted_whole, temporary_files_have_a_place,
    volumes_are_there, images_are_fixed, resources_are_stated, privileges_are_restricted, pods_have_no_account,
    namespace_allows_the_pods,
)  # fmt: skip
