"""What events need from outside and offer to it, as protocols."""

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Protocol

from serve_app.domain.errors import ServeAppError
from serve_app.domain.events import Event, EventKind, EventPage

KEPT_EVENTS = 10_000
"""Events that a store keeps; some bytes hundred each. A receiver that is away for longer misses the oldest."""


class DeliveryError(ServeAppError):
    """An event was not delivered. `is_refusal`: the receiver has read it and does not want it, now or later.

    `retry_after_s` is how long the receiver asks to be left alone.
    """

    def __init__(self, message: str, *, is_refusal: bool = False, retry_after_s: float = 0.0) -> None:
        self.is_refusal = is_refusal
        self.retry_after_s = retry_after_s
        super().__init__(message)


class DeliveryOutcome(StrEnum):
    """How the delivery of an event ended, or a try of it."""

    DELIVERED = "delivered"
    FAILED = "failed"
    REFUSED = "refused"
    MISSED = "missed"


class EventLog(Protocol):
    """The part of the state store that keeps events. Blocking; safe to call from several threads; does not retry."""

    def append_events(self, events: Sequence[Event]) -> None:
        """Save events that belong to no change of the state, and give them their ids.

        Raises:
            StoreError: The store cannot be written now; none was saved.
        """
        ...

    def events(self, *, after: int | None, family: str | None = None, limit: int = 100) -> EventPage:
        """Return the first events with a higher id than `after`, or the newest ones (None), the oldest first.

        Ids grow in the order in which writes were made: none comes later with an id that was passed already.

        Raises:
            StoreError: The store cannot be read now.
        """
        ...

    def newest_event(self, family: str, kinds: Collection[EventKind]) -> Event | None:
        """Return the last event of these kinds that is kept.

        Raises:
            StoreError: The store cannot be read now.
        """
        ...

    def delivered(self, receiver: str) -> int | None:
        """Return the id up to which a receiver has everything; None where it has never got anything.

        Raises:
            StoreError: The store cannot be read now.
        """
        ...

    def set_delivered(self, receiver: str, sequence: int) -> None:
        """Save the id up to which a receiver has everything.

        Raises:
            StoreError: The store cannot be written now.
        """
        ...


class EventPlane(Protocol):
    """The part of the control plane that tells what has happened."""

    async def events(self, *, after: int | None, family: str | None, limit: int) -> EventPage:
        """See `EventLog.events`; with the limit 0 it says which ids are kept.

        Raises:
            UnavailableError: The control plane cannot be reached.
            StoreError: The store cannot be read now.
        """
        ...


class EventSender(Protocol):
    """Sends events to one receiver."""

    async def send(self, event: Event) -> None:
        """Return when the receiver has taken the event; it may get one twice, under the same id.

        Raises:
            DeliveryError: It was not delivered, within a time that is bounded.
        """
        ...


class DeliveryMeter(Protocol):
    """Counts deliveries."""

    def count_delivery(self, receiver: str, outcome: DeliveryOutcome, n: int = 1) -> None:
        """A try ended, or events were missed."""
        ...

    def set_backlog(self, receiver: str, n: int) -> None:
        """Say how many events are kept that the receiver has not got yet."""
        ...
