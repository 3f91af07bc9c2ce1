"""What can happen to a SQLite file: kills, locks, full and read-only disks, damage."""

import os
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from serve_app.adapters.state_database import LOCK_TIMEOUT_S
from serve_app.adapters.state_store import SqlStateStore
from serve_app.domain.errors import StoreError
from serve_app.domain.reload import StoredState
from tests.contracts.state_writers import die_at, entry, next_state, ref, write_until_killed
from tests.forked import forked

NOBODY = 65534


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "state.db"


@pytest.fixture
def store(file: Path) -> Iterator[SqlStateStore]:
    """Return a store that has one write behind it."""
    with closing(SqlStateStore(f"sqlite:///{file}")) as store:
        store.write(next_state(StoredState()), expected_revision=0, entry=entry("1"))
        yield store


def write_one_more(store: SqlStateStore) -> None:
    state = store.read()
    store.write(next_state(state), expected_revision=state.revision, entry=entry(str(state.revision + 1)))


def write_until_refused(store: SqlStateStore) -> None:
    for _ in range(100):  # what is in the last page of the log still fits
        write_one_more(store)


def check_that_nothing_is_half_written(store: SqlStateStore) -> int:
    """Check that the audit log has exactly one line for each revision, and return the revision."""
    state = store.read()
    assert state.revision == state.generation
    assert [int(line.operation_id) for line in store.audit(limit=10_000)] == [*range(state.revision, 0, -1)]
    return state.revision


# The file


def test_file_and_directory_are_made_for_this_user_alone(store: SqlStateStore, file: Path) -> None:
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in file.parent.iterdir()} == {
        "state.db": 0o600,
        "state.db-wal": 0o600,
        "state.db-shm": 0o600,
    }


def test_file_that_others_could_read_is_made_private(store: SqlStateStore, file: Path) -> None:
    store.close()
    file.chmod(0o644)
    with closing(SqlStateStore(f"sqlite:///{file}")) as reopened:
        assert reopened.read().revision == 1
    assert file.stat().st_mode & 0o777 == 0o600


def test_commits_reach_the_disk_before_they_return(store: SqlStateStore) -> None:
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_nothing_is_made_before_the_first_call(file: Path) -> None:
    with closing(SqlStateStore(f"sqlite:///{file}")):
        assert not file.parent.exists()


@pytest.mark.parametrize("name", ["a b", "ä", "50%", "q?x=1", "#1", "a%20b"])
def test_path_with_unusual_characters_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / "state.db"
    with closing(SqlStateStore(f"sqlite:///{str(file).replace('%', '%25').replace('?', '%3F')}")) as store:
        write_one_more(store)
    assert file.stat().st_size > 0


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///x.db?mode=memory"])
def test_state_in_memory_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="path of a file"):
        SqlStateStore(url)


def test_relative_path_is_not_moved_by_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(SqlStateStore("sqlite:///state.db")) as store:
        monkeypatch.chdir("/")
        write_one_more(store)
    assert (tmp_path / "state.db").exists()


def test_missing_postgres_driver_is_named() -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from serve_app.adapters.state_store import SqlStateStore\n"
        "try: SqlStateStore('postgresql://host/state')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "StoreError state store: PostgreSQL needs its driver, pip install 'serve-app[postgres]'\n"


# Kills


def test_write_killed_anywhere_leaves_the_old_or_the_new_state(store: SqlStateStore, file: Path) -> None:
    store.close()
    context = forked()
    revision, before_commit, after_commit = 1, 0, 0
    for event_name in ("before_cursor_execute", "after_cursor_execute", "commit"):
        for occurrence in range(9):
            writer = context.Process(target=die_at, args=(f"sqlite:///{file}", event_name, occurrence))
            writer.start()
            writer.join(timeout=30)
            assert writer.exitcode == -9
            found = check_that_nothing_is_half_written(store)
            store.close()
            assert found in (revision, revision + 1)
            before_commit, after_commit = before_commit + (found == revision), after_commit + (found > revision)
            revision = found
    assert before_commit >= 5
    assert after_commit >= 5


def test_writer_killed_at_random_loses_no_finished_write(file: Path) -> None:
    context = forked()
    revision = 0
    for seed in range(20):
        started = context.Event()
        writer = context.Process(target=write_until_killed, args=(f"sqlite:///{file}", started))
        writer.start()
        assert started.wait(timeout=30)
        threading.Event().wait(random.Random(seed).uniform(0, 0.05))
        writer.kill()
        writer.join(timeout=30)
        with closing(SqlStateStore(f"sqlite:///{file}")) as store:
            found = check_that_nothing_is_half_written(store)
        assert found > revision
        revision = found
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# Locks


def test_file_locked_by_another_is_an_error_in_time_and_recovers(store: SqlStateStore, file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began_s = time.monotonic()
        with pytest.raises(
            StoreError, match=f"cannot be written: another process keeps it locked, waited {LOCK_TIMEOUT_S} s"
        ):
            write_one_more(store)
        assert LOCK_TIMEOUT_S * 0.9 < time.monotonic() - began_s < LOCK_TIMEOUT_S + 2
        assert store.read().revision == 1  # readers do not wait for a writer
        other.execute("ROLLBACK")
    write_one_more(store)
    assert check_that_nothing_is_half_written(store) == 2


def test_file_locked_from_the_beginning_is_an_error_and_recovers(file: Path) -> None:
    file.parent.mkdir()
    with (
        closing(sqlite3.connect(file, isolation_level=None)) as other,
        closing(SqlStateStore(f"sqlite:///{file}")) as store,
    ):
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="cannot be read: another process keeps it locked"):
            store.read()
        other.execute("ROLLBACK")
        write_one_more(store)


