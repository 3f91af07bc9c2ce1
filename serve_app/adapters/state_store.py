"""What the control plane must not forget, in SQLite or PostgreSQL: one state, an audit log, a lease.

The state is one JSON document with its revision beside it. A write locks that row, compares the revision, replaces
the document and appends to the audit log and to the events in one transaction, so a crash at any moment leaves the
old or the new. Who appends events alone locks that row as well: so their ids grow in the order of the commits.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import SQLAlchemyError

from serve_app.adapters.event_tables import EVENT_TABLES, METADATA, EventTables
from serve_app.adapters.state_database import connect, make_file, open_engine, reason_of
from serve_app.domain.errors import StaleRevisionError, StoreError
from serve_app.domain.events import Event, EventKind, EventPage
from serve_app.domain.reload import AuditEntry, StoredState
from serve_app.domain.validation import problems_of

SCHEMA_VERSION = 1

_D = TypeVar("_D", bound=BaseModel)

_METADATA = METADATA
_SCHEMA = Table("serve_app_schema", _METADATA, Column("version", Integer, nullable=False))
_STATE = Table(
    "serve_app_state",
    _METADATA,
    Column("revision", BigInteger, nullable=False),
    Column("document", Text, nullable=False),  # not JSONB: that forgets the order of keys, which says which is newest
)
_AUDIT = Table(
    "serve_app_audit",
    _METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("family", Text, nullable=False),
    Column("operation_id", Text, nullable=False),
    Column("entry", Text, nullable=False),
    Index("serve_app_audit_family", "family"),
    Index("serve_app_audit_operation_id", "operation_id"),
)
_LEASE = Table(
    "serve_app_lease",
    _METADATA,
    Column("owner", Text, nullable=False),
    Column("expires_at_s", Double, nullable=False),
)
_NOBODY = ""
_POSTGRES_SETUP_LOCK = 725_163_904  # any number that is always the same


class SqlStateStore:
    """A `StateStore`. Nothing is opened before the first call, so a database that is down delays no start.

    A call waits at most `LOCK_TIMEOUT_S` for another writer. Where the connection breaks in the very commit, the
    outcome is unknown: read again, the revision tells. Clocks of machines that share a lease may differ by less
    than its `ttl_s`; beyond that the revision alone keeps them from overwriting each other.
    """

    def __init__(self, url: str) -> None:
        """Take `sqlite:////path/of/a/file` or `postgresql://user:password@host/database`.

        Raises:
            StoreError: The URL is none that can be used, or the driver for it is not installed.
        """
        self._engine, self._file = open_engine(url)
        # The options of a URL may hold a password as well.
        self._name = f"state store {self._file or self._engine.url.set(query={}).render_as_string(hide_password=True)}"
        self._events = EventTables(self._json_of, self._parsed)
        self._is_set_up = False
        self._setting_up = Lock()

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._engine.dispose()

    def read(self) -> StoredState:
        """Return the stored state; an empty one at first."""
        with self._transaction(writes=False) as connection:
            return self._stored(connection)

    def write(
        self,
        state: StoredState,
        *,
        expected_revision: int,
        entry: AuditEntry | None = None,
        events: Sequence[Event] = (),
    ) -> None:
        """Replace the state if its revision still is `expected_revision`, append `entry` and `events`, or nothing."""
        if state.revision <= expected_revision:
            raise StoreError(f"expected a state after revision {expected_revision}, found revision {state.revision}")
        document = self._json_of(state)
        with self._transaction(writes=True) as connection:
            stored = self._stored(connection, lock=True)
            if stored.revision != expected_revision:
                raise StaleRevisionError(
                    f"{self._name}: expected revision {expected_revision}, found {stored.revision}; read it again"
                )
            connection.execute(_STATE.update().values(revision=state.revision, document=document))
            if entry is not None:
                self._append(connection, entry)
            self._events.append(connection, events)

    def append(self, entry: AuditEntry) -> None:
        """Append to the audit log without touching the state."""
        with self._transaction(writes=True) as connection:
            self._append(connection, entry)

    def audit(
        self, *, family: str | None = None, operation_id: str | None = None, limit: int = 100
    ) -> list[AuditEntry]:
        """Return the newest audit entries first."""
        query = select(_AUDIT.c.entry).order_by(_AUDIT.c.id.desc()).limit(max(limit, 0))
        if family is not None:
            query = query.where(_AUDIT.c.family == family)
        if operation_id is not None:
            query = query.where(_AUDIT.c.operation_id == operation_id)
        with self._transaction(writes=False) as connection:
            return [self._parsed(AuditEntry, entry) for entry in connection.scalars(query)]

    def append_events(self, events: Sequence[Event]) -> None:
        """Save events that belong to no change of the state."""
        with self._transaction(writes=True) as connection:
            connection.execute(select(_STATE.c.revision).with_for_update())
            self._events.append(connection, events)

    def events(self, *, after: int | None, family: str | None = None, limit: int = 100) -> EventPage:
        """Return the first events with a higher id than `after`, or the newest ones, the oldest first."""
        with self._transaction(writes=False) as connection:
            return self._events.page(connection, after=after, family=family, limit=limit)

    def newest_event(self, family: str, kinds: Collection[EventKind]) -> Event | None:
        """Return the last event of these kinds that is kept."""
        with self._transaction(writes=False) as connection:
            return self._events.newest(connection, family, kinds)

    def delivered(self, receiver: str) -> int | None:
        """Return the id up to which a receiver has everything; None where it has never got anything."""
        with self._transaction(writes=False) as connection:
            return self._events.delivered(connection, receiver)

    def set_delivered(self, receiver: str, sequence: int) -> None:
        """Save the id up to which a receiver has everything."""
        with self._transaction(writes=True) as connection:
            self._events.set_delivered(connection, receiver, sequence)

    def take_lease(self, owner: str, *, ttl_s: float, now_s: float) -> str:
        """Take or renew the lease of the one who may change things, and return who holds it now."""
        with self._transaction(writes=True) as connection:
            held = connection.execute(select(_LEASE).with_for_update()).one()
            is_free = held.owner in (_NOBODY, owner) or held.expires_at_s <= now_s
            holder = owner if is_free else held.owner
            # After a clock jumped back, another's lease would otherwise last as long as the jump was wide.
            expires_at_s = now_s + ttl_s if is_free else min(held.expires_at_s, now_s + ttl_s)
            if (holder, expires_at_s) != (held.owner, held.expires_at_s):
                connection.execute(_LEASE.update().values(owner=holder, expires_at_s=expires_at_s))
            return str(holder)

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        try:
            self._set_up()
            with connect(self._engine, writes=writes) as connection, connection.begin():
                yield connection
        except (SQLAlchemyError, OSError) as error:
            self._engine.dispose()  # a file that was opened read-only would stay so after it has been made writable
            raise StoreError(f"{self._name} cannot be {'written' if writes else 'read'}: {reason_of(error)}") from error

    def _set_up(self) -> None:
        """Make file and tables if they are missing, and refuse those of another version; once, when first used."""
        with self._setting_up:
            if self._is_set_up:
                return
            if self._file is not None:
                make_file(self._file)
            with connect(self._engine, writes=False) as connection, connection.begin():
                is_new = not inspect(connection).has_table(_SCHEMA.name)
            with connect(self._engine, writes=is_new) as connection, connection.begin():
                if is_new:
                    _make_tables(connection)
                found = connection.scalars(select(_SCHEMA.c.version)).one()
            if found != SCHEMA_VERSION:
                raise StoreError(
                    f"{self._name}: expected schema version {SCHEMA_VERSION}, found {found}; "
                    "use the version of serve-app that wrote it, nothing was changed"
                )
            self._add_tables()
            self._is_set_up = True

    def _add_tables(self) -> None:
        """Make the tables that an older serve-app did without, and never looks at."""
        with connect(self._engine, writes=False) as connection, connection.begin():
            lacks = [table for table in EVENT_TABLES if not inspect(connection).has_table(table.name)]
        if lacks:
            with connect(self._engine, writes=True) as connection, connection.begin():
                _keep_others_out(connection)
                _METADATA.create_all(connection, tables=lacks)

    def _stored(self, connection: Connection, *, lock: bool = False) -> StoredState:
        query = select(_STATE.c.revision, _STATE.c.document)
        row = connection.execute(query.with_for_update() if lock else query).one()
        return self._parsed(StoredState, row.document).model_copy(update={"revision": row.revision})

    def _append(self, connection: Connection, entry: AuditEntry) -> None:
        connection.execute(
            _AUDIT.insert().values(family=entry.family, operation_id=entry.operation_id, entry=self._json_of(entry))
        )

    def _json_of(self, document: BaseModel) -> str:
        """Write a document, and make sure that it can be read again: an infinite time, for one, could not."""
        written = document.model_dump_json()
        if self._parsed(type(document), written) != document:
            raise StoreError(f"{self._name}: this {type(document).__name__} would not read back as it was written")
        return written

    def _parsed(self, model: type[_D], document: str) -> _D:
        try:
            return model.model_validate_json(document)
        except ValidationError as error:
            newer = any(problem["type"] == "extra_forbidden" for problem in error.errors(include_url=False))
            origin = "was written by a newer version of serve-app" if newer else "is damaged, or of another version"
            problem = problems_of(error, model)[0]
            raise StoreError(
                f"{self._name}: the stored {model.__name__} {origin} ({problem}); nothing was overwritten"
            ) from error


def _make_tables(connection: Connection) -> None:
    """Make the tables with their one row each, unless another process was faster."""
    _keep_others_out(connection)
    if inspect(connection).has_table(_SCHEMA.name):
        return
    _METADATA.create_all(connection)
    first: list[tuple[Table, dict[str, Any]]] = [
        (_SCHEMA, {"version": SCHEMA_VERSION}),
        (_STATE, {"revision": 0, "document": StoredState().model_dump_json()}),
        (_LEASE, {"owner": _NOBODY, "expires_at_s": 0.0}),
    ]
    for table, row in first:
        connection.execute(table.insert().values(row))


def _keep_others_out(connection: Connection) -> None:
    """See that no other process makes tables now; SQLite's lock of a transaction that writes does that anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_SETUP_LOCK})
