"""Probes of a container as the kubelet runs them: when they are due, and what their results add up to."""

import http.client
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.rehearsal.containers import Container


class ProbeKind(StrEnum):
    """What a probe decides."""

    STARTUP = "startupProbe"
    READINESS = "readinessProbe"
    LIVENESS = "livenessProbe"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One execution (monotonic clock)."""

    at_s: float
    container: str
    kind: ProbeKind
    succeeded: bool
    took_s: float
    detail: str


@dataclass(slots=True)
class Probe:
    """One probe of one container. `holds` is what it says after its thresholds; liveness and startup begin as held."""

    kind: ProbeKind
    spec: Mapping[str, Any]
    due_s: float
    holds: bool
    failures: int = 0
    has_succeeded: bool = False
    ports: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def all_of(cls, container: Mapping[str, Any], *, started_s: float) -> "list[Probe]":
        """Return the probes of a container that has just started."""
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", ()) if "name" in port}
        return [
            cls(
                kind,
                container[kind],
                started_s + container[kind].get("initialDelaySeconds", 0),
                holds=kind is not ProbeKind.READINESS,
                ports=ports,
            )
            for kind in ProbeKind
            if kind in container
        ]

    @property
    def period_s(self) -> float:
        return float(self.spec.get("periodSeconds", 10))

    @property
    def failure_threshold(self) -> int:
        return int(self.spec.get("failureThreshold", 3))

    def run(self, container: Container, address: str) -> ProbeResult:
        """Execute it once and draw the conclusion."""
        start_s = time.monotonic()
        timeout_s = float(self.spec.get("timeoutSeconds", 1))
        if "httpGet" in self.spec:
            succeeded, detail = self._http(address, timeout_s)
        elif "exec" in self.spec:
            succeeded, detail = _execute(container, self.spec["exec"]["command"], timeout_s)
        elif "tcpSocket" in self.spec:
            succeeded, detail = self._tcp(address, timeout_s)
        else:
            raise ValueError(f"{self.kind}: expected httpGet, exec or tcpSocket, found {sorted(self.spec)}")
        self.due_s = max(self.due_s + self.period_s, start_s)
        self.failures = 0 if succeeded else self.failures + 1
        self.has_succeeded = self.has_succeeded or succeeded
        if succeeded or self.failures >= self.failure_threshold:
            self.holds = succeeded
        took_s = time.monotonic() - start_s
        return ProbeResult(start_s, container.plan.name, self.kind, succeeded, took_s, detail)

    def _http(self, address: str, timeout_s: float) -> tuple[bool, str]:
        asked = self.spec["httpGet"]
        headers = {header["name"]: header["value"] for header in asked.get("httpHeaders", ())}
        connection = http.client.HTTPConnection(address, self._port(asked), timeout=timeout_s)
        try:
            connection.request("GET", asked.get("path", "/"), headers=headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            return False, repr(error)
        finally:
            connection.close()
        return 200 <= answer.status < 400, f"{answer.status}"

    def _tcp(self, address: str, timeout_s: float) -> tuple[bool, str]:
        try:
            with socket.create_connection((address, self._port(self.spec["tcpSocket"])), timeout=timeout_s):
                return True, "connected"
        except OSError as error:
            return False, repr(error)

    def _port(self, asked: Mapping[str, Any]) -> int:
        port = asked["port"]
        return self.ports[port] if isinstance(port, str) else int(port)


def _execute(container: Container, command: list[str], timeout_s: float) -> tuple[bool, str]:
    try:
        done = container.run(command, timeout_s=timeout_s)
    except subprocess.TimeoutExpired:
        return False, f"no end within {timeout_s} s"
    return done.returncode == 0, (done.stdout + done.stderr).strip()[-200:]
