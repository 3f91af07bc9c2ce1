"""What every state store promises, run over the fake, SQLite, and a PostgreSQL that the tests start."""

import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from serve_app.adapters.state_database import LOCK_TIMEOUT_S
from serve_app.adapters.state_store import SqlStateStore
from serve_app.domain.errors import StaleRevisionError, StoreError
from serve_app.domain.reload import Change, FailedBundle, FamilyRecord, Phase, StoredState
from serve_app.usecases.ports import StateStore
from tests.contracts.postgres_server import PostgresServer
from tests.contracts.state_writers import FAMILY, entry, next_state, ref, win_some, win_some_at
from tests.fakes.state_store import FakeStateStore
from tests.forked import forked

# State


def test_new_store_has_an_empty_state_and_no_audit(store: StateStore) -> None:
    assert store.read() == StoredState()
    assert store.audit() == []


def test_written_state_is_read_back_by_the_next_process(reopen: Callable[[], StateStore]) -> None:
    change = Change(
        operation_id="op-1",
        to=ref("v2"),
        phase=Phase.TRIAL,
        actor="ü",
        reason="\0 '; --",
        started_at_s=1.5,
        deadline_s=2,
    )
    failed = {str(n): FailedBundle(version=f"v{n}", reason="bad", at_s=n / 3) for n in (9, 1, 5)}
    record = FamilyRecord(active=ref("v1"), last_good=ref("v0"), change=change, failed=failed)
    written = StoredState().with_family(FAMILY, record, committed=True)
    reopen().write(written, expected_revision=0)
    read = reopen().read()
    assert read == written
    assert list(read.family(FAMILY).failed) == ["9", "1", "5"]  # the newest stays last


def test_late_write_changes_neither_state_nor_audit(store: StateStore) -> None:
    first = next_state(StoredState(), "v1")
    store.write(first, expected_revision=0, entry=entry("won"))
    with pytest.raises(StaleRevisionError, match="expected revision 0, found 1"):
        store.write(next_state(StoredState(), "v2"), expected_revision=0, entry=entry("lost"))
    assert store.read() == first
    assert [line.operation_id for line in store.audit()] == ["won"]


def test_write_that_expects_a_revision_to_come_is_late_too(store: StateStore) -> None:
    state = StoredState(revision=5, generation=5)
    with pytest.raises(StaleRevisionError, match="expected revision 4, found 0"):
        store.write(state, expected_revision=4)
    assert store.read() == StoredState()


def test_write_that_does_not_raise_the_revision_is_refused(store: StateStore) -> None:
    with pytest.raises(StoreError, match="after revision 0"):
        store.write(StoredState(generation=1), expected_revision=0)
    assert store.read() == StoredState()


def test_of_many_threads_exactly_one_wins_each_revision(reopen: Callable[[], StateStore]) -> None:
    stores = [reopen(), reopen()]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: win_some(stores[n % 2], f"writer-{n}", 12), range(8)))
    check_that_each_revision_has_one_winner(stores[0], {f"writer-{n}": revisions for n, revisions in enumerate(won)})


def test_of_many_processes_exactly_one_wins_each_revision(url: str) -> None:
    context = forked()
    won = context.Queue()
    # They start on a store that does not exist yet, so they race for making it as well.
    writers = [context.Process(target=win_some_at, args=(url, f"writer-{n}", 15, won)) for n in range(3)]
    for writer in writers:
        writer.start()
    by_writer = dict(won.get(timeout=60) for _ in writers)
    for writer in writers:
        writer.join(timeout=30)
        assert writer.exitcode == 0
    with closing(SqlStateStore(url)) as store:
        check_that_each_revision_has_one_winner(store, by_writer)


def check_that_each_revision_has_one_winner(store: StateStore, won: dict[str, list[int]]) -> None:
    state = store.read()
    assert state.revision == state.generation > 0
    assert sorted(revision for revisions in won.values() for revision in revisions) == [*range(1, state.revision + 1)]
    lines = store.audit(limit=1000)
    assert [int(line.operation_id) for line in lines] == [*range(state.revision, 0, -1)]
    assert all(int(line.operation_id) in won[line.actor] for line in lines)


# Audit


