"""The tables of events and of what receivers have got, beside those of the state in the same database."""

from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeVar

from pydantic import BaseModel
from sqlalchemy import BigInteger, Column, Connection, Identity, Index, Integer, MetaData, Table, Text, func, select

from serve_app.domain.events import Event, EventKind, EventPage
from serve_app.usecases.event_ports import KEPT_EVENTS

METADATA = MetaData()
_EVENTS: Final = Table(
    "serve_app_events",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("family", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("event", Text, nullable=False),
    Index("serve_app_events_family", "family"),
)
_DELIVERED: Final = Table(
    "serve_app_delivered",
    METADATA,
    Column("receiver", Text, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
)
EVENT_TABLES: Final = (_EVENTS, _DELIVERED)

_D = TypeVar("_D", bound=BaseModel)


class EventTables:
    """What is done with them within a transaction. Who appends holds the lock of the state.

    Args:
        json_of: Writes a document so that it can be read again.
        parsed: Reads one.
        kept: How many events are kept; the newest always is, so that no id is given twice.
    """

    def __init__(
        self,
        json_of: Callable[[BaseModel], str],
        parsed: Callable[[type[Event], str], Event],
        *,
        kept: int = KEPT_EVENTS,
    ) -> None:
        self._json_of = json_of
        self._parsed = parsed
        self._kept = kept

    def append(self, connection: Connection, events: Sequence[Event]) -> None:
        """Save events and throw away those that are too many."""
        for event in events:
            row = {"family": event.family, "kind": event.kind.value, "event": self._json_of(event)}
            connection.execute(_EVENTS.insert().values(row))
        if events:
            newest = connection.scalar(select(func.max(_EVENTS.c.id)))
            connection.execute(_EVENTS.delete().where(_EVENTS.c.id <= newest - self._kept))

    def page(self, connection: Connection, *, after: int | None, family: str | None, limit: int) -> EventPage:
        """See `EventLog.events`."""
        # First of all: PostgreSQL shows the later of two queries what was committed in between.
        oldest, newest = connection.execute(select(func.min(_EVENTS.c.id), func.max(_EVENTS.c.id))).one()
        query = select(_EVENTS.c.id, _EVENTS.c.event).where(_EVENTS.c.id <= (newest or 0)).limit(max(limit, 0))
        if family is not None:
            query = query.where(_EVENTS.c.family == family)
        if after is None:
            query = query.order_by(_EVENTS.c.id.desc())
        else:
            query = query.where(_EVENTS.c.id > after).order_by(_EVENTS.c.id)
        found = [self._read(id_, event) for id_, event in connection.execute(query)]
        return EventPage(
            events=tuple(found if after is not None else reversed(found)), oldest=oldest or 0, newest=newest or 0
        )

    def newest(self, connection: Connection, family: str, kinds: Collection[EventKind]) -> Event | None:
        """See `EventLog.newest_event`."""
        query = (
            select(_EVENTS.c.id, _EVENTS.c.event)
            .where(_EVENTS.c.family == family, _EVENTS.c.kind.in_([kind.value for kind in kinds]))
            .order_by(_EVENTS.c.id.desc())
            .limit(1)
        )
        row = connection.execute(query).one_or_none()
        return None if row is None else self._read(row.id, row.event)

    def delivered(self, connection: Connection, receiver: str) -> int | None:
        """See `EventLog.delivered`."""
        return connection.scalar(select(_DELIVERED.c.sequence).where(_DELIVERED.c.receiver == receiver))

    def set_delivered(self, connection: Connection, receiver: str, sequence: int) -> None:
        """See `EventLog.set_delivered`."""
        changed = connection.execute(
            _DELIVERED.update().where(_DELIVERED.c.receiver == receiver).values(sequence=sequence)
        )
        if changed.rowcount == 0:
            connection.execute(_DELIVERED.insert().values(receiver=receiver, sequence=sequence))

    def _read(self, id_: int, event: str) -> Event:
        return self._parsed(Event, event).model_copy(update={"id": id_})
