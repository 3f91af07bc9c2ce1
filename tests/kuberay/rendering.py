"""Renders the overlays of `kuberay/`: with `kubectl kustomize` where kubectl is, else with our double of it."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

from tests.kuberay import kustomize_double

REPOSITORY: Final = Path(__file__).parents[2]
KUBERAY: Final = REPOSITORY / "kuberay"
OVERLAYS: Final = ("edge", "cluster", "cluster-gpu")
_TIMEOUT_S: Final = 60

Document = dict[str, Any]


def overlay(name: str) -> Path:
    """Return the directory of an overlay."""
    return KUBERAY / "overlays" / name


def with_components(directory: Path, overlay: str, *components: str) -> Path:
    """Write an overlay of somebody who adds components, and return its directory; kustomize takes no absolute paths."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "serve-app",
        "resources": [_relative(KUBERAY / "overlays" / overlay, directory)],
        "components": [_relative(KUBERAY / "components" / component, directory) for component in components],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(settings))
    return directory


def render(directory: Path) -> list[Document]:
    """Return the documents of an overlay, sorted by kind and name."""
    documents = with_kubectl(directory) if has_kubectl() else kustomize_double.build(directory)
    return in_order(documents)


def has_kubectl() -> bool:
    """Whether the real thing is here."""
    return shutil.which("kubectl") is not None


def with_kubectl(directory: Path) -> list[Document]:
    """Render with `kubectl kustomize`; it needs no cluster."""
    command = ["kubectl", "kustomize", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document is not None]


def in_order(documents: list[Document]) -> list[Document]:
    """Sort by kind and name: the order of objects means nothing to Kubernetes."""
    return sorted(documents, key=lambda document: (document["kind"], document["metadata"]["name"]))


def one(documents: list[Document], kind: str) -> Document:
    """Return the only document of a kind."""
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def _relative(path: Path, directory: Path) -> str:
    return os.path.relpath(os.path.realpath(path), os.path.realpath(directory))
