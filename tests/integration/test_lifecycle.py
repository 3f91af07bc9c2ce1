"""`serve-app up` and `down` with a real Ray and a real HAProxy, but with an application of three lines."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from serve_app.cli import processes
from serve_app.cli.ports import choose_free, holder, is_free
from serve_app.cli.profile import Profile
from serve_app.cli.state_dir import StateDir
from tests.integration.instance import Instance, await_that

pytestmark = pytest.mark.ray


def an_instance(directory: Path, *, import_path: str = "tests.integration.tiny_app:build") -> Instance:
    config = directory / "config.yaml"
    application = {"name": "tiny", "route_prefix": "/", "import_path": import_path}
    config.write_text(yaml.safe_dump({"applications": [application]}))
    (port,) = choose_free(1)
    return Instance(state=StateDir.at(directory / "state"), port=port, config=config)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    instance = an_instance(tmp_path_factory.mktemp("lifecycle"))
    started = instance.up()
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        assert f"ready at http://127.0.0.1:{instance.port}" in started.stdout
        yield instance
    finally:
        instance.run("down")


def test_up_serves_on_the_asked_port(running: Instance) -> None:
    assert httpx.get(f"{running.record.address}/ready", trust_env=False).json()["status"] == "ok"


def test_a_second_up_says_so_and_changes_nothing(running: Instance) -> None:
    before = running.record
    again = running.up()
    assert again.returncode == 0
    assert again.stdout.strip() == f"already running at {before.address}, nothing changed"
    assert running.record == before
    assert processes.is_complete(processes.find(before.runtime_dir))


def test_another_instance_is_told_who_holds_the_port(running: Instance, tmp_path: Path) -> None:
    other = an_instance(tmp_path)
    refused = other.run("up", "--config", str(other.config), "--port", str(running.port))
    assert refused.returncode == 1
    assert f"port {running.port} on 127.0.0.1 is taken by {holder(running.port)}" in refused.stderr
    assert other.state.read_record() is None


def test_status_counts_replicas_and_shows_health(running: Instance) -> None:
    told = running.run("status").stdout
    assert f"running at {running.record.address}" in told
    assert "1/1 RUNNING" in told
    assert "health: ok" in told


def test_only_the_replicas_grpc_port_is_open_to_other_machines(running: Instance) -> None:
    """Ray's source binds that one to all interfaces; it is in the docstring of `profile` and asks for a token."""
    names = {process.pid: process.name() for process in processes.find(running.record.runtime_dir)}
    opened = [
        (names[connection.pid], connection.laddr)
        for connection in psutil.net_connections(kind="tcp")
        if connection.pid in names
        and connection.status == psutil.CONN_LISTEN
        and connection.laddr[:1] not in (("127.0.0.1",), ("::ffff:127.0.0.1",))
    ]
    assert all(name.startswith("ray::ServeReplica") for name, _ in opened), opened
    assert len(opened) <= 1, opened


def test_rays_own_interface_refuses_whoever_has_no_token(running: Instance) -> None:
    answer = httpx.get(f"{running.record.dashboard_address}/api/serve/applications/", trust_env=False)
    assert answer.status_code == 401


def test_deploy_changes_what_runs(running: Instance, tmp_path: Path) -> None:
    document = yaml.safe_load(running.config.read_text())
    document["applications"][0]["deployments"] = [{"name": "Tiny", "num_replicas": 2}]
    config = tmp_path / "two.yaml"
    config.write_text(yaml.safe_dump(document))
    deployed = running.run("deploy", str(config))
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert "2/2 RUNNING" in running.run("status").stdout


def test_down_ends_a_haproxy_that_lost_its_ray_and_leaves_nothing(running: Instance) -> None:
    """The last test of this module: it takes the instance down. HAProxy outlives the Ray that started it."""
    record = running.record
    if record.profile is not Profile.THROUGHPUT:
        pytest.skip("there is a HAProxy in the throughput profile only")
    haproxy: list[psutil.Process] = []
    ray: list[psutil.Process] = []
    for process in processes.find(record.runtime_dir):
        (haproxy if process.name() == "haproxy" else ray).append(process)
    for process in ray:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    await_that(lambda: not any(process.is_running() for process in ray), timeout_s=30)
    assert holder(running.port) in [f"haproxy (pid {process.pid})" for process in haproxy]

    stopped = running.run("down")

    assert stopped.returncode == 0, stopped.stderr
    assert "haproxy" in stopped.stdout
    assert processes.find(record.runtime_dir, record.processes) == []
    assert is_free(running.port)
    assert not record.runtime_dir.exists()
    assert (running.state.logs / "serve").is_dir()
    assert running.run("down").stdout.strip() == "nothing runs"


def test_an_application_that_cannot_start_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = an_instance(tmp_path, import_path="tests.integration.no_such_module:build")
    failed = broken.up()
    assert failed.returncode == 1
    assert "no_such_module" in failed.stderr
    assert broken.state.read_record() is None
    assert is_free(broken.port)
    assert (broken.state.logs / "serve").is_dir()
