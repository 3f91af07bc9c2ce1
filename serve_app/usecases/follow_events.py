"""Follows the events for those who listen at a gateway: one look at the control plane a second for all of them.

Nobody asks the control plane while nobody listens. A listener gets what it lacks in pages of its own and waits for a
ring; while the control plane is away it waits as well, and is told so.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import structlog

from serve_app.domain.errors import ServeAppError, UnavailableError
from serve_app.domain.events import Event, EventPage
from serve_app.usecases.event_ports import EventPlane

LOOK_S = 1.0
HEARTBEAT_S = 15.0
PAGE = 100
AWAY = "the control plane is away; what happens is told when it is back"
LEAVING = "this gateway is stopping; connect again"
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that is told to a listener and is no event."""

    text: str


async def _stays() -> bool:
    return False


class EventFeed:
    """The listeners of one gateway. Lives on one event loop.

    Args:
        plane: Tells of events.
        max_listeners: More are refused.
        is_leaving: Says that this gateway is about to stop; listeners are then let go of.
        look_s: Seconds between two looks.
        heartbeat_s: Seconds after which a listener hears something, events or not.
    """

    def __init__(
        self,
        plane: EventPlane,
        *,
        max_listeners: int,
        is_leaving: Callable[[], Awaitable[bool]] = _stays,
        look_s: float = LOOK_S,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._plane = plane
        self._max_listeners = max_listeners
        self._is_leaving = is_leaving
        self._look_s = look_s
        self._heartbeat_s = heartbeat_s
        self._newest: int | None = None
        self._bell = asyncio.Event()
        self._ends = False
        self._looking: asyncio.Task[None] | None = None
        self.n_listeners = 0

    def enter(self) -> None:
        """Take a place; `leave` gives it back.

        Raises:
            UnavailableError: All places are taken.
        """
        if self.n_listeners >= self._max_listeners:
            raise UnavailableError(
                f"{self.n_listeners} listen to events at this gateway already, the limit; "
                "ask for a list instead (Accept: application/json)",
                retry_after_s=30,
            )
        self.n_listeners += 1
        if self._looking is None:
            self._newest, self._ends = None, False
            self._looking = asyncio.create_task(self._look_forever())

    def leave(self) -> None:
        """Give a place back; with the last listener the looking ends."""
        self.n_listeners -= 1
        if self.n_listeners == 0 and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def page(self, *, after: int | None, family: str | None, limit: int) -> EventPage:
        """See `EventPlane.events`."""
        return await self._plane.events(after=after, family=family, limit=limit)

    async def follow(self, *, after: int | None, family: str | None) -> AsyncIterator[Event | Remark]:
        """Give the events after an id, or those from now on, and go on for ever; remarks come in between.

        An id that is beyond the newest one is that of another store: all that happens from now on is given.
        """
        loop = asyncio.get_running_loop()
        is_away, heard_s = False, loop.time()
        while True:
            bell = self._bell
            try:
                page = await self.page(after=after, family=family, limit=0 if after is None else PAGE)
            except ServeAppError as error:
                if not is_away:
                    log.warning("events cannot be followed now", reason=str(error))
                    yield Remark(AWAY)
                    heard_s = loop.time()
                is_away = True
            else:
                is_away = False
                for event in page.events:
                    yield event
                    heard_s = loop.time()
                if len(page.events) == PAGE:
                    after = page.events[-1].id
                    continue
                after = page.newest
            if self._ends:
                yield Remark(LEAVING)
                return
            try:
                async with asyncio.timeout_at(heard_s + self._heartbeat_s):
                    await bell.wait()
            except TimeoutError:
                yield Remark("still here")
                heard_s = loop.time()

    async def _look_forever(self) -> None:
        while True:
            try:
                newest: int | None = (await self.page(after=0, family=None, limit=0)).newest
            except ServeAppError:
                newest = None
            except Exception:
                log.exception("events not looked for")
                newest = None
            self._ends = await self._is_leaving()
            if newest != self._newest or self._ends:
                self._newest = newest
                self._ring()
            await asyncio.sleep(self._look_s)

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()