# Disks


def test_read_only_file_and_directory_are_an_error_and_recover() -> None:
    with ordinary_user_directory() as directory:
        file = directory / "state" / "state.db"
        with closing(SqlStateStore(f"sqlite:///{file}")) as store:
            write_one_more(store)
            store.close()
            file.chmod(0o400)
            file.parent.chmod(0o500)
            with pytest.raises(StoreError, match=r"state\.db cannot be written: the file"):
                store.append(entry())
            file.chmod(0o400)
            file.parent.chmod(0o700)
            with pytest.raises(StoreError, match=r"cannot be written: the file.* is read-only"):
                store.append(entry())
            assert store.read().revision == 1
            for path in file.parent.iterdir():  # SQLite gives the files beside it the same permissions
                path.chmod(0o600)
            write_one_more(store)
            assert check_that_nothing_is_half_written(store) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_file_of_another_user_is_an_error_until_it_is_given_back() -> None:
    with ordinary_user_directory() as directory, closing(SqlStateStore(f"sqlite:///{directory}/state.db")) as store:
        write_one_more(store)
        store.close()
        give(directory / "state.db", 0)
        with pytest.raises(StoreError, match="is read-only"):
            store.append(entry())
        give(directory / "state.db", NOBODY)
        write_one_more(store)
        assert check_that_nothing_is_half_written(store) == 2


def give(file: Path, uid: int) -> None:
    os.seteuid(0)
    file.chmod(0o644)
    os.chown(file, uid, uid)
    os.seteuid(NOBODY)


def test_directory_that_cannot_be_made_is_an_error_and_recovers() -> None:
    with ordinary_user_directory() as directory:
        directory.chmod(0o500)
        with closing(SqlStateStore(f"sqlite:///{directory}/state/state.db")) as store:
            with pytest.raises(StoreError, match=r"cannot be read: Permission denied \(.*/state\)"):
                store.read()
            directory.chmod(0o700)
            write_one_more(store)


def test_full_disk_is_an_error_and_recovers() -> None:
    with small_disk(size="1m") as disk, closing(SqlStateStore(f"sqlite:///{disk}/state.db")) as store:
        write_one_more(store)
        filler = disk / "filler"
        fill(filler)
        with pytest.raises(StoreError, match="cannot be written: the disk is full"):
            write_until_refused(store)
        revision = check_that_nothing_is_half_written(store)
        filler.unlink()
        write_one_more(store)
        assert check_that_nothing_is_half_written(store) == revision + 1


def test_disk_that_is_full_from_the_beginning_is_an_error_and_recovers() -> None:
    with small_disk(size="1m") as disk, closing(SqlStateStore(f"sqlite:///{disk}/state.db")) as store:
        filler = disk / "filler"
        fill(filler)
        with pytest.raises(StoreError, match="cannot be read"):
            store.read()
        filler.unlink()
        write_one_more(store)
        assert check_that_nothing_is_half_written(store) == 1


def test_write_that_the_system_cuts_off_is_an_error_and_recovers(store: SqlStateStore, file: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.with_name("state.db-wal").stat().st_size + 10_000, hard))
    try:
        with pytest.raises(StoreError, match="cannot be written: disk I/O error"):
            write_until_refused(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    revision = check_that_nothing_is_half_written(store)
    write_one_more(store)
    assert check_that_nothing_is_half_written(store) == revision + 1


# Damage


def test_file_that_is_no_database_is_refused_and_kept(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"no database " * 1000)
    with closing(SqlStateStore(f"sqlite:///{file}")) as store:
        for call in (store.read, lambda: store.append(entry())):
            with pytest.raises(StoreError, match="the file is no SQLite database"):
                call()
    assert file.read_bytes() == b"no database " * 1000


def test_damaged_file_is_refused(store: SqlStateStore, file: Path) -> None:
    store.close()  # moves the log into the file
    with file.open("r+b") as stream:
        stream.seek(100)
        stream.write(os.urandom(file.stat().st_size - 100))
    with closing(SqlStateStore(f"sqlite:///{file}")) as damaged, pytest.raises(StoreError, match="the file is damaged"):
        damaged.read()


def test_directory_in_place_of_the_file_is_refused(file: Path) -> None:
    file.mkdir(parents=True)
    with closing(SqlStateStore(f"sqlite:///{file}")) as store, pytest.raises(StoreError, match="cannot be opened"):
        store.read()


def test_removed_file_is_an_error_and_not_an_empty_state(store: SqlStateStore, file: Path) -> None:
    for path in file.parent.iterdir():
        path.unlink()
    for call in (store.read, lambda: store.append(entry())):
        with pytest.raises(StoreError, match="it is gone"):
            call()
    assert not file.exists()


def test_restored_backup_is_followed(store: SqlStateStore, file: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    write_one_more(store)
    assert store.read().revision == 2
    for path in file.parent.iterdir():
        path.unlink()
    backup.rename(file)
    assert store.read() == next_state(StoredState())
    assert store.read().family("forecaster").active == ref("v1")


@contextmanager
def ordinary_user_directory() -> Iterator[Path]:
    """Make a directory, and be no longer root while it is used: permissions mean nothing to root."""
    was_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if was_root:
            os.chown(directory, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield directory
        finally:
            if was_root:
                os.seteuid(0)


@contextmanager
def small_disk(*, size: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name], capture_output=True, text=True, check=False
        )
        if mounted.returncode != 0:
            pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


def fill(filler: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(2_000_000))
