"""When probes are due and what their results add up to, against a real server on loopback."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.rehearsal.containers import Container
from tests.rehearsal.probes import Probe, ProbeKind

CONTAINER = cast(Container, SimpleNamespace(plan=SimpleNamespace(name="ray")))


class Answers(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(Answers.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    Answers.status = 200
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def probe(port: int, kind: ProbeKind = ProbeKind.READINESS, **settings: Any) -> Probe:
    spec = {"httpGet": {"path": "/-/healthz", "port": port}, "failureThreshold": 2, "periodSeconds": 5} | settings
    (made,) = Probe.all_of({kind.value: spec}, started_s=time.monotonic())
    return made


def run(one: Probe) -> bool:
    return one.run(CONTAINER, "127.0.0.1").succeeded


def test_readiness_has_to_be_earned_and_takes_more_than_one_miss_to_lose(port: int) -> None:
    one = probe(port)
    assert not one.holds
    assert run(one)
    assert one.holds
    Answers.status = 503
    assert not run(one)
    assert one.holds
    assert not run(one)
    assert not one.holds


def test_liveness_is_presumed(port: int) -> None:
    one = probe(port, ProbeKind.LIVENESS, failureThreshold=1)
    assert one.holds
    Answers.status = 500
    run(one)
    assert not one.holds


def test_a_success_forgets_the_misses(port: int) -> None:
    one = probe(port)
    for status in (200, 503, 200, 503):
        Answers.status = status
        run(one)
    assert one.holds


def test_a_refused_connection_is_a_miss_and_is_told() -> None:
    one = probe(1)
    result = one.run(CONTAINER, "127.0.0.1")
    assert not result.succeeded
    assert "ConnectionRefusedError" in result.detail


def test_the_first_run_waits_for_the_delay_and_later_ones_keep_the_period(port: int) -> None:
    started_s = time.monotonic()
    one = probe(port, initialDelaySeconds=30)
    first_due_s = one.due_s
    assert first_due_s == pytest.approx(started_s + 30, abs=1)
    run(one)
    assert one.due_s == pytest.approx(first_due_s + 5)


def test_a_port_may_be_named(port: int) -> None:
    container = {
        "ports": [{"name": "serve", "containerPort": port}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "serve"}},
    }
    (one,) = Probe.all_of(container, started_s=0.0)
    assert run(one)


def test_a_connection_is_enough_for_a_probe_that_asks_for_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        container = {
            "ports": [{"name": "redis", "containerPort": listening.getsockname()[1]}],
            "readinessProbe": {"tcpSocket": {"port": "redis"}},
        }
        (one,) = Probe.all_of(container, started_s=0.0)
        assert run(one)
    result = one.run(CONTAINER, "127.0.0.1")
    assert not result.succeeded
    assert "ConnectionRefusedError" in result.detail


def test_a_probe_that_is_not_rehearsed_is_refused() -> None:
    (one,) = Probe.all_of({"readinessProbe": {"grpc": {"port": 1}}}, started_s=0.0)
    with pytest.raises(ValueError, match="grpc"):
        run(one)