def test_audit_gives_the_newest_first_up_to_the_limit(store: StateStore) -> None:
    for n in range(5):
        store.append(entry(f"op-{n}", at_s=-n))  # the order is that of appending, whatever the clock did
    assert [line.operation_id for line in store.audit(limit=3)] == ["op-4", "op-3", "op-2"]
    assert store.audit(limit=0) == []


def test_audit_filters_by_family_and_operation(store: StateStore) -> None:
    for operation_id, family in [("op-1", "a"), ("op-1", "b"), ("op-2", "a")]:
        store.append(entry(operation_id, family=family))
    assert store.audit(family="a") == [entry("op-2", family="a"), entry("op-1", family="a")]
    assert store.audit(operation_id="op-1") == [entry("op-1", family="b"), entry("op-1", family="a")]
    assert store.audit(family="a", operation_id="op-1", limit=1) == [entry("op-1", family="a")]
    assert store.audit(family="c") == []


def test_appending_leaves_the_state_alone(store: StateStore) -> None:
    written = next_state(StoredState())
    store.write(written, expected_revision=0)
    store.append(entry())
    assert store.read() == written


# Lease


def test_lease_is_held_until_it_expires(store: StateStore) -> None:
    assert store.take_lease("a", ttl_s=10, now_s=1000) == "a"
    assert store.take_lease("b", ttl_s=10, now_s=1009.9) == "a"
    assert store.take_lease("b", ttl_s=10, now_s=1010) == "b"
    assert store.take_lease("a", ttl_s=10, now_s=1011) == "b"


def test_holder_renews_its_lease(reopen: Callable[[], StateStore]) -> None:
    assert reopen().take_lease("a", ttl_s=10, now_s=1000) == "a"
    assert reopen().take_lease("a", ttl_s=10, now_s=1008) == "a"
    assert reopen().take_lease("b", ttl_s=10, now_s=1017) == "a"
    assert reopen().take_lease("b", ttl_s=10, now_s=1018) == "b"


def test_clock_that_jumps_back_an_hour_holds_the_lease_for_ttl_at_most(store: StateStore) -> None:
    assert store.take_lease("a", ttl_s=10, now_s=5000) == "a"
    assert store.take_lease("b", ttl_s=10, now_s=1400) == "a"
    assert store.take_lease("b", ttl_s=10, now_s=1409) == "a"
    assert store.take_lease("b", ttl_s=10, now_s=1410) == "b"


def test_holder_whose_clock_jumped_back_keeps_its_lease(store: StateStore) -> None:
    assert store.take_lease("a", ttl_s=10, now_s=5000) == "a"
    assert store.take_lease("a", ttl_s=10, now_s=1400) == "a"
    assert store.take_lease("b", ttl_s=10, now_s=1409) == "a"
    assert store.take_lease("b", ttl_s=10, now_s=1411) == "b"


def test_of_many_threads_one_gets_the_free_lease(store: StateStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        holders = set(pool.map(lambda n: store.take_lease(f"owner-{n}", ttl_s=10, now_s=1000), range(8)))
    assert len(holders) == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.tuples(st.sampled_from("abc"), st.integers(-40, 40), st.sampled_from([5, 10]))))
def test_lease_goes_to_the_same_owner_in_every_store(store: StateStore, calls: list[tuple[str, int, int]]) -> None:
    fake = FakeStateStore()
    now_s = 1000
    for each in (store, fake):  # whatever an earlier example left is over
        assert each.take_lease("before", ttl_s=0, now_s=1_000_000) == "before"
        assert each.take_lease("before", ttl_s=0, now_s=now_s) == "before"
    for owner, seconds, ttl_s in calls:
        now_s += seconds
        assert store.take_lease(owner, ttl_s=ttl_s, now_s=now_s) == fake.take_lease(owner, ttl_s=ttl_s, now_s=now_s)


# Faults that both databases know


def test_state_with_keys_of_a_newer_version_is_refused_and_kept(url: str) -> None:
    with closing(SqlStateStore(url)) as store:
        store.read()
        newer = '{"revision": 0, "generation": 3, "families": {}, "rollouts": {}}'
        execute(url, "UPDATE serve_app_state SET document = :document", document=newer)
        with pytest.raises(StoreError, match=r"newer version of serve-app \(rollouts: unknown key"):
            store.read()
        with pytest.raises(StoreError, match="nothing was overwritten"):
            store.write(next_state(StoredState()), expected_revision=0)
        assert execute(url, "SELECT document FROM serve_app_state") == [newer]


