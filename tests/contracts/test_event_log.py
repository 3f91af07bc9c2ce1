"""What every store promises of events, run over the fake, SQLite, and a PostgreSQL that the tests start."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, text

from serve_app.adapters.state_store import SqlStateStore
from serve_app.domain.errors import StaleRevisionError
from serve_app.domain.events import EventKind
from serve_app.domain.reload import StoredState
from serve_app.usecases.ports import StateStore
from tests.contracts.state_writers import entry, next_state
from tests.unit.usecases.eventful import event


def ids(store: StateStore, **asked: object) -> list[int]:
    return [one.id for one in store.events(**{"after": 0, **asked}).events]  # type: ignore[arg-type]  # by name


def test_a_new_store_has_told_nothing(store: StateStore) -> None:
    page = store.events(after=None)
    assert (page.events, page.oldest, page.newest) == ((), 0, 0)
    assert store.newest_event("iris", [EventKind.PIN_SET]) is None
    assert store.delivered("ops") is None


def test_events_are_saved_with_the_state_or_not_at_all(store: StateStore) -> None:
    store.write(next_state(StoredState()), expected_revision=0, entry=entry(), events=[event(), event(family="other")])
    with pytest.raises(StaleRevisionError):
        store.write(next_state(StoredState()), expected_revision=0, events=[event()])
    assert store.events(after=0).events == (event(id=1), event(id=2, family="other"))


def test_events_are_read_on_from_an_id_and_the_newest_without_one(reopen: Callable[[], StateStore]) -> None:
    store = reopen()
    store.append_events([event(family="iris" if i % 2 else "other") for i in range(6)])
    assert ids(reopen(), after=2, limit=3) == [3, 4, 5]
    assert ids(store, after=None, limit=2) == [5, 6]
    assert ids(store, after=None, limit=0) == []
    assert ids(store, after=0, family="iris") == [2, 4, 6]
    assert ids(store, after=None, family="iris", limit=1) == [6]
    assert ids(store, after=99) == []
    page = store.events(after=0, limit=0)
    assert (page.oldest, page.newest) == (1, 6)


def test_the_newest_event_of_some_kinds_is_found(store: StateStore) -> None:
    store.append_events([event(EventKind.PIN_SET), event(EventKind.PIN_LIFTED), event(EventKind.SOURCE_BACK)])
    store.append_events([event(EventKind.PIN_SET, family="other")])
    found = store.newest_event("iris", [EventKind.PIN_SET, EventKind.PIN_LIFTED])
    assert found is not None
    assert (found.id, found.kind) == (2, EventKind.PIN_LIFTED)


def test_what_a_receiver_has_is_kept(reopen: Callable[[], StateStore]) -> None:
    reopen().set_delivered("ops", 3)
    reopen().set_delivered("ops", 9)
    reopen().set_delivered("slack", 1)
    assert [reopen().delivered(name) for name in ("ops", "slack", "nobody")] == [9, 1, None]


def test_a_reader_that_goes_on_after_the_last_id_misses_no_event_of_many_writers(
    reopen: Callable[[], StateStore],
) -> None:
    stores = [reopen(), reopen()]

    def write(n: int) -> None:
        for _ in range(10):
            stores[n % 2].append_events([event(version=f"w{n}")])

    seen: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, n) for n in range(4)]
        while len(seen) < 40:
            is_over = all(task.done() for task in writing)
            found = ids(stores[0], after=seen[-1] if seen else 0, limit=7)
            seen += found
            if is_over and not found:
                break
        for task in writing:
            task.result()
    assert seen == [*range(1, 41)]


def test_only_the_newest_events_are_kept_and_no_id_is_given_twice(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqlStateStore(url)
    monkeypatch.setattr(store._events, "_kept", 3)
    for _ in range(5):
        store.append_events([event()])
    page = store.events(after=0)
    assert ([one.id for one in page.events], page.oldest, page.newest) == ([3, 4, 5], 3, 5)
    store.close()


def test_a_store_of_an_older_server_gets_the_tables_and_keeps_what_it_has(url: str) -> None:
    store = SqlStateStore(url)
    written = next_state(StoredState())
    store.write(written, expected_revision=0)
    store.close()
    engine = create_engine(url)
    with engine.begin() as connection:
        for table in ("serve_app_events", "serve_app_delivered"):
            connection.execute(text(f"DROP TABLE {table}"))
    engine.dispose()
    reopened = SqlStateStore(url)
    assert reopened.read() == written
    reopened.append_events([event()])
    assert ids(reopened) == [1]
    reopened.close()
