"""A state store in memory."""

from threading import Lock

from serve_app.domain.errors import StaleRevisionError, StoreError
from serve_app.domain.reload import AuditEntry, StoredState


class FakeStateStore:
    """Forgets everything with the process. Set `error` to make every call raise it and change nothing."""

    def __init__(self, state: StoredState | None = None) -> None:
        self.error: StoreError | None = None
        self.n_writes = 0
        self._state = state or StoredState()
        self._entries: list[AuditEntry] = []
        self._holder: str | None = None
        self._expires_at_s = 0.0
        self._lock = Lock()

    def read(self) -> StoredState:
        """Return the stored state; an empty one at first."""
        with self._lock:
            self._maybe_fail()
            return self._state

    def write(self, state: StoredState, *, expected_revision: int, entry: AuditEntry | None = None) -> None:
        """Replace the state if its revision still is `expected_revision`, and append `entry`."""
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
