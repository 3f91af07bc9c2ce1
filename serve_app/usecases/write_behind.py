"""What requests leave behind to be written: bounded, written twice a second, and the first to be dropped.

A request only puts something into a list, which costs it a fraction of a microsecond, whatever the disk is doing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import structlog

WRITE_EVERY_S: Final = 0.5
Item = TypeVar("Item")
log = structlog.get_logger(__name__)


class WaitingToBeWritten(Generic[Item]):
    """What waits of one family. Lives on one event loop.

    Args:
        most: How many may wait.
        most_values: How many numbers they may hold together, before the last one.
    """

    __slots__ = ("_dropped", "_most", "_most_values", "_values", "items")

    def __init__(self, *, most: int, most_values: int) -> None:
        self.items: list[Item] = []
        self._most = most
        self._most_values = most_values
        self._values = 0
        self._dropped = 0

    def has_room(self) -> bool:
        """Say whether one more may wait; if not, it is counted as dropped."""
        if len(self.items) >= self._most or self._values > self._most_values:
            self._dropped += 1
            return False
        return True

    def put(self, item: Item, n_values: int) -> None:
        """Add one, which holds so many numbers."""
        self.items.append(item)
        self._values += n_values

    def take(self) -> tuple[list[Item], int]:
        """Return everything that waits, in its order, and how many were dropped since the last call."""
        taken = self.items, self._dropped
        self.items, self._values, self._dropped = [], 0, 0
        return taken


async def write_for_ever(write: Callable[[], Awaitable[None]], *, noun: str) -> None:
    """Write every half second; what goes wrong is logged, and nothing ends."""
    while True:
        await asyncio.sleep(WRITE_EVERY_S)
        try:
            await write()
        except Exception:
            log.exception(f"{noun} not written")
