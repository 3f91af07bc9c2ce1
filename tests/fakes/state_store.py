"""A state store in memory."""

from collections.abc import Collection, Sequence
from threading import Lock

from serve_app.domain.errors import StaleRevisionError, StoreError
from serve_app.domain.events import Event, EventKind, EventPage
from serve_app.domain.reload import AuditEntry, StoredState


class FakeStateStore:
    """Forgets everything with the process. Set `error` to make every call raise it and change nothing."""

    def __init__(self, state: StoredState | None = None) -> None:
        self.error: StoreError | None = None
        self.n_writes = 0
        self._state = state or StoredState()
        self._entries: list[AuditEntry] = []
        self.told: list[Event] = []
        self._delivered: dict[str, int] = {}
        self._holder: str | None = None
        self._expires_at_s = 0.0
        self._lock = Lock()

    def read(self) -> StoredState:
        """Return the stored state; an empty one at first."""
        with self._lock:
            self._maybe_fail()
            return self._state

    def write(
        self,
        state: StoredState,
        *,
        expected_revision: int,
        entry: AuditEntry | None = None,
        events: Sequence[Event] = (),
    ) -> None:
        """Replace the state if its revision still is `expected_revision`, and append `entry` and `events`."""
        with self._lock:
            self._maybe_fail()
            if state.revision <= expected_revision:
                raise StoreError(f"expected a state after revision {expected_revision}, found {state.revision}")
            if self._state.revision != expected_revision:
                raise StaleRevisionError(f"expected revision {expected_revision}, found {self._state.revision}")
            self._state = state
            self.n_writes += 1
            if entry is not None:
                self._entries.append(entry)
            self._tell(events)

    def append(self, entry: AuditEntry) -> None:
        """Append to the audit log."""
        with self._lock:
            self._maybe_fail()
            self._entries.append(entry)

    def audit(
        self, *, family: str | None = None, operation_id: str | None = None, limit: int = 100
    ) -> list[AuditEntry]:
        """Return the newest audit entries first."""
        with self._lock:
            self._maybe_fail()
            fitting = [
                entry
                for entry in reversed(self._entries)
                if family in (None, entry.family) and operation_id in (None, entry.operation_id)
            ]
            return fitting[: max(limit, 0)]

    def append_events(self, events: Sequence[Event]) -> None:
        """Save events that belong to no change of the state."""
        with self._lock:
            self._maybe_fail()
            self._tell(events)

    def events(self, *, after: int | None, family: str | None = None, limit: int = 100) -> EventPage:
        """Return the first events with a higher id than `after`, or the newest ones, the oldest first."""
        with self._lock:
            self._maybe_fail()
            fitting = [event for event in self.told if family in (None, event.family) and event.id > (after or 0)]
            chosen = fitting[: max(limit, 0)] if after is not None else fitting[len(fitting) - max(limit, 0) :]
            ids = [event.id for event in self.told]
            return EventPage(events=tuple(chosen), oldest=min(ids, default=0), newest=max(ids, default=0))

    def newest_event(self, family: str, kinds: Collection[EventKind]) -> Event | None:
        """Return the last event of these kinds."""
        with self._lock:
            self._maybe_fail()
            return next((one for one in reversed(self.told) if one.family == family and one.kind in kinds), None)

    def delivered(self, receiver: str) -> int | None:
        """Return the id up to which a receiver has everything; None where it has never got anything."""
        with self._lock:
            self._maybe_fail()
            return self._delivered.get(receiver)

    def set_delivered(self, receiver: str, sequence: int) -> None:
        """Save the id up to which a receiver has everything."""
        with self._lock:
            self._maybe_fail()
            self._delivered[receiver] = sequence

    def _tell(self, events: Sequence[Event]) -> None:
        first = self.told[-1].id + 1 if self.told else 1
        self.told += [event.model_copy(update={"id": first + i}) for i, event in enumerate(events)]

    def take_lease(self, owner: str, *, ttl_s: float, now_s: float) -> str:
        """Take or renew the lease, and return who holds it now."""
        with self._lock:
            self._maybe_fail()
            if self._holder is None or self._holder == owner or now_s >= self._expires_at_s:
                self._holder, self._expires_at_s = owner, now_s + ttl_s
            self._expires_at_s = min(self._expires_at_s, now_s + ttl_s)
            return self._holder

    def _maybe_fail(self) -> None:
        if self.error is not None:
            raise self.error
