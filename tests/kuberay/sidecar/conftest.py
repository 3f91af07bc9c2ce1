"""The shells, by name, and a volume."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kuberay.sidecar import shells
from tests.kuberay.sidecar.shells import Shell


@pytest.fixture(scope="session", params=["dash", "busybox"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    if request.param == "dash":
        return shells.dash()
    return shells.busybox(tmp_path_factory.mktemp("busybox") / "bin")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """An empty volume of models; in memory where that can be, for the sidecar waits for the disk at every step."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="serve-app-models-", dir=where) as holder:
        directory = Path(holder) / "models"
        directory.mkdir()
        yield directory
