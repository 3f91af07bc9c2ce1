"""Tells by events when a source of models goes away and comes back, and when the configuration pins a version.

Neither is part of the stored state. What was told last is, and what is so now is compared with that: a restart in the
middle of an outage neither tells of it twice nor forgets to tell of its end.
"""

from dataclasses import dataclass

from serve_app.domain.events import Event, EventKind
from serve_app.usecases.follow_source import SourceFollower
from serve_app.usecases.keep_state import StateKeeper
from serve_app.usecases.ports import Clock

SOURCE = "source"
USER_CONFIG = "user_config"


@dataclass(slots=True)
class _Told:
    is_away: bool
    pin: str | None


class SourceWatch:
    """Compares what followers know with what was told. Lives on one event loop."""

    def __init__(self, keeper: StateKeeper, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock
        self._told: dict[str, _Told] = {}

    async def look(self, family: str, follower: SourceFollower) -> None:
        """Tell what has changed of a family's source and pin.

        Raises:
            StoreError: It could not be saved; the next look tells it.
        """
        if not follower.has_looked:
            return
        told = self._told.get(family) or await self._read(family)
        self._told[family] = told
        is_away = follower.away is not None
        if follower.has_asked and is_away != told.is_away:
            kind = EventKind.SOURCE_UNREACHABLE if is_away else EventKind.SOURCE_BACK
            await self._tell(family, kind, actor=SOURCE, reason=follower.away or "")
            told.is_away = is_away
        if follower.pin != told.pin:
            kind = EventKind.PIN_SET if follower.pin is not None else EventKind.PIN_LIFTED
            await self._tell(family, kind, actor=USER_CONFIG, version=follower.pin or told.pin)
            told.pin = follower.pin

    async def _read(self, family: str) -> _Told:
        source = await self._keeper.newest_event(family, (EventKind.SOURCE_UNREACHABLE, EventKind.SOURCE_BACK))
        pin = await self._keeper.newest_event(family, (EventKind.PIN_SET, EventKind.PIN_LIFTED))
        return _Told(
            is_away=source is not None and source.kind is EventKind.SOURCE_UNREACHABLE,
            pin=pin.version if pin is not None and pin.kind is EventKind.PIN_SET else None,
        )

    async def _tell(
        self, family: str, kind: EventKind, *, actor: str, version: str | None = None, reason: str = ""
    ) -> None:
        event = Event(at_s=self._clock.now_s(), kind=kind, family=family, version=version, actor=actor, reason=reason)
        await self._keeper.append_events([event])
