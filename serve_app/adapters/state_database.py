"""Opens the database of the state store, SQLite or PostgreSQL, and says in one sentence what is wrong with it."""

import os
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError

from serve_app.domain.errors import StoreError

LOCK_TIMEOUT_S = 2
"""Longest wait for another writer: many times what a write takes, and short beside the deadline of a change."""

_STATEMENT_TIMEOUT_S = 5
_CONNECT_TIMEOUT_S = 5
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_SQLITE = ("sqlite", "sqlite+pysqlite")
_WRITES = "serve_app_writes"

_SQLITE_REASONS = {
    sqlite3.SQLITE_BUSY: f"another process keeps it locked, waited {LOCK_TIMEOUT_S} s",
    sqlite3.SQLITE_LOCKED: f"another process keeps it locked, waited {LOCK_TIMEOUT_S} s",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "the file, one beside it (-wal, -shm) or its directory is read-only",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; it is gone, or access to it or its directory is denied",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it from a backup, or move it away to begin anew",
}
_POSTGRES_REASONS = {
    "25006": "the database is read-only",
    "42501": "the user may not do this",
    "53100": "the disk is full",
    "55P03": f"another process keeps it locked, waited {LOCK_TIMEOUT_S} s",
    "57014": f"the database took longer than {_STATEMENT_TIMEOUT_S} s",
}


def open_engine(url: str) -> tuple[Engine, Path | None]:
    """Return an engine for the URL, and the file of a SQLite database; nothing is connected to or made yet.

    Raises:
        StoreError: The URL is none that can be used, or the driver for it is not installed.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The cause is left out, for it quotes the URL, password and all.
        raise StoreError("state store: expected a URL such as sqlite:////var/lib/serve-app/state.db") from None
    if parsed.drivername in _SQLITE:
        return _sqlite_engine(parsed)
    if parsed.drivername in _POSTGRES:
        return _postgres_engine(parsed), None
    raise StoreError(f"state store: expected a URL of sqlite or postgresql, found {parsed.drivername!r}")


def connect(engine: Engine, *, writes: bool) -> Connection:
    """Return a connection whose transaction, where it `writes`, holds SQLite's write lock from its beginning.

    Two writers so wait for each other instead of failing halfway.
    """
    return engine.connect().execution_options(**{_WRITES: writes})


def make_file(path: Path) -> None:
    """Make an empty file that only this user can read, and its directory; what exists is kept, and made private."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        # Opening and closing it here would drop the locks that SQLite holds on it elsewhere in this process.
        with suppress(OSError):  # another owner's, or read-only: SQLite will say whether that matters
            path.chmod(0o600)


def reason_of(error: BaseException) -> str:
    """Say in half a sentence why the database refused."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(cause, sqlite3.Error) and hasattr(cause, "sqlite_errorcode"):
        # The low byte of SQLite's extended codes is the primary one.
        known = _SQLITE_REASONS.get(cause.sqlite_errorcode & 0xFF)
        return known or f"{cause} ({cause.sqlite_errorname})"
    if known := _POSTGRES_REASONS.get(getattr(cause, "sqlstate", None) or ""):
        return known
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.strerror} ({cause.filename})" if cause.filename else cause.strerror
    return _first_line(str(cause)) or type(cause).__name__


def _first_line(text: str) -> str:
    lines: Iterable[str] = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line), "")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mode


def _sqlite_engine(url: URL) -> tuple[Engine, Path]:
    if not url.database or url.database == ":memory:" or url.query:
        raise StoreError(
            "state store: expected sqlite:/// and the path of a file, without options; a state in memory would be lost"
        )
    path = Path(url.database).absolute()

    def open_file() -> sqlite3.Connection:
        # mode=rw: a file that somebody removed while the server runs is an error, never silently an empty state.
        opened = sqlite3.connect(
            f"file:{quote(str(path))}?mode=rw",
            uri=True,
            timeout=LOCK_TIMEOUT_S,
            isolation_level=None,  # the driver would begin a transaction only at the first change
            check_same_thread=False,  # the pool hands a connection to one thread at a time
        )
        try:
            # Readers and the writer do not wait for each other; each commit is on the disk before it returns.
            opened.execute("PRAGMA journal_mode = WAL")
            opened.execute("PRAGMA synchronous = FULL")
        except BaseException:
            opened.close()
            raise
        return opened

    engine = create_engine("sqlite+pysqlite://", creator=open_file, poolclass=QueuePool, pool_timeout=LOCK_TIMEOUT_S)

    @event.listens_for(engine, "connect")
    def _remember_file(_: Any, record: Any) -> None:
        record.info["file"] = _identity(path)

    @event.listens_for(engine, "checkout")
    def _refuse_another_file(_: Any, record: Any, __: Any) -> None:
        # A connection goes on writing to a file that was removed or replaced, and all of it would be lost; one that
        # was opened while the file was read-only stays so.
        if _identity(path) != record.info["file"]:
            raise DisconnectionError(f"{path} was removed, replaced, or given other permissions")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine, path


def _postgres_engine(url: URL) -> Engine:
    defaults = {
        "connect_timeout": str(_CONNECT_TIMEOUT_S),
        "tcp_user_timeout": str(_STATEMENT_TIMEOUT_S * 1000),  # a peer that vanished is noticed
        "options": f"-c lock_timeout={LOCK_TIMEOUT_S}s -c statement_timeout={_STATEMENT_TIMEOUT_S}s",
    }
    missing = {key: value for key, value in defaults.items() if key not in url.query}
    try:
        return create_engine(
            url.set(drivername="postgresql+psycopg").update_query_dict(missing),
            isolation_level="READ COMMITTED",  # what the row locks of the store count on, whatever the server's default
            pool_timeout=LOCK_TIMEOUT_S,
            pool_pre_ping=True,  # a server that was restarted costs a reconnect, not an error
        )
    except ImportError as error:
        raise StoreError("state store: PostgreSQL needs its driver, pip install 'serve-app[postgres]'") from error
