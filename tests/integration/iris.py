"""The family iris on a running server: asking for changes, waiting for states, judging what traffic was answered."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import httpx
import psutil

from tests.integration import instance
from tests.integration.conftest import IRIS_ROW, Server
from tests.integration.instance import await_that
from tests.traffic import Answer, Traffic

BODY = json.dumps({"instances": [IRIS_ROW]}).encode()
MODEL_REPLICA = "ray::ServeReplica:serve-app:iris-cpu"
GATEWAY = "ray::ServeReplica:serve-app:gateway"
RECONCILER = "ray::ServeReplica:serve-app:reconciler"
CONTROLLER = "ray::ServeController"
SETTLE_TIMEOUT_S = 60.0
"""Replicas start in seconds; a busy machine with two cores takes many times that."""


def traffic(server: Server, *, connections: int = 4, rate: float | None = None) -> Any:
    """Return a context manager under which requests for iris flow."""
    return Traffic.started(f"{server.instance.address}/predict/iris", BODY, connections=connections, rate=rate)


def reload(server: Server, version: str | None = None, **query: str) -> dict[str, Any]:
    """Ask for a version, or for what the source calls current, and return the answer's body."""
    body: dict[str, Any] = ask_for(server, version, **query).json()
    return body


def start_reload(server: Server, version: str) -> str:
    """Ask for a version without waiting for it, and return the path that tells how that goes on."""
    answer = ask_for(server, version, wait="false")
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


def ask_for(server: Server, version: str | None, **query: str) -> httpx.Response:
    """Ask for a version, or for what the source calls current."""
    params = {"family": "iris", **query}
    if version is not None:
        params["model_path"] = f"models/iris/{version}"
    return server.http.post("/admin/reload-model", params=params, headers=server.admin)


def current(server: Server) -> str:
    """Return the version that answers by default."""
    return str(server.http.get("/models/current", params={"family": "iris"}).json()["version"])


def health(server: Server) -> dict[str, Any]:
    """Return what /health says of the family."""
    body: dict[str, Any] = server.http.get("/health").json()["families"]["iris"]
    return body


def await_version(server: Server, version: str, *, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
    """Wait until a version answers by default."""
    await_that(lambda: current(server) == version, timeout_s=timeout_s)


def await_settled(server: Server, n_replicas: int, *, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
    """Wait until the gateways know of so many model replicas, each with what answers now and nothing on its way."""

    def is_settled() -> bool:
        told = health(server)
        ready = [r for r in told["replicas"] if told["model_version"] in r["loaded"] and not r["loading"]]
        return len(ready) == len(told["replicas"]) == n_replicas

    await_that(is_settled, timeout_s=timeout_s)


def processes_of(server: Server, title: str) -> list[psutil.Process]:
    """Return the processes of this instance whose title begins so."""
    return instance.processes_of(server.instance, title)


def never_goes_back(answers: Sequence[Answer]) -> bool:
    """True when no connection saw a generation lower than one it had seen before."""
    by_connection: dict[int, list[int]] = {}
    for answer in answers:
        by_connection.setdefault(answer.connection, []).append(answer.generation)
    return all(before <= after for seen in by_connection.values() for before, after in pairwise(seen))


def one_version_each(answers: Sequence[Answer]) -> bool:
    """True when every generation was answered by one version only."""
    versions: dict[int, set[str]] = {}
    for answer in answers:
        versions.setdefault(answer.generation, set()).add(answer.version)
    return all(len(found) == 1 for found in versions.values())
