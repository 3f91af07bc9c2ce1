"""The Reconciler's copy of the stored state: every change is written first and believed afterwards."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence

from serve_app.domain.errors import StaleRevisionError
from serve_app.domain.events import Event, EventKind, EventPage, events_of
from serve_app.domain.reload import AuditEntry, FamilyRecord, StoredState
from serve_app.usecases.ports import StateStore

MAX_TRIES = 5


class StateKeeper:
    """Reads the store once and writes through it. Lives on one event loop; the store works in a thread.

    What each write means is saved with it, as events; `bell` is set, and replaced by a new one, when there are any.
    """

    def __init__(self, store: StateStore, *, now_s: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now_s = now_s
        self._lock = asyncio.Lock()
        self.state = StoredState()
        self.bell = asyncio.Event()

    async def refresh(self) -> StoredState:
        """Read the store anew.

        Raises:
            StoreError: It cannot be read now; the copy stays as it was.
        """
        async with self._lock:
            return await self._refresh()

    async def _refresh(self) -> StoredState:
        self.state = await asyncio.to_thread(self._store.read)
        return self.state

    async def update(
        self,
        family: str,
        step: Callable[[FamilyRecord], FamilyRecord],
        *,
        committed: bool = False,
        effective_at_s: float = 0.0,
        entry: AuditEntry | None = None,
        reason: str = "",
    ) -> StoredState:
        """Apply `step` to the record of a family and save it; after a lost race, apply it to what the winner left.

        `reason` is for the events, where the record does not say why a change was given up.

        Raises:
            IllegalTransitionError: The step does not fit the record; nothing is saved.
            StoreError: The store cannot be written now; nothing has changed.
        """
        async with self._lock:
            for tries in range(MAX_TRIES):
                before = self.state
                record = step(before.family(family))
                after = before.with_family(family, record, committed=committed, effective_at_s=effective_at_s)
                events = events_of(
                    family, before.family(family), record, generation=after.generation, now_s=self._now_s(),
                    reason=reason,
                )  # fmt: skip
                try:
                    await asyncio.to_thread(
                        self._store.write, after, expected_revision=before.revision, entry=entry, events=events
                    )
                except StaleRevisionError:
                    if tries == MAX_TRIES - 1:
                        raise
                    await self._refresh()
                else:
                    self.state = after
                    self._ring(events)
                    return after
        raise AssertionError("the loop returns or raises")

    async def append(self, entry: AuditEntry) -> None:
        """Append to the audit log.

        Raises:
            StoreError: The store cannot be written now.
        """
        await asyncio.to_thread(self._store.append, entry)

    async def audit(self, *, family: str | None, operation_id: str | None = None, limit: int = 50) -> list[AuditEntry]:
        """Return the newest audit entries first.

        Raises:
            StoreError: The store cannot be read now.
        """
        return await asyncio.to_thread(self._store.audit, family=family, operation_id=operation_id, limit=limit)

    async def append_events(self, events: Sequence[Event]) -> None:
        """Save events that belong to no change of the state.

        Raises:
            StoreError: The store cannot be written now.
        """
        await asyncio.to_thread(self._store.append_events, events)
        self._ring(events)

    async def events(self, *, after: int | None, family: str | None = None, limit: int = 100) -> EventPage:
        """See `EventLog.events`."""
        return await asyncio.to_thread(self._store.events, after=after, family=family, limit=limit)

    async def newest_event(self, family: str, kinds: Collection[EventKind]) -> Event | None:
        """See `EventLog.newest_event`."""
        return await asyncio.to_thread(self._store.newest_event, family, kinds)

    async def delivered(self, receiver: str) -> int | None:
        """See `EventLog.delivered`."""
        return await asyncio.to_thread(self._store.delivered, receiver)

    async def set_delivered(self, receiver: str, sequence: int) -> None:
        """See `EventLog.set_delivered`."""
        await asyncio.to_thread(self._store.set_delivered, receiver, sequence)

    def _ring(self, events: Sequence[Event]) -> None:
        if events:
            self.bell.set()
            self.bell = asyncio.Event()

    async def take_lease(self, owner: str, *, ttl_s: float, now_s: float) -> str:
        """Take or renew the lease, and return who holds it.

        Raises:
            StoreError: The store cannot be written now.
        """
        return await asyncio.to_thread(self._store.take_lease, owner, ttl_s=ttl_s, now_s=now_s)
