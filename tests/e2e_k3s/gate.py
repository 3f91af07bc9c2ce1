"""Whether the suite may run: each check in order, each with its own reason and remedy."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.rehearsal.quantities import milli_units, whole_units

CONTEXT: Final = "E2E_K3S_CONTEXT"
REQUIRED: Final = "E2E_K3S_REQUIRED"
ANY_KUBERNETES: Final = "E2E_ALLOW_ANY_K8S"
CPU_MILLI: Final = 2000
MEMORY_BYTES: Final = 4 << 30
_TIMEOUT_S: Final = 30
_OURS: Final = re.compile(r"k3[sd]")


class MissingError(Exception):
    """Something is not there; the message says what, and how to provide it."""

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}. {remedy}")


@dataclass(frozen=True, slots=True)
class Kubectl:
    """`kubectl`, bound to one context."""

    context: str

    def run(
        self, *arguments: str, stdin: str | None = None, timeout_s: float = _TIMEOUT_S, request_timeout_s: int = 10
    ) -> subprocess.CompletedProcess[str]:
        """Run a command and return how it ended."""
        command = ["kubectl", "--context", self.context, f"--request-timeout={request_timeout_s}s", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)

    def get(self, *arguments: str) -> dict[str, Any]:
        """Return an object, or {} where there is none or it may not be seen."""
        done = self.run("get", *arguments, "--output", "json")
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return found


def open_gate(environment: Mapping[str, str], images: Sequence[str]) -> Kubectl:
    """Check everything, in order; `images` are those that the manifests name.

    Raises:
        MissingError: The first thing that is not there.
    """
    if shutil.which("kubectl") is None:
        raise MissingError("kubectl is not installed", "Install the one of your cluster's version and put it on PATH")
    kubectl = Kubectl(_context(environment))
    reached = kubectl.run("get", "--raw", "/readyz", request_timeout_s=5)
    if reached.returncode:
        raise MissingError(
            f"the API server of context {kubectl.context} does not answer ({reached.stderr.strip()[:200]})",
            "Start the cluster (`sudo systemctl start k3s`, `k3d cluster start`), or name another one",
        )
    nodes = kubectl.get("nodes").get("items", [])
    _check_kind(nodes, environment)
    _check_operator(kubectl)
    for image in images:
        _check_image(nodes, image)
    _check_room(nodes)
    return kubectl


def _context(environment: Mapping[str, str]) -> str:
    """Return the context that was named, else the only one whose name begins with k3s or k3d; never the current one."""
    if named := environment.get(CONTEXT):
        return named
    done = subprocess.run(
        ["kubectl", "config", "get-contexts", "--output", "name"],
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
    )  # fmt: skip
    found = [name for name in done.stdout.split() if _OURS.match(name)]
    if len(found) == 1:
        return found[0]
    told = f"{len(found)} contexts are named k3s… or k3d…" if found else "no context is named k3s… or k3d…"
    raise MissingError(f"no cluster is named ({told})", f"Set {CONTEXT} to a context of your kubeconfig")


def _check_kind(nodes: Sequence[Mapping[str, Any]], environment: Mapping[str, str]) -> None:
    versions = [node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes]
    if not any("+k3s" in version for version in versions) and environment.get(ANY_KUBERNETES) != "1":
        raise MissingError(
            f"no node runs k3s (found: {', '.join(versions) or 'no nodes'})",
            f"Set {ANY_KUBERNETES}=1 if this cluster is meant all the same",
        )


def _check_operator(kubectl: Kubectl) -> None:
    crd = kubectl.get("crd", "rayservices.ray.io")
    established = {c["type"] for c in crd.get("status", {}).get("conditions", ()) if c["status"] == "True"}
    serves_v1 = any(v["name"] == "v1" and v["served"] for v in crd.get("spec", {}).get("versions", ()))
    remedy = (
        "helm install kuberay-operator kuberay/kuberay-operator --version 1.7.0 -n kuberay-system --create-namespace"
    )
    if "Established" not in established or not serves_v1:
        raise MissingError("the CRD rayservices.ray.io (v1) is not established", remedy)
    found = kubectl.get("deployments", "--all-namespaces", "--selector", "app.kubernetes.io/name=kuberay-operator")
    available = [d for d in found.get("items", ()) if d.get("status", {}).get("availableReplicas", 0) > 0]
    if not available:
        raise MissingError("no operator of KubeRay is available", remedy)


def _check_image(nodes: Sequence[Mapping[str, Any]], image: str) -> None:
    held = {name for node in nodes for one in node["status"].get("images", ()) for name in one.get("names") or ()}
    if not any(name == image or name.endswith(f"/{image}") for name in held):
        raise MissingError(
            f"no node holds the image {image}",
            "Build it and import it on each node: `k3s ctr images import IMAGE.tar`",
        )


def _check_room(nodes: Sequence[Mapping[str, Any]]) -> None:
    cpu = sum(milli_units(node["status"]["allocatable"]["cpu"]) for node in nodes)
    memory = sum(whole_units(node["status"]["allocatable"]["memory"]) for node in nodes)
    if cpu < CPU_MILLI or memory < MEMORY_BYTES:
        raise MissingError(
            f"the nodes have {cpu / 1000:g} CPUs and {memory / 2**30:.1f} GiB to give",
            f"Give them {CPU_MILLI / 1000:g} CPUs and {MEMORY_BYTES / 2**30:g} GiB",
        )
