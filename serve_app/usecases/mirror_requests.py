"""Copies of answered requests for a version that is looked at: bounded, sampled, and the first to be dropped."""

import asyncio
import time
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

    def has_room(self, route: SplitRoute, live: Target) -> bool:
        """Say whether a copy could be sent without that anything live waits for it; if not, it is counted as dropped.

        Called for every request of a family with a shadow; nearly all are dropped at full rate.
        """
        tally = route.tally.shadow
        if tally is None:
            return False
        family = self._families.get(live.family)
        if family is None:
            family = self._families[live.family] = _Family(self.limits_of(live.family))
        if (
            time.monotonic() < family.rests_until_s  # first: at full rate it is nearly always so
            or live.coalescer.queued > 0
            or len(family.under_way) >= family.limits.at_once
            or (shadow := route.shadow) is None
            or shadow.coalescer.queued > 0
        ):
            tally.dropped += 1
            return False
        return True

    def offer(self, copied: Copied) -> None:
        """Send a copy if there still is room for it; returns at once and never raises."""
        if not self.has_room(copied.route, copied.live):
            return
        shadow = copied.route.shadow
        assert shadow is not None, "there is no room where there is no shadow"
        family = self._families[copied.live.family]
        task = asyncio.get_running_loop().create_task(self._copy(copied, shadow, family))
        family.under_way.add(task)
        task.add_done_callback(family.under_way.discard)

    async def settled(self) -> None:
        """Wait until no copy is under way."""
        while tasks := [task for family in self._families.values() for task in family.under_way]:
            await asyncio.wait(tasks)

    async def _copy(self, copied: Copied, shadow: Target, family: _Family) -> None:
        tally, copies, limits = copied.route.tally.shadow, copied.route.tally.copies, family.limits
        assert tally is not None, "a copy is offered only where there is a shadow"
        asked_s = time.monotonic()
        await asyncio.sleep(0)  # everything that is ready goes first
        started_s = time.monotonic()
        if started_s - asked_s > limits.max_lag_s or copied.live.coalescer.queued > 0:
            tally.dropped += 1
            return
        try:
            try:
                async with asyncio.timeout(limits.timeout_s):
                    outputs = await shadow.coalescer.submit(copied.rows)
            finally:
                rest_s = (time.monotonic() - started_s) * (1 / limits.busy_share - 1)
                family.rests_until_s = time.monotonic() + rest_s
        except (OverloadedError, UnknownVersionError):
            tally.dropped += 1
            return
        except Exception as error:
            tally.copied += 1
            tally.failed += 1
            copies.count(500, time.monotonic() - started_s)
            log.debug("copy failed", family=shadow.family, version=shadow.version, reason=str(error))
            return
        tally.copied += 1
        tally.live.count(200, copied.seconds)
        copies.count(200, time.monotonic() - started_s)
        pair = Pair(copied.rows, copied.outputs, outputs)
        agrees = count_compared(tally, copies, pair, limits.comparison)
        if self._meter is not None:
            self._meter.count_compared(shadow.family, shadow.version, agrees=agrees)
