"""Natural batching: while calls are out, requests gather; the next call takes all that wait.

No timer: an idle server adds no delay, a busy one batches by itself. One coalescer serves one (family, version, pool);
those of one pool take turns together.
"""

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.errors import (
    OverloadedError,
    PayloadTooLargeError,
    PredictionError,
    UnavailableError,
    UnknownVersionError,
)
from serve_app.usecases.ports import PredictClient
from serve_app.usecases.take_turns import Turn, Turns

Rows = list[list[float]] | NDArray[np.float64]
"""Rows of one request: as its JSON had them, or an array (n_rows, input_width)."""
MAX_TRIES = 2
"""A request whose replica went away, or does not hold the version, is sent once more, to another replica."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one coalescer: rows and bytes in a call, requests that may wait, seconds a request may take."""

    max_batch_rows: int
    max_batch_bytes: int
    max_queued_requests: int
    request_timeout_s: float


@dataclass(slots=True, eq=False)
class _Waiting:
    rows: Rows
    n_bytes: int
    future: "asyncio.Future[NDArray[Any]]"
    deadline_s: float
    lost_tries: int = field(default=0)


@dataclass(slots=True, eq=False)
class _Batch:
    waiting: list[_Waiting]
    n_rows: int
    turn: Turn


class Coalescer:
    """Gathers requests into batches for one version. Lives on one event loop.

    Args:
        client: Reaches the pool.
        version: Predicts the rows.
        limits: Bounds of this coalescer.
        turns: Of the pool; its own where none are given.
        on_batch: Told how many rows a call has.
    """

    def __init__(
        self,
        client: PredictClient,
        version: str,
        limits: BatchLimits,
        *,
        turns: Turns | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self._client = client
        self._version = version
        self._limits = limits
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting] = deque()
        self._batches_out: set[_Batch] = set()
        self._turns = turns or Turns(lambda: client.capacity)
        self._expiry: asyncio.TimerHandle | None = None

    def apart(self) -> "Coalescer":
        """Return another for the same version that takes no part in the turns of the pool, nor is told of."""
        return Coalescer(self._client, self._version, self._limits)

    @property
    def queued(self) -> int:
        """Number of requests that wait for a call."""
        return len(self._queue)

    @property
    def calls_out(self) -> int:
        """Number of calls that have not been answered."""
        return len(self._batches_out)

    @property
    def is_idle(self) -> bool:
        """True when nothing waits and no call is out."""
        return not self._queue and not self._batches_out

    def submit(self, rows: Rows) -> "asyncio.Future[NDArray[Any]]":
        """Queue the rows of one request; the future gives the outputs (len(rows), output_width).

        The future raises `PredictionError`, `UnknownVersionError` or `UnavailableError`. Cancelling it hurts no other.

        Raises:
            OverloadedError: Too many requests wait already.
            PayloadTooLargeError: The rows are more than one call may carry.
        """
        n_bytes = len(rows) * len(rows[0]) * 8
        if n_bytes > self._limits.max_batch_bytes:
            raise PayloadTooLargeError(
                f"expected at most {self._limits.max_batch_bytes} bytes of rows in a request, got {n_bytes}"
            )
        if len(self._queue) >= self._limits.max_queued_requests:
            raise OverloadedError(f"{len(self._queue)} requests wait already, the limit; try again")
        deadline_s = self._loop.time() + self._limits.request_timeout_s
        waiting = _Waiting(rows, n_bytes, self._loop.create_future(), deadline_s)
        self._queue.append(waiting)
        if self._expiry is None:
            self._expiry = self._loop.call_at(deadline_s, self._expire)
        self._turns.ask(self)
        return waiting.future

    def go(self, turn: Turn) -> bool:
        """Send the next batch, unless as many calls are out as the pool can have; say whether one was sent."""
        if len(self._batches_out) >= max(self._client.capacity, 1):
            return False
        batch = self._next_batch()
        if batch:
            self._send(batch, turn)
        return bool(batch)

    def _expire(self) -> None:
        """Fail every request whose time is up, waiting or sent; wake up again for the oldest of the others.

        One timer for all: a timer for each request would cost more than the rest of this class.
        """
        now_s = self._loop.time()
        oldest_s = math.inf
        for waiting in itertools.chain(self._queue, *(batch.waiting for batch in self._batches_out)):
            if waiting.future.done():
                continue
            if waiting.deadline_s <= now_s:
                waiting.future.set_exception(UnavailableError(f"no answer within {self._limits.request_timeout_s:g} s"))
            else:
                oldest_s = min(oldest_s, waiting.deadline_s)
        self._queue = deque(waiting for waiting in self._queue if not waiting.future.done())
        self._expiry = self._loop.call_at(oldest_s, self._expire) if oldest_s < math.inf else None

    def _next_batch(self) -> list[_Waiting]:
        """Take requests from the queue up to the bounds, at least one; leave out those that are over already."""
        batch: list[_Waiting] = []
        n_rows = n_bytes = 0
        while self._queue:
            waiting = self._queue[0]
            if waiting.future.done():
                self._queue.popleft()
                continue
            n_rows += len(waiting.rows)
            n_bytes += waiting.n_bytes
            if batch and (n_rows > self._limits.max_batch_rows or n_bytes > self._limits.max_batch_bytes):
                break
            batch.append(self._queue.popleft())
        return batch

    def _send(self, waiting: list[_Waiting], turn: Turn) -> None:
        alone = waiting[0].rows
        if len(waiting) == 1 and isinstance(alone, np.ndarray):
            rows = alone
        else:
            rows = np.array([row for one in waiting for row in one.rows], dtype=np.float64)
        batch = _Batch(waiting, len(rows), turn)
        self._batches_out.add(batch)
        if self._on_batch is not None:
            self._on_batch(len(rows))
        try:
            self._client.call(self._version, rows, partial(self._done, batch))
        except Exception as error:  # whatever it is, it is told to whoever waits
            self._done(batch, error)

    def _done(self, batch: _Batch, outcome: NDArray[Any] | Exception) -> None:
        self._batches_out.discard(batch)
        self._turns.answered(batch.turn)
        if not isinstance(outcome, np.ndarray):
            self._settle(batch, outcome)
        elif outcome.ndim == 2 and len(outcome) == batch.n_rows:
            self._deliver(batch, outcome)
        else:
            expected = f"expected {batch.n_rows} rows of outputs from the model"
            self._fail(batch.waiting, PredictionError(f"{expected}, got an array of shape {outcome.shape}"))
        if self._queue:
            self._turns.ask(self)

    def _settle(self, batch: _Batch, error: Exception) -> None:
        """Give everybody in a failed batch another chance, or tell them."""
        left = [waiting for waiting in batch.waiting if not waiting.future.done()]
        if isinstance(error, PredictionError) and len(batch.waiting) > 1:
            middle = (len(left) + 1) // 2  # one request spoils the batch: halving finds it with few calls
            for part in (left[:middle], left[middle:]):
                if part:
                    self._send(part, batch.turn)
        elif isinstance(error, UnavailableError | UnknownVersionError):
            for waiting in left:
                waiting.lost_tries += 1
            self._fail([waiting for waiting in left if waiting.lost_tries >= MAX_TRIES], error)
            self._queue.extendleft(waiting for waiting in reversed(left) if waiting.lost_tries < MAX_TRIES)
        else:
            self._fail(left, error)

    @staticmethod
    def _deliver(batch: _Batch, outputs: NDArray[Any]) -> None:
        at = 0
        for waiting in batch.waiting:
            end = at + len(waiting.rows)
            if not waiting.future.done():
                waiting.future.set_result(outputs[at:end])
            at = end

    @staticmethod
    def _fail(left: list[_Waiting], error: Exception) -> None:
        for waiting in left:
            if not waiting.future.done():
                waiting.future.set_exception(error)
