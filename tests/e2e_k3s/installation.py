"""The overlay `edge` in a namespace of its own on a cluster: installed, reached, its logs gathered, and removed."""

import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from tests.e2e_k3s.gate import Kubectl
from tests.kuberay.rendering import one, overlay, render

SERVICE: Final = "serve-app"
RUN_LABEL: Final = "serve-app/e2e"
READY_WITHIN_S: Final = 600.0
REMOVED_WITHIN_S: Final = 180.0
_CLUSTER_WIDE: Final = {"Namespace"}


@dataclass(frozen=True, slots=True)
class Installation:
    """What tests act on."""

    kubectl: Kubectl
    namespace: str
    http: httpx.Client
    admin_token: str

    @property
    def admin(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.admin_token}"}

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.kubectl.run("--namespace", self.namespace, *arguments, **options)

    def get(self, *arguments: str) -> dict[str, Any]:
        return self.kubectl.get("--namespace", self.namespace, *arguments)

    def applications(self) -> dict[str, str]:
        """Return the applications' states as the RayService tells them."""
        active = self.get("rayservice", SERVICE).get("status", {}).get("activeServiceStatus", {})
        return {name: told["status"] for name, told in (active.get("applicationStatuses") or {}).items()}

    def head(self) -> str:
        """Return the name of the head's Pod."""
        pods = self.get("pods", "--selector", "ray.io/node-type=head").get("items", [])
        return str(pods[0]["metadata"]["name"]) if pods else ""

    def in_sidecar(self, script: str, *, timeout_s: float = 60) -> str:
        """Run a shell script in the container that promotes, which alone may write to the models."""
        done = self.run("exec", self.head(), "--container", "promoter", "--", "sh", "-c", script, timeout_s=timeout_s)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def put_bundle(self, bundle: Path) -> None:
        """Copy a bundle into `/models/staging` and mark it last."""
        head = self.head()
        for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
            place = f"/models/staging/{path.relative_to(bundle)}"
            self.in_sidecar(f"mkdir -p {Path(place).parent}")
            copied = self.run("cp", "--container", "promoter", str(path), f"{head}:{place}", timeout_s=120)
            assert copied.returncode == 0, copied.stderr
        self.in_sidecar("touch /models/staging/READY")


def images() -> list[str]:
    """Return the images that the manifests name."""
    service = one(render(overlay("edge")), "RayService")
    pod = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    return sorted({container["image"] for container in [*pod["containers"], *pod.get("initContainers", ())]})


@contextmanager
def installed(kubectl: Kubectl, logs: Path) -> Iterator[Installation]:
    """Install the overlay under a name that nobody else has, and remove it whatever happens.

    Logs of operator, head and promoter, events and a description of every object go to `logs` before.
    """
    namespace = f"serve-app-e2e-{secrets.token_hex(4)}"
    admin_token = secrets.token_hex(32)
    try:
        _apply(kubectl, namespace, admin_token)
        await_that(lambda: _is_up(kubectl, namespace), timeout_s=READY_WITHIN_S, what="the RayService serves")
        with _forwarded(kubectl, namespace) as address, httpx.Client(base_url=address, trust_env=False) as http:
            yield Installation(kubectl, namespace, http, admin_token)
    finally:
        gather(kubectl, namespace, logs)
        _remove(kubectl, namespace)


def await_that(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Wait until a condition holds; fail when it does not within the time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(1)


def gather(kubectl: Kubectl, namespace: str, logs: Path) -> None:
    """Write down what there is to know of a run."""
    logs.mkdir(parents=True, exist_ok=True)
    asked = {
        "objects.txt": ("--namespace", namespace, "describe", "rayservice,raycluster,pod,pvc,daemonset"),
        "events.txt": ("--namespace", namespace, "get", "events", "--sort-by=.lastTimestamp"),
        "head.log": (
            *("--namespace", namespace, "logs", "--selector", "ray.io/node-type=head"),
            *("--all-containers", "--tail=2000", "--prefix"),
        ),
        "operator.log": (
            *("--namespace", "kuberay-system", "logs", "--tail=2000"),
            *("--selector", "app.kubernetes.io/name=kuberay-operator"),
        ),
    }
    for name, arguments in asked.items():
        try:
            done = kubectl.run(*arguments, timeout_s=60)
        except subprocess.TimeoutExpired as error:
            (logs / name).write_text(f"{error}\n")
        else:
            (logs / name).write_text(done.stdout + done.stderr)


def _apply(kubectl: Kubectl, namespace: str, admin_token: str) -> None:
    documents: list[dict[str, Any]] = [_namespace(namespace), *_secrets(namespace, admin_token)]
    for document in render(overlay("edge")):
        if document["kind"] not in _CLUSTER_WIDE:
            document["metadata"]["namespace"] = namespace
            documents.append(document)
    text = yaml.safe_dump_all(documents)
    done = kubectl.run("apply", "--server-side", "--filename", "-", stdin=text, timeout_s=120)
    assert done.returncode == 0, done.stderr


def _namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {RUN_LABEL: "true"}}}


def _secrets(namespace: str, admin_token: str) -> list[dict[str, Any]]:
    reload_token = secrets.token_hex(32)
    tokens = f"operator read,reload,rollout {admin_token}\npromoter reload {reload_token}\n"
    held = {
        "serve-app-ray": {"auth_token": secrets.token_hex(32)},
        "serve-app-tokens": {"tokens": tokens},
        "serve-app-reload": {"token": reload_token},
    }
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "stringData": data}
        for name, data in held.items()
    ]


def _is_up(kubectl: Kubectl, namespace: str) -> bool:
    status = kubectl.get("--namespace", namespace, "rayservice", SERVICE).get("status", {})
    applications = (status.get("activeServiceStatus") or {}).get("applicationStatuses") or {}
    return bool(applications) and all(told["status"] == "RUNNING" for told in applications.values())


@contextmanager
def _forwarded(kubectl: Kubectl, namespace: str) -> Iterator[str]:
    """Lead a free port of loopback to the serve Service."""
    command = ["kubectl", "--context", kubectl.context, "--namespace", namespace, "port-forward"]
    command += ["--address", "127.0.0.1", f"service/{SERVICE}-serve-svc", ":8000"]
    with tempfile.TemporaryFile("w+") as errors:
        forward = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert forward.stdout is not None
            line = forward.stdout.readline()  # Forwarding from 127.0.0.1:45123 -> 8000
            errors.seek(0)
            assert "127.0.0.1:" in line, errors.read()
            yield f"http://127.0.0.1:{line.partition('127.0.0.1:')[2].split()[0]}"
        finally:
            forward.terminate()
            forward.wait(10)
            if forward.stdout is not None:
                forward.stdout.close()


def _remove(kubectl: Kubectl, namespace: str) -> None:
    """Delete the RayService first, so that the operator clears up, then the namespace, with a deadline for each."""
    deadline = f"--timeout={REMOVED_WITHIN_S:g}s"
    for what in (("--namespace", namespace, "delete", "rayservice", SERVICE), ("delete", "namespace", namespace)):
        done = kubectl.run(
            *what,
            "--ignore-not-found",
            deadline,
            timeout_s=REMOVED_WITHIN_S + 30,
            request_timeout_s=int(REMOVED_WITHIN_S),
        )
        assert done.returncode == 0, f"{json.dumps(what)} left something behind: {done.stderr}"
