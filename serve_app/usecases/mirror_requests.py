"""Copies of answered requests for a version that is looked at: bounded, sampled, and the first to be dropped."""

import asyncio
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from serve_app.domain.errors import OverloadedError, UnknownVersionError
from serve_app.domain.exposure import WorstInput
from serve_app.usecases.coalesce_requests import Rows
from serve_app.usecases.split_requests import SplitRoute
from serve_app.usecases.target import Target

MAX_KEPT_ROWS: Final = 10
"""Rows of one of the worst inputs; of a larger request only the first are kept."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Copied:
    """An answer that the shadow gets a copy of: where it came from, what was asked and what was said, in seconds."""

    route: SplitRoute
    live: Target
    rows: Rows
    outputs: NDArray[Any]
    seconds: float


@dataclass(frozen=True, slots=True)
class MirrorLimits:
    """Bounds of the copies.

    `at_once` copies of one gateway may be under way (default 2: a shadow is to be measured, not to keep up), each for
    `timeout_s` (default 2). None is sent while this event loop is later than `max_lag_s` (default 5 ms). Numbers agree
    when they differ by at most `atol + rtol * |live|`; `keeps_inputs` says whether the worst inputs may be kept.
    """

    at_once: int = 2
    timeout_s: float = 2.0
    max_lag_s: float = 0.005
    rtol: float = 1e-3
    atol: float = 1e-9
    keeps_inputs: bool = False


class Mirror:
    """Sends copies and compares what comes back. Lives on one event loop."""

    def __init__(self, limits: MirrorLimits) -> None:
        self._limits = limits
        self._under_way: set[asyncio.Task[None]] = set()

    def offer(self, copied: Copied) -> None:
        """Send a copy if nothing live has to wait for it; returns at once and never raises."""
        shadow, tally = copied.route.shadow, copied.route.tally.shadow
        if tally is None:
            return
        is_busy = len(self._under_way) >= self._limits.at_once or copied.live.coalescer.queued > 0
        if shadow is None or is_busy or shadow.coalescer.queued > 0:
            tally.dropped += 1
            return
        task = asyncio.get_running_loop().create_task(self._copy(copied, shadow))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def settled(self) -> None:
        """Wait until no copy is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _copy(self, copied: Copied, shadow: Target) -> None:
        tally, copies = copied.route.tally.shadow, copied.route.tally.copies
        assert tally is not None, "a copy is offered only where there is a shadow"
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        await asyncio.sleep(0)  # everything that is ready goes first
        started_s = loop.time()
        if started_s - asked_s > self._limits.max_lag_s or copied.live.coalescer.queued > 0:
            tally.dropped += 1
            return
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                outputs = await shadow.coalescer.submit(copied.rows)
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
        tally.live_s.add(copied.seconds)
        copies.count(200, loop.time() - started_s)
        self._compare(copied, outputs)

    def _compare(self, copied: Copied, outputs: NDArray[Any]) -> None:
        tally, copies = copied.route.tally.shadow, copied.route.tally.copies
        assert tally is not None, "a copy is offered only where there is a shadow"
        agree, difference = compared(copied.outputs, outputs, rtol=self._limits.rtol, atol=self._limits.atol)
        copies.compared += 1
        copies.disagreed += not agree
        if difference is None:
            return
        mean, largest = difference
        tally.differences.add(mean)
        if self._limits.keeps_inputs and tally.is_among_worst(largest):
            rows = tuple(tuple(float(value) for value in row) for row in copied.rows[:MAX_KEPT_ROWS])
            live, shadow = _listed(copied.outputs), _listed(outputs)
            tally.keep(WorstInput(difference=largest, rows=rows, live=live, shadow=shadow))


def compared(
    live: NDArray[Any], shadow: NDArray[Any], *, rtol: float, atol: float
) -> tuple[bool, tuple[float, float] | None]:
    """Say whether two answers (n_rows, n_outputs) agree, and their mean and largest absolute difference.

    Fractions agree within the bounds, everything else if it is equal. There is no difference of what are no numbers,
    of answers of different shapes, and of those that are not finite.
    """
    if live.shape != shadow.shape:
        return False, None
    if not (np.issubdtype(live.dtype, np.number) and np.issubdtype(shadow.dtype, np.number)):
        return bool(np.array_equal(live, shadow)), None
    differences = np.abs(live.astype(np.float64) - shadow.astype(np.float64))
    is_exact = np.issubdtype(live.dtype, np.integer) and np.issubdtype(shadow.dtype, np.integer)
    near = 0.0 if is_exact else rtol
    agree = bool(np.allclose(shadow, live, rtol=near, atol=0.0 if is_exact else atol, equal_nan=True))
    largest = float(differences.max(initial=0.0))
    return agree, (float(differences.mean()), largest) if math.isfinite(largest) and differences.size else None


def _listed(outputs: NDArray[Any]) -> tuple[tuple[float | str, ...], ...]:
    return tuple(
        tuple(value if isinstance(value, str) else float(value) for value in row)
        for row in outputs[:MAX_KEPT_ROWS].tolist()
    )
