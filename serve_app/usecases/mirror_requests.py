"""Copies of answered requests for a version that is looked at: bounded, sampled, and the first to be dropped."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import structlog
from numpy.typing import NDArray

from serve_app.domain.errors import OverloadedError, UnknownVersionError
from serve_app.usecases.coalesce_requests import Rows
from serve_app.usecases.compare_answers import Comparison, Pair, count_compared
from serve_app.usecases.split_requests import SplitRoute
from serve_app.usecases.target import Target

log = structlog.get_logger(__name__)


class Copied(NamedTuple):
    """An answer that the shadow gets a copy of: where it came from, what was asked and what was said, in seconds.

    A named tuple: at full rate one is made for every request, and nearly all are dropped.
    """

    route: SplitRoute
    live: Target
    rows: Rows
    outputs: NDArray[Any]
    seconds: float


@dataclass(frozen=True, slots=True)
class MirrorLimits:
    """Bounds of the copies of one family.

    `at_once` copies of one gateway may be under way (default 2: a shadow is to be measured, not to keep up), each for
    `timeout_s` (default 2). None is sent while this event loop is later than `max_lag_s` (default 5 ms). Numbers agree
    when they differ by at most `atol + rtol * |live|`; `keeps_inputs` says whether the worst inputs may be kept.
    After each copy none is sent for so long that copies are under way in at most `busy_share` of the time (default 1:
    always).
    """

    at_once: int = 2
    timeout_s: float = 2.0
    max_lag_s: float = 0.005
    rtol: float = 1e-3
    atol: float = 1e-9
    keeps_inputs: bool = False
    busy_share: float = 1.0

    @property
    def comparison(self) -> Comparison:
        """How answers are compared."""
        return Comparison(self.rtol, self.atol, self.keeps_inputs)


_DEFAULT: Final = MirrorLimits()


class CopyMeter(Protocol):
    """Counts compared copies. Called on the event loop for each: it must return in a microsecond."""

    def count_compared(self, family: str, version: str, *, agrees: bool) -> None:
        """Count one answer of a shadow; `version` is the shadow's."""
        ...


class _Family:
    """The copies of one family."""

    __slots__ = ("limits", "rests_until_s", "under_way")

    def __init__(self, limits: MirrorLimits) -> None:
        self.limits = limits
        self.under_way: set[asyncio.Task[None]] = set()
        self.rests_until_s = 0.0


class Mirror:
    """Sends copies and compares what comes back. Lives on one event loop.

    Args:
        limits: Of all families but those in `by_family`.
        by_family: Limits of single families.
        meter: Counts the copies that were compared; none: nobody does.
    """

    def __init__(
        self,
        limits: MirrorLimits = _DEFAULT,
        *,
        by_family: Mapping[str, MirrorLimits] | None = None,
        meter: CopyMeter | None = None,
    ) -> None:
        self._limits = limits
        self._by_family = dict(by_family or {})
        self._meter = meter
        self._families: dict[str, _Family] = {}

    def limits_of(self, family: str) -> MirrorLimits:
        """Return the bounds of a family's copies."""
        return self._by_family.get(family, self._limits)

    def offer(self, copied: Copied) -> None:
        """Send a copy if nothing live has to wait for it; returns at once and never raises."""
        tally = copied.route.tally.shadow
        if tally is None:
            return
        name = copied.live.family
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _Family(self.limits_of(name))
        if copied.live.coalescer.queued > 0 or len(family.under_way) >= family.limits.at_once:
            tally.dropped += 1
            return
        shadow = copied.route.shadow
        loop = asyncio.get_running_loop()
        if shadow is None or shadow.coalescer.queued > 0 or loop.time() < family.rests_until_s:
            tally.dropped += 1
            return
        task = loop.create_task(self._copy(copied, shadow, family))
        family.under_way.add(task)
        task.add_done_callback(family.under_way.discard)

    async def settled(self) -> None:
        """Wait until no copy is under way."""
        while tasks := [task for family in self._families.values() for task in family.under_way]:
            await asyncio.wait(tasks)

    async def _copy(self, copied: Copied, shadow: Target, family: _Family) -> None:
        tally, copies, limits = copied.route.tally.shadow, copied.route.tally.copies, family.limits
        assert tally is not None, "a copy is offered only where there is a shadow"
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        await asyncio.sleep(0)  # everything that is ready goes first
        started_s = loop.time()
        if started_s - asked_s > limits.max_lag_s or copied.live.coalescer.queued > 0:
            tally.dropped += 1
            return
        try:
            try:
                async with asyncio.timeout(limits.timeout_s):
                    outputs = await shadow.coalescer.submit(copied.rows)
            finally:
                rest_s = (loop.time() - started_s) * (1 / limits.busy_share - 1)
                family.rests_until_s = loop.time() + rest_s
        except (OverloadedError, UnknownVersionError):
            tally.dropped += 1
            return
        except Exception as error:
            tally.copied += 1
            tally.failed += 1
            copies.count(500, loop.time() - started_s)
            log.debug("copy failed", family=shadow.family, version=shadow.version, reason=str(error))
            return
        tally.copied += 1
        tally.live.count(200, copied.seconds)
        copies.count(200, loop.time() - started_s)
        pair = Pair(copied.rows, copied.outputs, outputs)
        agrees = count_compared(tally, copies, pair, limits.comparison)
        if self._meter is not None:
            self._meter.count_compared(shadow.family, shadow.version, agrees=agrees)
