"""Remembers what was predicted, for labels that come later: beside the requests, and the first to be dropped.

The newest rows that were written stay in memory as well. A label whose prediction still waits has it written first.
"""

import asyncio
import os
import random
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from numpy.typing import NDArray

from serve_app.domain.errors import StoreError
from serve_app.domain.labels import LossRule, Predicted, PredictionId, PredictionRecord
from serve_app.usecases.label_ports import LabelMeter, PredictionLog, Remembered
from serve_app.usecases.target import Target
from serve_app.usecases.write_behind import WaitingToBeWritten, write_for_ever

MAX_WAITING: Final = 20_000
"""Predictions of a family that wait to be written; what comes on top is dropped."""
MAX_WAITING_VALUES: Final = 1_000_000
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """Of one family: share of predictions that are kept, rows in memory, and losses (none: by the outputs' types)."""

    sample: float = 1.0
    remember: int = 10_000
    rules: tuple[LossRule, ...] = ()


class _Family:
    """What waits and what is remembered of one family."""

    __slots__ = ("is_failing", "known", "known_rows", "log", "settings", "waiting")

    def __init__(self, log_: PredictionLog, settings: LabelSettings) -> None:
        self.log = log_
        self.settings = settings
        self.waiting = WaitingToBeWritten[Remembered](most=MAX_WAITING, most_values=MAX_WAITING_VALUES)
        self.known: OrderedDict[int, PredictionRecord] = OrderedDict()
        self.known_rows = 0
        self.is_failing = False

    def keep(self, written: Sequence[tuple[int, PredictionRecord]]) -> None:
        """Put what was written into memory, and forget the oldest."""
        for number, record in written:
            self.known[number] = record
            self.known_rows += len(record.rows)
        while self.known_rows > self.settings.remember:
            self.known_rows -= len(self.known.popitem(last=False)[1].rows)


class PredictionMemory:
    """The predictions of this process, by family. Lives on one event loop; `prefix` begins the ids of all of them.

    Args:
        logs: Where they are kept, and how; families that are not among them are not remembered.
        meter: Counts what was kept and dropped.
        now_s: Seconds since the epoch.
        draw: Uniform in [0, 1).
    """

    def __init__(
        self,
        logs: Mapping[str, tuple[PredictionLog, LabelSettings]],
        meter: LabelMeter,
        *,
        now_s: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.prefix = os.urandom(6).hex()
        self._families = {family: _Family(*one) for family, one in logs.items()}
        self._meter = meter
        self._now_s = now_s
        self._draw = draw
        self._writing = asyncio.Lock()

    @property
    def families(self) -> Sequence[str]:
        """Those whose predictions are remembered."""
        return tuple(self._families)

    def log_of(self, family: str) -> PredictionLog:
        """Where the predictions of a family are kept."""
        return self._families[family].log

    def rules_of(self, family: str) -> tuple[LossRule, ...]:
        """The losses of a family; empty: by the types of the outputs."""
        return self._families[family].settings.rules

    def offer(self, number: int, target: Target, outputs: NDArray[Any]) -> None:
        """Remember an answer if there is room; returns at once and never raises. Numbers grow from call to call."""
        family = self._families.get(target.family)
        if family is None or target.has_tensors:
            return
        sample = family.settings.sample
        if sample < 1.0 and self._draw() >= sample:
            return
        if family.waiting.has_room():
            family.waiting.put(Remembered(number, self._now_s(), target, outputs), outputs.size)

    def recall(self, number: int) -> tuple[str, PredictionRecord] | None:
        """Return a prediction of this process that is in memory, and its family."""
        for name, family in self._families.items():
            if (record := family.known.get(number)) is not None:
                return name, record
        return None

    def is_waiting(self, number: int) -> bool:
        """Say whether a prediction of this process is about to be written."""
        return any(_has(family.waiting.items, number) for family in self._families.values())

    def is_own(self, prediction_id: PredictionId) -> bool:
        """Say whether this process has predicted it."""
        return prediction_id.prefix == self.prefix

    async def run(self) -> None:
        """Write every half second, for ever."""
        await write_for_ever(self.write, noun="predictions")

    async def write(self) -> None:
        """Write everything that waits. What cannot be written is dropped and counted."""
        async with self._writing:
            for name, family in self._families.items():
                await self._write(name, family)

    async def _write(self, name: str, family: _Family) -> None:
        waiting, dropped = family.waiting.take()
        kept = 0
        if waiting:
            try:
                written = await asyncio.to_thread(_written, family.log, self.prefix, waiting)
            except StoreError as error:
                if not family.is_failing:
                    log.error("predictions not kept", family=name, reason=str(error))
                family.is_failing = True
                dropped += len(waiting)
            else:
                family.is_failing = False
                kept = len(waiting)
                family.keep(written)
                self._meter.set_kept_bytes(name, family.log.kept_bytes())
        if kept or dropped:
            self._meter.count_predictions(name, kept=kept, dropped=dropped)


def _has(waiting: Sequence[Remembered], number: int) -> bool:
    place = bisect_left(waiting, number, key=lambda one: one.number)
    return place < len(waiting) and waiting[place].number == number


def _written(log_: PredictionLog, prefix: str, waiting: Sequence[Remembered]) -> list[tuple[int, PredictionRecord]]:
    """Write predictions, in a thread of their own, and return them as they were written."""
    by: dict[int, Predicted] = {}
    records = []
    for one in waiting:
        target = one.target
        told = by.get(id(target))  # `waiting` holds the target, so nothing else has its id
        if told is None:
            columns = tuple((column.name, column.dtype) for column in target.signature.outputs)
            told = by[id(target)] = Predicted(target.version, target.variant, target.reason, target.salt, columns)
        records.append((one.number, PredictionRecord(one.at_s, told, one.outputs.tolist())))
    log_.append(prefix, records)
    return records
