"""The Reconciler's copy of the stored state: every change is written first and believed afterwards."""

import asyncio
from collections.abc import Callable

from serve_app.domain.errors import StaleRevisionError
from serve_app.domain.reload import AuditEntry, FamilyRecord, StoredState
from serve_app.usecases.ports import StateStore

MAX_TRIES = 5


class StateKeeper:
    """Reads the store once and writes through it. Lives on one event loop; the store works in a thread."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._lock = asyncio.Lock()
        self.state = StoredState()

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
    ) -> StoredState:
        """Apply `step` to the record of a family and save it; after a lost race, apply it to what the winner left.

        Raises:
            IllegalTransitionError: The step does not fit the record; nothing is saved.
            StoreError: The store cannot be written now; nothing has changed.
        """
        async with self._lock:
            for tries in range(MAX_TRIES):
                before = self.state
                record = step(before.family(family))
                after = before.with_family(family, record, committed=committed, effective_at_s=effective_at_s)
                try:
                    await asyncio.to_thread(self._store.write, after, expected_revision=before.revision, entry=entry)
                except StaleRevisionError:
                    if tries == MAX_TRIES - 1:
                        raise
                    await self._refresh()
                else:
                    self.state = after
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

    async def take_lease(self, owner: str, *, ttl_s: float, now_s: float) -> str:
        """Take or renew the lease, and return who holds it.

        Raises:
            StoreError: The store cannot be written now.
        """
        return await asyncio.to_thread(self._store.take_lease, owner, ttl_s=ttl_s, now_s=now_s)
