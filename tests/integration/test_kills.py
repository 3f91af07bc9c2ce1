"""`kill -9` of every kind of process while requests flow. Two model replicas and two gateways, so that one is left."""

import socket
import time
from collections.abc import Iterator, Sequence

import psutil
import pytest

from serve_app.cli.profile import Profile
from serve_app.cli.serve_api import ServeApi
from tests.bad_bundles import Kind, write_iris
from tests.integration import iris
from tests.integration.conftest import Server
from tests.integration.instance import await_that
from tests.traffic import Answer

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

RATE = 150.0
PORT_BACK_S = 6.0
FULL_SERVICE_S = 15.0
BACK_TIMEOUT_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def two_of_each(server: Server) -> Iterator[None]:
    server.deploy({"name": "iris-cpu", "num_replicas": 2}, {"name": "gateway", "num_replicas": 2})
    iris.await_settled(server, 2)
    yield
    server.deploy()
    iris.await_settled(server, 1)


def kill(server: Server, title: str) -> frozenset[int]:
    """Kill the newest process with a title, and return the pids of all that had it.

    The newest, for a HAProxy that was replaced at a change of its configuration lives on until its connections end.
    """
    found = iris.processes_of(server, title)
    max(found, key=psutil.Process.create_time).kill()
    return frozenset(process.pid for process in found)


def await_another(server: Server, title: str, known: frozenset[int]) -> None:
    """Wait until a process has the title that did not have it; it may be older, a worker that Ray kept for this."""

    def is_replaced() -> bool:
        return any(process.pid not in known for process in iris.processes_of(server, title))

    await_that(is_replaced, timeout_s=BACK_TIMEOUT_S)


def await_running(server: Server, deployment: str, n_replicas: int) -> None:
    """Wait until Serve routes to so many replicas of a deployment and wants no other number."""

    def is_running() -> bool:
        with ServeApi(server.instance.record) as api:
            (found,) = [known for known in api.status().deployments if known.name == deployment]
        return dict(found.replicas) == {"RUNNING": n_replicas}

    await_that(is_running, timeout_s=BACK_TIMEOUT_S)


def is_sound(answers: Sequence[Answer]) -> bool:
    good = [answer for answer in answers if answer.status == 200]
    return bool(good) and iris.never_goes_back(good) and iris.one_version_each(good)


def test_a_killed_reconciler_fails_no_request_and_a_change_goes_on_where_it_was(server: Server) -> None:
    """Killed once during the trial and once while the replicas prepare; the slow bundle gives the time for both."""
    root = server.models / "iris"
    write_iris(root, "kept")
    write_iris(root, "slow-kill", Kind.SLOW)
    assert iris.reload(server, "kept")["success"] is True
    with iris.traffic(server, rate=RATE) as traffic:
        history = server.http.get("/admin/audit", headers=server.admin).json()["entries"]
        operation = iris.start_reload(server, "slow-kill")
        for phase in ("trial", "prepare"):
            await_phase(server, operation, phase)
            await_another(server, iris.RECONCILER, kill(server, iris.RECONCILER))
            assert iris.current(server) == "kept"
        await_phase(server, operation, None)
        assert iris.current(server) == "slow-kill"
        newest, *before = server.http.get("/admin/audit", headers=server.admin).json()["entries"]
        assert (newest["action"], newest["outcome"], newest["from_version"]) == ("resume", "reloaded", "kept")
        assert before == history[: len(before)]
        assert iris.reload(server, "kept")["success"] is True
    assert traffic.failed() == []
    assert is_sound(traffic.answers)


def await_phase(server: Server, operation: str, phase: str | None) -> None:
    """Wait until an operation is in a phase; None: until it has ended well."""
    wanted = ("running", phase) if phase else ("reloaded", None)

    def is_there() -> bool:
        told = server.http.get(operation, headers=server.admin)
        return told.status_code == 200 and (told.json()["outcome"], told.json()["phase"]) == wanted

    await_that(is_there, timeout_s=BACK_TIMEOUT_S)


def test_a_killed_serve_controller_fails_no_request(server: Server) -> None:
    write_iris(server.models / "iris", "controlled")
    with iris.traffic(server, rate=RATE) as traffic:
        await_another(server, iris.CONTROLLER, kill(server, iris.CONTROLLER))
        await_that(lambda: iris.reload(server, "controlled")["success"] is True, timeout_s=BACK_TIMEOUT_S)
    assert traffic.failed() == []
    assert is_sound(traffic.answers)


def test_a_killed_model_replica_fails_no_request(server: Server) -> None:
    """The gateway sends what was out on it to the other one."""
    before = {replica["replica"] for replica in iris.health(server)["replicas"]}
    with iris.traffic(server, connections=16) as traffic:
        kill(server, iris.MODEL_REPLICA)
        await_that(
            lambda: len({replica["replica"] for replica in iris.health(server)["replicas"]} - before) == 1,
            timeout_s=BACK_TIMEOUT_S,
        )
        iris.await_settled(server, 2)
    assert traffic.failed() == []
    assert is_sound(traffic.answers)


def test_a_killed_gateway_fails_at_most_what_was_out_on_it(server: Server) -> None:
    connections = 16
    with iris.traffic(server, connections=connections) as traffic:
        killed_s = time.monotonic()
        await_another(server, iris.GATEWAY, kill(server, iris.GATEWAY))
        await_running(server, "gateway", 2)
    failed = traffic.failed()
    assert len(failed) <= connections
    assert all(answer.at_s - killed_s < 1.0 for answer in failed)
    assert is_sound(traffic.answers)


def test_a_killed_haproxy_is_back_within_seconds(server: Server) -> None:
    if server.instance.record.profile is not Profile.THROUGHPUT:
        pytest.skip("there is a HAProxy in the throughput profile only")
    with iris.traffic(server, rate=50) as traffic:
        killed_s = time.monotonic()
        kill(server, "haproxy")
        await_that(lambda: not is_open(server.instance.port), timeout_s=PORT_BACK_S)
        await_that(lambda: is_open(server.instance.port), timeout_s=BACK_TIMEOUT_S)
        port_back_s = time.monotonic() - killed_s
        await_that(lambda: server.http.get("/ready").status_code == 200, timeout_s=BACK_TIMEOUT_S)
    assert port_back_s <= PORT_BACK_S
    assert all(answer.at_s - killed_s <= FULL_SERVICE_S for answer in traffic.failed())
    assert is_sound(traffic.answers)


def is_open(port: int) -> bool:
    """True when somebody listens there."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
