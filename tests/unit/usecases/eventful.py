"""Events of tests, a keeper over a store in memory, and what counts deliveries."""

from collections import Counter
from typing import Any

from serve_app.domain.events import Event, EventKind
from serve_app.usecases.event_ports import DeliveryError, DeliveryOutcome

NOW_S = 1_769_763_600.0


def event(kind: EventKind = EventKind.RELOAD_COMMITTED, *, family: str = "iris", **more: Any) -> Event:
    fields: dict[str, Any] = {
        "at_s": NOW_S, "version": "v2", "actor": "ann", "reason": "why", "facts": {"from_version": "v1"},
    }  # fmt: skip
    return Event(kind=kind, family=family, **fields | more)


class FakeReceiver:
    """Takes events; raises what stands first in `answers`, where that is an error. Implements `EventSender`."""

    def __init__(self, *answers: DeliveryError | None) -> None:
        self.answers = list(answers)
        self.got: list[int] = []
        self.tries = 0

    async def send(self, event: Event) -> None:
        self.tries += 1
        error = self.answers.pop(0) if self.answers else None
        if error is not None:
            raise error
        self.got.append(event.id)


class FakeDeliveryMeter:
    """Remembers what was counted."""

    def __init__(self) -> None:
        self.counted: Counter[DeliveryOutcome] = Counter()
        self.backlog = 0

    def count_delivery(self, receiver: str, outcome: DeliveryOutcome, n: int = 1) -> None:
        self.counted[outcome] += n

    def set_backlog(self, receiver: str, n: int) -> None:
        self.backlog = n
