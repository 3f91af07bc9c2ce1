"""`serve-app registry`: an MLflow server of this state directory, from nothing to gone."""

import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from serve_app.cli.registry_record import TRACKING_URI, registry_environment, running_registry
from serve_app.cli.state_dir import StateDir
from tests.integration.instance import REPOSITORY
from tests.mlflow_server import free_port


def registry(state: StateDir, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from serve_app.cli import app; app()", "registry", *args]
    return subprocess.run(
        [*command, "--state-dir", str(state.path)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir.at(tmp_path / "state")


def test_registry_is_started_once_found_and_stopped(state: StateDir) -> None:
    port = free_port()
    try:
        up = registry(state, "up", "--port", str(port))
        assert up.returncode == 0, up.stdout + up.stderr
        record = running_registry(state)
        assert record is not None
        assert registry_environment(state) == {TRACKING_URI: record.uri} == {TRACKING_URI: f"http://127.0.0.1:{port}"}
        assert registry(state, "uri").stdout.strip() == record.uri
        assert httpx.get(f"{record.uri}/version", timeout=10, trust_env=False).is_success
        assert "already runs" in registry(state, "up").stdout
        assert running_registry(state) == record
        family = [psutil.Process(record.process.pid), *psutil.Process(record.process.pid).children(recursive=True)]
    finally:
        down = registry(state, "down")
    assert down.returncode == 0, down.stdout + down.stderr
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    assert running_registry(state) is None
    assert (state.path / "mlflow-server" / "mlflow.db").exists()  # what was registered stays


def test_registry_that_does_not_run_is_told_and_leads_nowhere(state: StateDir) -> None:
    asked = registry(state, "uri")
    assert asked.returncode == 1
    assert "`serve-app registry up` starts it" in asked.stderr
    assert registry(state, "down").returncode == 0
    assert registry_environment(state) == {}


def test_taken_port_is_told_with_its_holder(state: StateDir) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = registry(state, "up", "--port", str(port))
    assert refused.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken by" in refused.stderr
