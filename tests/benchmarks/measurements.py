"""What one run of the benchmark measured, as it lies in `docs/benchmarks.json`."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

PLACES = re.compile(r"\w+://\S+|(?:/[\w.@+~-]+){2,}")
LONGEST_REASON = 300


class Kind(StrEnum):
    """What a target is measured for."""

    OURS = "ours"
    PEER = "peer"
    CEILING = "ceiling"
    """The empty route through the same Gateway."""
    FORECASTER = "forecaster"


class Frozen(BaseModel):
    """A part of the document."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Load(Frozen):
    """One run of wrk against one target."""

    requests: int
    duration_s: float
    errors: Mapping[str, int]
    """By wrk's kinds: connect, read, write, timeout, and status for every answer of 400 and above."""
    p50_ms: float
    p75_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float

    @property
    def error_count(self) -> int:
        """All errors together."""
        return sum(self.errors.values())

    @property
    def good_per_s(self) -> float:
        """Requests a second that were answered well."""
        return (self.requests - self.errors["status"]) / self.duration_s


class Sample(Frozen):
    """One run of wrk, with where it stood and what it cost the server."""

    target: str
    connections: int
    round: int
    load: Load
    cpu_s: float
    """User and system time of the server's whole process tree during the run."""


class Trial(Frozen):
    """One setting of a peer, tried before the measurement. `good_per_s` is by connections."""

    setting: str
    good_per_s: Mapping[int, float]
    problem: str | None = None


class TargetFacts(Frozen):
    """What was measured under one name."""

    name: str
    title: str
    kind: Kind
    configuration: str
    versions: Mapping[str, str]
    trials: tuple[Trial, ...] = ()
    idle_cores: float | None = None
    """CPU seconds a second of the server's processes while nobody asks anything."""
    problem: str | None = None
    """Why it was not measured."""


class Machine(Frozen):
    """Where it ran."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    wrk: str
    load_before: float
    """The one-minute load average before anything was started."""


class Run(Frozen):
    """One run of the benchmark."""

    started_at: str
    command: str
    code: str
    """Commit of the measured code."""
    machine: Machine
    rounds: int
    seconds: int
    connections: tuple[int, ...]
    targets: tuple[TargetFacts, ...]
    samples: tuple[Sample, ...]


def reason(error: Exception) -> str:
    """Say in one line why something failed, without addresses and paths: it may quote a program, and is published."""
    return PLACES.sub("…", " ".join(str(error).split()))[:LONGEST_REASON]


def load_from_wrk(document: Mapping[str, Any]) -> Load:
    """Translate what `load.lua` prints."""
    latency = {f"{name}_ms": microseconds / 1000 for name, microseconds in document["latency_us"].items()}
    return Load(
        requests=document["requests"],
        duration_s=document["duration_us"] / 1e6,
        errors=document["errors"],
        **latency,
    )
