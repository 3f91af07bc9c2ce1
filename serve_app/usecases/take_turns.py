"""When batches go out to one pool: those of all its versions in one turn.

With calls of its own for each version, one that gets a tenth of the requests would be sent them one by one, and each
would cost the gateway and the replica as much as a whole batch. So a turn takes a batch of every version that waits,
and requests of all versions wait equally long, which makes their latencies comparable.

A turn is over with the first of its answers: a version that hangs holds back nothing but its own next batch.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol


class Turn:
    """One time that batches went out; `is_over` once one of them was answered."""

    __slots__ = ("is_over",)

    def __init__(self) -> None:
        self.is_over = False


class Waiting(Protocol):
    """Something with requests that are to go out."""

    @property
    def queued(self) -> int:
        """Number of requests that wait."""
        ...

    def go(self, turn: Turn) -> bool:
        """Send a batch, unless enough calls are out; say whether one was sent."""
        ...


class Turns:
    """Whose turn it is in one pool. Lives on one event loop.

    Args:
        capacity: How many turns may be out at once; 0 counts as 1.
    """

    def __init__(self, capacity: Callable[[], int]) -> None:
        self._capacity = capacity
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Waiting, None] = {}
        self._n_out = 0
        self._is_due = False

    def ask(self, waiting: Waiting) -> None:
        """Have somebody's batch go out with the next turn, after this turn of the event loop has read all requests."""
        self._waiting[waiting] = None
        self._soon()

    def _soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._is_due = False
        capacity = max(self._capacity(), 1)
        while self._waiting and self._n_out < capacity:
            if not self._take():
                return

    def _take(self) -> bool:
        """Take one turn; say whether a batch has gone out. What one cannot send is no reason to send no other."""
        turn, has_gone = Turn(), False
        for waiting in list(self._waiting):
            try:
                has_gone = waiting.go(turn) or has_gone
            except Exception as error:
                self._loop.call_exception_handler({"message": "a batch could not be sent", "exception": error})
            if not waiting.queued:
                del self._waiting[waiting]
        self._n_out += has_gone
        return has_gone

    def answered(self, turn: Turn) -> None:
        """Take note that one batch of a turn was answered."""
        if not turn.is_over:
            turn.is_over = True
            self._n_out -= 1
        if self._waiting:
            self._soon()
