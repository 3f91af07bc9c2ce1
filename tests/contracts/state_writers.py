"""What the tests of a store run in processes of their own, so that these can race and be killed."""

import os
import signal
from typing import Any

from sqlalchemy import Engine, event

from serve_app.adapters.state_store import SqlStateStore
from serve_app.domain.errors import StoreError
from serve_app.domain.reload import AuditEntry, FamilyRecord, Outcome, StoredState, VersionRef
from serve_app.usecases.ports import StateStore

FAMILY = "forecaster"


def ref(version: str) -> VersionRef:
    """Return a version with a digest."""
    return VersionRef(version=version, digest=f"digest of {version}")


def entry(operation_id: str = "op-1", *, family: str = FAMILY, actor: str = "tester", at_s: float = 1.0) -> AuditEntry:
    """Return an audit entry."""
    return AuditEntry(
        at_s=at_s,
        operation_id=operation_id,
        family=family,
        actor=actor,
        action="reload",
        from_version=None,
        to_version="v1",
        reason="because",
        outcome=Outcome.RELOADED,
    )


def next_state(state: StoredState, version: str = "v1") -> StoredState:
    """Return the state after a commit of `version`."""
    return state.with_family(FAMILY, FamilyRecord(active=ref(version)), committed=True)


def win_some(store: StateStore, name: str, attempts: int) -> list[int]:
    """Read and write `attempts` times, and return the revisions of the writes that were not too late.

    On a busy machine a writer may also wait in vain for the others' lock; then it has written nothing either.
    """
    won = []
    for _ in range(attempts):
        try:
            state = store.read()
            written = next_state(state, name)
            store.write(written, expected_revision=state.revision, entry=entry(str(written.revision), actor=name))
        except StoreError:
            continue
        won.append(written.revision)
    return won


def win_some_at(url: str, name: str, attempts: int, won: Any) -> None:
    """Do so in a process with a store of its own, and put the revisions into the queue `won`."""
    store = SqlStateStore(url)
    won.put((name, win_some(store, name, attempts)))
    store.close()


def write_until_killed(url: str, started: Any) -> None:
    """Write on and on; set `started` when it has begun."""
    store = SqlStateStore(url)
    while True:
        state = store.read()
        written = next_state(state, f"v{state.revision + 1}")
        store.write(written, expected_revision=state.revision, entry=entry(str(written.revision)))
        started.set()


def die_at(url: str, event_name: str, occurrence: int) -> None:
    """Write once; `kill -9` comes at the n-th event of SQLAlchemy of that name, counted from 0, or at the end."""
    store = SqlStateStore(url)
    state = store.read()
    seen = iter(range(occurrence))

    def die(*_: Any) -> None:
        if next(seen, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, event_name, die)
    written = next_state(state, f"v{state.revision + 1}")
    store.write(written, expected_revision=state.revision, entry=entry(str(written.revision)))
    os.kill(os.getpid(), signal.SIGKILL)
