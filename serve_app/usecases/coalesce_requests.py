"""Natural batching: while calls are out, requests gather; the next call takes all that wait.

No timer: an idle server adds no delay, a busy one batches by itself. One coalescer serves one (family, version, pool).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.errors import OverloadedError, PredictionError, UnavailableError, UnknownVersionError
from serve_app.usecases.ports import PredictClient

MAX_TRIES = 2
"""A batch whose replica went away, or does not hold the version, is sent once more, to another replica."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one coalescer: rows and bytes in a call, requests that may wait, seconds a request may take."""

    max_batch_rows: int
    max_batch_bytes: int
    max_queued_requests: int
    request_timeout_s: float


@dataclass(slots=True, eq=False)
class _Waiting:
    rows: list[list[float]]
    future: "asyncio.Future[NDArray[Any]]"
    deadline_s: float
    tries: int = field(default=0)


class Coalescer:
    """Gathers requests into batches for one version. Lives on one event loop."""

    def __init__(
        self, client: PredictClient, version: str, limits: BatchLimits, *, on_batch: Callable[[int], None] | None = None
    ) -> None:
        self._client = client
        self._version = version
        self._limits = limits
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting] = deque()
        self._calls_out = 0
        self._flush_is_due = False

    @property
    def queued(self) -> int:
        """Number of requests that wait for a call."""
        return len(self._queue)

    @property
    def is_idle(self) -> bool:
        """True when nothing waits and no call is out."""
        return not self._queue and not self._calls_out

    def submit(self, rows: list[list[float]]) -> "asyncio.Future[NDArray[Any]]":
        """Queue the rows of one request; the future gives the outputs (len(rows), n_outputs).

        The future raises `PredictionError`, `UnknownVersionError` or `UnavailableError`. Cancelling it hurts no other.

        Raises:
            OverloadedError: Too many requests wait already.
        """
        if len(self._queue) >= self._limits.max_queued_requests:
            raise OverloadedError(f"{len(self._queue)} requests wait already, the limit; try again")
        waiting = _Waiting(rows, self._loop.create_future(), self._loop.time() + self._limits.request_timeout_s)
        self._queue.append(waiting)
        self._flush_soon()
        return waiting.future

    def _flush_soon(self) -> None:
        """Flush after the requests that this turn of the event loop has read are all queued."""
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        capacity = max(self._client.capacity, 1)
        while self._queue and self._calls_out < capacity:
            batch = self._next_batch()
            if batch:
                self._send(batch)

    def _next_batch(self) -> list[_Waiting]:
        """Take requests from the queue up to the bounds; at least one. Cancelled ones are left out, late ones fail."""
        batch: list[_Waiting] = []
        n_rows = n_bytes = 0
        now_s = self._loop.time()
        while self._queue:
            waiting = self._queue[0]
            if waiting.future.done():
                self._queue.popleft()
                continue
            if waiting.deadline_s < now_s:
                self._queue.popleft()
                waiting.future.set_exception(UnavailableError("no replica was free within the time limit"))
                continue
            rows = len(waiting.rows)
            size = rows * len(waiting.rows[0]) * 8
            if batch and (n_rows + rows > self._limits.max_batch_rows or n_bytes + size > self._limits.max_batch_bytes):
                break
            batch.append(self._queue.popleft())
            n_rows += rows
            n_bytes += size
        return batch

    def _send(self, batch: list[_Waiting]) -> None:
        rows = np.array([row for waiting in batch for row in waiting.rows], dtype=np.float64)
        self._calls_out += 1
        for waiting in batch:
            waiting.tries += 1
        if self._on_batch is not None:
            self._on_batch(len(rows))
        self._client.call(self._version, rows, lambda outcome: self._done(batch, len(rows), outcome))

    def _done(self, batch: list[_Waiting], n_rows: int, outcome: NDArray[Any] | Exception) -> None:
        self._calls_out -= 1
        if isinstance(outcome, np.ndarray):
            if len(outcome) == n_rows:
                self._deliver(batch, outcome)
            else:
                self._fail(batch, PredictionError(f"expected {n_rows} rows from the model, got {len(outcome)}"))
        elif isinstance(outcome, PredictionError) and len(batch) > 1:
            for waiting in batch:  # one request spoils the batch: each gets its own answer
                self._send([waiting])
        elif isinstance(outcome, UnavailableError | UnknownVersionError) and batch[0].tries < MAX_TRIES:
            self._queue.extendleft(reversed(batch))
        else:
            self._fail(batch, outcome)
        if self._queue:
            self._flush_soon()

    @staticmethod
    def _deliver(batch: list[_Waiting], outputs: NDArray[Any]) -> None:
        at = 0
        for waiting in batch:
            end = at + len(waiting.rows)
            if not waiting.future.done():
                waiting.future.set_result(outputs[at:end])
            at = end

    @staticmethod
    def _fail(batch: list[_Waiting], error: Exception) -> None:
        for waiting in batch:
            if not waiting.future.done():
                waiting.future.set_exception(error)
