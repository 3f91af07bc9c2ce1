"""Records a sample of requests with their answers, redacted, beside the requests and the first to be dropped."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from serve_app.domain.errors import StoreError
from serve_app.domain.recording import NEUTRAL, RecordedRequest, RecordHead, ReplayError
from serve_app.domain.signature import Signature
from serve_app.usecases.coalesce_requests import Rows
from serve_app.usecases.replay_ports import RecordMeter, RequestLog
from serve_app.usecases.split_requests import OF_A_SPLIT
from serve_app.usecases.target import Target
from serve_app.usecases.write_behind import WaitingToBeWritten, write_for_ever

MAX_WAITING: Final = 500
"""Requests of a family that wait to be written; what comes on top is dropped: 1,000 a second are recorded at most."""
MAX_WAITING_VALUES: Final = 200_000
LIVE: Final = OF_A_SPLIT | {"default"}
"""Reasons of answers that were given to whoever asked for the family; what names a version is somebody's try."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """Of one family: share of the requests (0 to 1], and names of inputs whose values are not kept."""

    share: float = 1.0
    redact: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    at_s: float
    target: Target
    rows: Rows
    outputs: NDArray[Any]
    seconds: float


class _Family:
    __slots__ = ("log", "problem", "settings", "waiting")

    def __init__(self, log_: RequestLog, settings: RecordSettings) -> None:
        self.log = log_
        self.settings = settings
        self.waiting = WaitingToBeWritten[_Seen](most=MAX_WAITING, most_values=MAX_WAITING_VALUES)
        self.problem = ""


class RequestRecorder:
    """The recorded requests of this process, by family. Lives on one event loop.

    Args:
        logs: Where they are kept, and how; of families that are not among them nothing is recorded.
        meter: Counts what was kept and dropped.
        now_s: Seconds since the epoch.
        draw: Uniform in [0, 1).
    """

    def __init__(
        self,
        logs: Mapping[str, tuple[RequestLog, RecordSettings]],
        meter: RecordMeter,
        *,
        now_s: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._families = {family: _Family(*one) for family, one in logs.items()}
        self._meter = meter
        self._now_s = now_s
        self._draw = draw
        self._writing = asyncio.Lock()

    def offer(self, target: Target, rows: Rows, outputs: NDArray[Any], seconds: float) -> None:
        """Record an answer if it is in the sample and there is room; returns at once and never raises."""
        family = self._families.get(target.family)
        if family is None or target.reason not in LIVE or self._draw() >= family.settings.share:
            return
        if family.waiting.has_room():
            seen = _Seen(self._now_s(), target, rows, outputs, seconds)
            family.waiting.put(seen, len(rows) * len(rows[0]) + outputs.size)

    async def run(self) -> None:
        """Write every half second, for ever."""
        await write_for_ever(self.write, noun="recorded requests")

    async def write(self) -> None:
        """Write everything that waits. What cannot be written is dropped and counted."""
        async with self._writing:
            for name, family in self._families.items():
                await self._write(name, family)

    async def _write(self, name: str, family: _Family) -> None:
        waiting, dropped = family.waiting.take()
        kept, problem = 0, ""
        if waiting:
            try:
                kept = await asyncio.to_thread(_written, family.log, family.settings, waiting)
            except (StoreError, ReplayError) as error:
                problem = str(error)
            if problem and problem != family.problem:
                log.error("requests not recorded", family=name, reason=problem)
            family.problem = problem
        if waiting or dropped:
            self._meter.count_recorded(name, kept=kept, dropped=dropped + len(waiting) - kept)


def _written(log_: RequestLog, settings: RecordSettings, waiting: Sequence[_Seen]) -> int:
    """Redact and write requests, in a thread of their own; return how many were kept."""
    heads: dict[int, RecordHead] = {}
    by_head: dict[RecordHead, list[RecordedRequest]] = {}
    for seen in waiting:
        signature: Signature = seen.target.signature
        head = heads.get(id(signature))  # `waiting` holds the target, so nothing else has its id
        if head is None:
            head = heads[id(signature)] = RecordHead.of(signature, settings.redact)
        if seen.outputs.dtype.kind == "f" and not np.isfinite(seen.outputs).all():
            continue  # JSON has no word for it
        by_head.setdefault(head, []).append(
            RecordedRequest(
                seen.at_s, seen.target.version, redacted(seen.rows, head), seen.outputs.tolist(), seen.seconds
            )
        )
    return sum(log_.append(head, requests) for head, requests in by_head.items())


def redacted(rows: Rows, head: RecordHead) -> list[list[float]]:
    """Return a copy of the rows as floats, in which what may not be kept is neutral."""
    copied = np.array(rows, dtype=np.float64)
    copied[:, list(head.redacted_places)] = NEUTRAL
    listed: list[list[float]] = copied.tolist()
    return listed
