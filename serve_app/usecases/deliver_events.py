"""Brings events to one receiver: in order, each at least once, and never in anybody's way.

The position, which is the id of the last event that the receiver has, is saved after each delivery. Who is killed in
between sends that one event again, under the same id; nothing is left out but what the receiver refuses for good, and
what it did not fetch while more than all events that are kept came after it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from serve_app.domain.errors import StoreError
from serve_app.domain.events import Event, EventKind, EventPage
from serve_app.domain.following import RETRY_JITTER
from serve_app.usecases.event_ports import DeliveryError, DeliveryMeter, DeliveryOutcome, EventSender
from serve_app.usecases.keep_state import StateKeeper
from serve_app.usecases.ports import Clock

RETRY_DELAYS_S = (1.0, 5.0, 15.0, 60.0, 300.0)
"""Waiting times after failures in a row; the last one repeats."""
MOST_REFUSALS = 3
"""Tries of an event that the receiver refuses: its answer may be that of a proxy on the way."""
IDLE_S = 30.0
"""How often the store is read when nothing rings: another cluster may have written, which led until now."""
PAGE = 100
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Receiver:
    """Who is told, and of what; without families and kinds of all of them."""

    name: str
    families: frozenset[str] = field(default_factory=frozenset)
    kinds: frozenset[EventKind] = field(default_factory=frozenset)

    def wants(self, event: Event) -> bool:
        """True when it is to get this event."""
        return (not self.families or event.family in self.families) and (not self.kinds or event.kind in self.kinds)


class EventDelivery:
    """Delivers to one receiver. Lives on one event loop; calls of `turn` do not overlap.

    Args:
        receiver: Who is told.
        sender: Reaches it.
        keeper: Keeps the events, and what the receiver has.
        leads: Says whether this cluster may deliver now; of two that share a store one does.
        clock: Time.
        meter: Counts.
        dice: Uniform in [0, 1), so that many servers do not come back at the same moment.
    """

    def __init__(
        self,
        receiver: Receiver,
        sender: EventSender,
        *,
        keeper: StateKeeper,
        leads: Callable[[], bool],
        clock: Clock,
        meter: DeliveryMeter,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._receiver = receiver
        self._sender = sender
        self._keeper = keeper
        self._leads = leads
        self._clock = clock
        self._meter = meter
        self._dice = dice
        self._sent = 0
        self._n_failed = 0
        self._refusals = (0, 0)
        self._next_try_s = 0.0
        self._told: str | None = None

    @property
    def is_waiting(self) -> bool:
        """True after a failure, until it is tried again."""
        return self._n_failed > 0

    @property
    def wait_s(self) -> float:
        """Seconds until the next turn is due; after a success it is due when there is news as well."""
        return max(self._next_try_s - self._clock.monotonic_s(), 0.0) if self._n_failed else IDLE_S

    async def turn(self) -> None:
        """Deliver all that there is, up to the first failure; does nothing before the next try is due."""
        if not self._leads() or (self._n_failed and self._clock.monotonic_s() < self._next_try_s):
            return
        try:
            while await self._deliver_page():
                pass
        except DeliveryError as error:
            self._failed(str(error), error.retry_after_s)
        except StoreError as error:
            self._failed(str(error), 0.0)
        else:
            self._succeeded()

    async def _deliver_page(self) -> bool:
        """Deliver the next events; return whether there may be more."""
        position = await self._position()
        page = await self._keeper.events(after=position, limit=PAGE)
        self._note_missed(position, page)
        for event in page.events:
            if self._receiver.wants(event):
                if not self._leads():
                    return False
                await self._send(event)
                self._sent = event.id
                await self._keeper.set_delivered(self._receiver.name, event.id)
            position = event.id
            self._meter.set_backlog(self._receiver.name, page.newest - position)
        if page.events and position != self._sent:
            await self._keeper.set_delivered(self._receiver.name, position)
        return len(page.events) == PAGE

    async def _position(self) -> int:
        """Return the id up to which the receiver has everything. A new one gets what happens from now on."""
        saved = await self._keeper.delivered(self._receiver.name)
        if saved is None:
            saved = (await self._keeper.events(after=None, limit=0)).newest
            await self._keeper.set_delivered(self._receiver.name, saved)
        return max(saved, self._sent)

    async def _send(self, event: Event) -> None:
        """Send one event; one that was refused often enough counts as done.

        Raises:
            DeliveryError: It has to be tried again.
        """
        try:
            await self._sender.send(event)
        except DeliveryError as error:
            if error.is_refusal and self._counts_refusal(event) >= MOST_REFUSALS:
                self._meter.count_delivery(self._receiver.name, DeliveryOutcome.REFUSED)
                log.error("event refused, the next ones go on", webhook=self._receiver.name, event_id=event.id,
                          kind=event.kind.value, reason=str(error))  # fmt: skip
                return
            raise
        self._meter.count_delivery(self._receiver.name, DeliveryOutcome.DELIVERED)

    def _counts_refusal(self, event: Event) -> int:
        refused, n = self._refusals
        self._refusals = (event.id, n + 1 if refused == event.id else 1)
        return self._refusals[1]

    def _note_missed(self, position: int, page: EventPage) -> None:
        n_missed = page.oldest - position - 1
        if page.oldest and n_missed > 0:
            self._meter.count_delivery(self._receiver.name, DeliveryOutcome.MISSED, n_missed)
            log.error("events missed, they are not kept any more", webhook=self._receiver.name, count=n_missed)

    def _failed(self, why: str, retry_after_s: float) -> None:
        delay_s = RETRY_DELAYS_S[min(self._n_failed, len(RETRY_DELAYS_S) - 1)]
        delay_s = max(delay_s, min(retry_after_s, RETRY_DELAYS_S[-1]))
        delay_s *= 1 - RETRY_JITTER + 2 * RETRY_JITTER * self._dice()
        self._n_failed += 1
        self._next_try_s = self._clock.monotonic_s() + delay_s
        self._meter.count_delivery(self._receiver.name, DeliveryOutcome.FAILED)
        tell = log.debug if self._told is not None else log.warning  # one line, however many tries it takes
        tell("webhook not delivered", webhook=self._receiver.name, reason=why, next_try_s=round(delay_s, 1))
        self._told = why

    def _succeeded(self) -> None:
        if self._told is not None:
            log.info("webhook delivered again", webhook=self._receiver.name, tries=self._n_failed)
        self._n_failed, self._told = 0, None