@pytest.mark.parametrize("document", ["", "{", "[]", '{"generation": "many"}'])
def test_damaged_state_is_refused_and_kept(url: str, document: str) -> None:
    with closing(SqlStateStore(url)) as store:
        store.read()
        execute(url, "UPDATE serve_app_state SET document = :document", document=document)
        with pytest.raises(StoreError, match="is damaged, or of another version"):
            store.write(next_state(StoredState()), expected_revision=0)
        assert execute(url, "SELECT document FROM serve_app_state") == [document]


def test_other_schema_version_is_refused_and_kept(url: str) -> None:
    with closing(SqlStateStore(url)) as store:
        store.append(entry())
    execute(url, "UPDATE serve_app_schema SET version = 2")
    with closing(SqlStateStore(url)) as store:
        for call in (store.read, lambda: store.append(entry())):
            with pytest.raises(StoreError, match="expected schema version 1, found 2"):
                call()
    assert len(execute(url, "SELECT id FROM serve_app_audit")) == 1


def test_state_that_could_not_be_read_back_is_refused(url: str) -> None:
    failed = FailedBundle(version="v1", reason="bad", at_s=float("inf"))
    unreadable = StoredState().with_family(FAMILY, FamilyRecord(failed={"digest": failed}))
    with closing(SqlStateStore(url)) as store:
        with pytest.raises(StoreError, match="at_s"):
            store.write(unreadable, expected_revision=0, entry=entry())
        assert store.read() == StoredState()
        assert store.audit() == []


def test_removed_tables_are_an_error_and_not_an_empty_state(url: str) -> None:
    with closing(SqlStateStore(url)) as store:
        store.read()
        execute(url, "DROP TABLE serve_app_state")
        with pytest.raises(StoreError, match="serve_app_state"):
            store.read()


def execute(url: str, statement: str, **values: str) -> list[object]:
    """Run a statement behind the store's back, and return the first column of its rows."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result.scalars()) if result.returns_rows else []
    finally:
        engine.dispose()


# PostgreSQL alone


def test_restarted_postgres_is_not_noticed(postgres: PostgresServer) -> None:
    with closing(SqlStateStore(postgres.new_database())) as store:
        written = next_state(StoredState())
        store.write(written, expected_revision=0)
        postgres.stop()
        postgres.start()
        assert store.read() == written
        store.write(next_state(written), expected_revision=1)


def test_stopped_postgres_is_an_error_until_it_is_back(postgres: PostgresServer) -> None:
    with closing(SqlStateStore(postgres.new_database())) as store:
        postgres.stop()
        try:
            with pytest.raises(StoreError, match=r"cannot be read: .*connection"):
                store.read()
        finally:
            postgres.start()
        assert store.read() == StoredState()


def test_row_locked_in_postgres_is_an_error_and_recovers(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with closing(SqlStateStore(url)) as store:
        store.read()
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("SELECT * FROM serve_app_state FOR UPDATE"))
            with pytest.raises(StoreError, match=f"keeps it locked, waited {LOCK_TIMEOUT_S} s"):
                store.write(next_state(StoredState()), expected_revision=0, entry=entry())
            assert store.read() == StoredState()
        engine.dispose()
        assert store.audit() == []
        store.write(next_state(StoredState()), expected_revision=0)


def test_read_only_postgres_can_be_read(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with closing(SqlStateStore(url)) as store:
        store.write(next_state(StoredState()), expected_revision=0)
    database = url.split("@/")[1].split("?")[0]
    postgres.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with closing(SqlStateStore(url)) as store:
        assert store.read().revision == 1
        with pytest.raises(StoreError, match="cannot be written: the database is read-only"):
            store.append(entry())


def test_password_is_in_no_message() -> None:
    store = SqlStateStore("postgresql://someone:s3cret@127.0.0.1:9/state?application_name=s3cret")
    with pytest.raises(StoreError) as caught:
        store.read()
    assert "127.0.0.1" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    for wrong in ("postgresql://someone:s3cret@host:port/state", "someone:s3cret", "mysql://someone:s3cret@host/state"):
        with pytest.raises(StoreError) as caught:
            SqlStateStore(wrong)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))
