"""A server of a temporal family, fed and asked as a fleet's agents and dashboards would, with every answer recorded."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

from serve_app.domain.windows import Metric, Record, WindowRules
from serve_app.usecases.keep_windows import WindowTable
from tests.integration import instance
from tests.integration.instance import Instance, await_that, processes_of, shipped_config

STEP_S = 300
METRICS = ("cpu_percent", "memory_percent", "disk_io_mb_per_s")
ENCODER, HORIZON = 24, 8
RETRY_S = 0.05


@dataclass(frozen=True)
class FleetServer:
    """The running server, and short ways to talk to it."""

    instance: Instance
    http: httpx.Client

    @property
    def root(self) -> Path:
        return self.instance.state.path / "models" / "tft"

    @property
    def admin(self) -> dict[str, str]:
        return {"X-API-Key": (self.instance.state.path / "admin-token").read_text().strip()}

    def current(self) -> httpx.Response:
        return self.http.get("/predictions/current")

    def kept(self) -> dict[str, Any]:
        told: dict[str, Any] = self.http.get("/observations").json()
        return told

    def reload(self, version: str) -> dict[str, Any]:
        told = self.http.post(
            "/admin/reload-model", params={"model_path": f"models/tft/{version}"}, headers=self.admin, timeout=120
        )
        body: dict[str, Any] = told.json()
        return body

    def windows(self, servers: Sequence[str]) -> dict[str, bytes]:
        """Return the bytes of the windows of some servers, float32 (steps, metrics)."""
        told = {name: self.http.get(f"/observations/{name}").json() for name in servers}
        return {name: np.array(window["values"], np.float32).tobytes() for name, window in told.items()}

    def await_another(self, deployment: str, killed: psutil.Process, *, timeout_s: float = 60) -> None:
        """Wait until another process runs the one replica of a deployment."""

        def is_replaced() -> bool:
            found = processes_of(self.instance, f"ray::ServeReplica:serve-app:{deployment}")
            return any(process.pid != killed.pid for process in found)

        await_that(is_replaced, timeout_s=timeout_s)

    def process(self, deployment: str) -> psutil.Process:
        """Return the process of the one replica of a deployment."""
        (process,) = processes_of(self.instance, f"ray::ServeReplica:serve-app:{deployment}")
        return process


@contextmanager
def running(directory: Path, *, encoder: int = ENCODER, **changed: Any) -> Iterator[FleetServer]:
    """Start a server of `configs/tft.yaml` with windows of `encoder` steps, that trains nothing by itself.

    `changed` are settings of its family.
    """
    document = shipped_config("tft.yaml")
    args = document["applications"][0]["args"]
    args["gateway"] = {"num_cpus": 0.1}
    family = args["families"]["tft"]
    family["windows"]["length"] = encoder
    family["pools"] = [{"num_cpus": 0.1}]
    family |= {"retrain": None} | changed
    with instance.running(directory, document, timeout_s=30) as (started, http):
        yield FleetServer(started, http)


@dataclass
class Feeder:
    """Sends one step of every server after the other, and each again until it is acknowledged.

    `expected` holds what was acknowledged, by the product's own rules. The steps lie in the past: only their order
    counts.
    """

    address: str
    servers: tuple[str, ...]
    pause_s: float = 0.02
    length: int = ENCODER
    expected: WindowTable = field(init=False)
    longest_outage_s: float = 0.0
    n_steps: int = 0
    n_retries: int = 0
    problem: str | None = None
    step: int = field(default_factory=lambda: int(time.time()) // STEP_S - 50_000)
    _ends: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.expected = WindowTable(WindowRules(tuple(map(Metric, METRICS)), length=self.length, step_s=STEP_S))

    def warm_up(self) -> None:
        """Send as many steps as a window has."""
        with httpx.Client(base_url=self.address, trust_env=False, timeout=30) as http:
            for _ in range(self.length):
                self.send(http)

    def send(self, http: httpx.Client) -> None:
        """Send one step until it is acknowledged."""
        self.step += 1
        records = [self._record(server, i) for i, server in enumerate(self.servers)]
        body = [{"server": each.entity, "timestamp": each.at_s, "metrics": dict(each.values)} for each in records]
        began_s = time.monotonic()
        while not self._is_taken(http, body):
            self.n_retries += 1
            self._ends.wait(RETRY_S)
        self.longest_outage_s = max(self.longest_outage_s, time.monotonic() - began_s)
        for record in records:
            self.expected.put(record)
        self.n_steps += 1

    def _is_taken(self, http: httpx.Client, body: list[dict[str, Any]]) -> bool:
        try:
            told = http.post("/observations", json=body)
        except httpx.TransportError:
            return False
        if told.status_code == 503:
            return False
        assert told.status_code == 200, told.text
        return True

    def _record(self, server: str, i: int) -> Record:
        phase = self.step / 7 + i
        values = {"cpu_percent": 50 + 40 * np.sin(phase), "memory_percent": 30 + i % 50, "disk_io_mb_per_s": 5 + i / 8}
        return Record(
            server, self.step * STEP_S + 1.5, {name: float(np.float32(value)) for name, value in values.items()}
        )

    def again(self) -> "Feeder":
        """Return another that goes on where this one is, and knows what this one knows."""
        other = Feeder(self.address, self.servers, length=self.length, step=self.step)
        other.expected = self.expected
        return other

    @contextmanager
    def feeding(self) -> Iterator["Feeder"]:
        """Send step after step for as long as the block runs."""
        thread = threading.Thread(target=self._feed, name="feeder")
        thread.start()
        try:
            yield self
        finally:
            self._ends.set()
            thread.join(60)
        assert self.problem is None, self.problem

    def _feed(self) -> None:
        try:
            with httpx.Client(base_url=self.address, trust_env=False, timeout=30) as http:
                while not self._ends.is_set():
                    self.send(http)
                    self._ends.wait(self.pause_s)
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"

    def await_steps(self, n: int, *, timeout_s: float = 60) -> None:
        """Wait until so many more steps are acknowledged."""
        goal = self.n_steps + n
        await_that(lambda: self.n_steps >= goal or self.problem is not None, timeout_s=timeout_s)
        assert self.problem is None, self.problem

    def values(self, server: str) -> NDArray[np.float32]:
        """Return the window of a server as it must be, float32 (steps, metrics)."""
        values: NDArray[np.float32] = self.expected.windows([server]).values[0]
        return values

    def windows(self, servers: Sequence[str]) -> dict[str, bytes]:
        """Return the bytes of windows as they must be; see `FleetServer.windows`."""
        return {name: self.values(name).tobytes() for name in servers}


@dataclass(frozen=True)
class Asked:
    """One answer of `GET /predictions/current`; status 0 where there was none."""

    at_s: float
    seconds: float
    status: int
    version: str = ""
    generation: int = 0
    ready: int = 0
    not_ready: int = 0
    is_from_memory: bool = False


@dataclass
class Dashboard:
    """Asks for the forecasts of the fleet again and again."""

    address: str
    answers: list[Asked] = field(default_factory=list)
    _ends: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def looking(self, *, n: int = 2) -> Iterator["Dashboard"]:
        """Have `n` dashboards ask for as long as the block runs."""
        threads = [threading.Thread(target=self._look, name=f"dashboard {i}") for i in range(n)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._ends.set()
            for thread in threads:
                thread.join(60)

    def _look(self) -> None:
        with httpx.Client(base_url=self.address, trust_env=False, timeout=30) as http:
            while not self._ends.is_set():
                self.answers.append(_asked(http))
                self._ends.wait(0.01)

    @property
    def failed(self) -> list[Asked]:
        return [each for each in self.answers if each.status != 200]

    @property
    def versions(self) -> list[str]:
        """The versions in the order in which they answered, each once in a row."""
        told = (each.version for each in sorted(self.answers, key=lambda each: each.at_s) if each.version)
        return [version for version, _ in itertools.groupby(told)]


def _asked(http: httpx.Client) -> Asked:
    began_s = time.monotonic()
    try:
        told = http.get("/predictions/current")
    except httpx.TransportError:
        return Asked(began_s, time.monotonic() - began_s, 0)
    seconds = time.monotonic() - began_s
    if told.status_code != 200:
        return Asked(began_s, seconds, told.status_code)
    facts = told.json()["metadata"]
    servers = facts["servers"]
    return Asked(
        began_s, seconds, 200, facts["model_version"], facts["generation"], servers["ready"], servers["not_ready"],
        facts["store_error"] is not None,
    )  # fmt: skip
