"""Follows the source of one family: when to look, what counts as news, and what to say while it is away."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from serve_app.domain import reload
from serve_app.domain.errors import SourceError, UnknownVersionError, VersionNotFoundError
from serve_app.domain.following import FollowRule, asked_interval_s, retry_delay_s
from serve_app.domain.reload import FamilyRecord, VersionRef
from serve_app.domain.source_status import SourceStatus
from serve_app.usecases.ports import BundleRef, BundleSource, Clock, Fleet, ReloadMeter

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """A version that is to be taken up: who asks for it and why. `follows`: because the source calls it current."""

    ref: VersionRef
    actor: str
    reason: str
    follows: bool


class SourceFollower:
    """Looks at one source, at its interval and ever later while it is away. Lives on one event loop.

    Args:
        family: Whose source it is.
        source: Asked in threads.
        rule: Mode and interval.
        fleet: Asked for versions that the source does not tell of any more.
        clock: Time.
        meter: Counts failures of the source.
        dice: Uniform in [0, 1), so that many servers do not come back at the same moment.
    """

    def __init__(
        self,
        family: str,
        source: BundleSource,
        rule: FollowRule,
        *,
        fleet: Fleet,
        clock: Clock,
        meter: ReloadMeter,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._family = family
        self._source = source
        self._rule = rule
        self._fleet = fleet
        self._clock = clock
        self._meter = meter
        self._dice = dice
        self._next_look_s = 0.0
        self._next_try_at_s: float | None = None
        self._n_failed = 0
        self.pin: str | None = None
        self.trouble: str | None = None
        self.away: str | None = None
        """Why the source could not be read when it was last asked."""
        self.has_looked = False
        self.has_asked = False
        self._told: str | None = None

    @property
    def rule(self) -> FollowRule:
        """Mode and interval."""
        return self._rule

    @property
    def status(self) -> SourceStatus:
        """What is known of the source, and when it is asked again while it is away."""
        return self._source.status().model_copy(update={"next_try_s": self._next_try_at_s})

    def hurry(self) -> None:
        """Make the next look due now."""
        self._next_look_s = 0.0

    def is_due(self, pin: str | None) -> bool:
        """Say whether to look now: the interval is over, or another version is pinned than at the last look."""
        return pin != self.pin or self._clock.monotonic_s() >= self._next_look_s

    async def look(self, record: FamilyRecord, pin: str | None) -> Wish | None:
        """Ask for the pin, or for what the source calls current, and return it when it is news."""
        pin_before, self.pin = self.pin, pin
        self.has_looked = True
        self._look_again_in(self._rule.interval_s)
        if pin is None and record.active is not None and not self._rule.polls:
            return None
        try:
            found = await self._ask(pin, record)
        except (SourceError, UnknownVersionError) as error:
            self._meter.count_source_error(self._family)
            self.away, self.has_asked = (str(error) if isinstance(error, SourceError) else None), True
            self._failed(str(error), self._retry_delay_s())
            return await self._remembered() if record.active is None and pin is None else None
        self._n_failed, self._next_try_at_s, self.trouble = 0, None, None
        self.away, self.has_asked = None, True
        if found is not None and found[0].digest not in record.failed:
            self._told = None
        if found is None:
            self._failed("the source has no bundle yet", self._retry_delay_s())
            return None
        ref, interval_s = found
        self._look_again_in(interval_s)
        memory = record.model_copy(update={"followed": None}) if pin or pin_before else record
        if reload.is_news(memory, ref):
            actor = "user_config" if pin else "source"
            return Wish(ref, actor, f"{actor} asks for {ref.version}", follows=pin is None)
        if ref.digest in record.failed:
            why = f"{ref.version} was refused: {record.failed[ref.digest].reason}"
            if record.active is None:
                self._failed(why, self._retry_delay_s())
            else:
                self.trouble = why
        return None

    async def find(self, version: str | None, record: FamilyRecord) -> VersionRef | None:
        """Find a version at the source (None: what it calls current), else among what replicas still hold.

        Raises:
            SourceError: The source cannot be read now.
            UnknownVersionError: Neither has it.
        """
        if version is None:
            ref = await asyncio.to_thread(self._source.current)
            return _version_ref(ref) if ref else None
        try:
            return _version_ref(await asyncio.to_thread(self._source.find, version))
        except SourceError as error:
            for status in await self._fleet.statuses(self._family):
                for loaded in status.versions:
                    if loaded.version == version:
                        return VersionRef(version=version, digest=loaded.digest)
            if isinstance(error, VersionNotFoundError):
                known = {*error.known, *(ref.version for ref in reload.wanted_versions(record))}
                raise UnknownVersionError(self._family, version, sorted(known)) from None
            raise

    async def keep(self, record: FamilyRecord) -> None:
        """Tell the source which versions are live, so that no local copy of them is thrown away."""
        await asyncio.to_thread(self._source.keep, [ref.version for ref in reload.wanted_versions(record)])

    async def _ask(self, pin: str | None, record: FamilyRecord) -> tuple[VersionRef, float] | None:
        """Return what is wanted, and the seconds until the next look, which its `sidecar` section may ask for."""
        if pin is not None:
            ref = await self.find(pin, record)
            return (ref, self._rule.interval_s) if ref else None
        current = await asyncio.to_thread(self._source.current)
        if current is None:
            return None
        interval_s = asked_interval_s(current.facts, self._rule) if self._rule.polls else self._rule.interval_s
        return _version_ref(current), interval_s

    async def _remembered(self) -> Wish | None:
        """Return what the source last called current, from a local copy: better an old model than none."""
        try:
            ref = await asyncio.to_thread(self._source.remembered)
        except SourceError as error:
            log.warning("local copies not readable", family=self._family, reason=str(error))
            return None
        if ref is None:
            return None
        return Wish(_version_ref(ref), "source", f"the source is away, it last called {ref.version} current", True)

    def _failed(self, why: str, delay_s: float) -> None:
        self.trouble = why
        self._look_again_in(delay_s)
        self._next_try_at_s = self._clock.now_s() + delay_s
        tell = log.debug if why == self._told else log.warning  # one line, however many tries it takes
        tell("source not followed", family=self._family, reason=why, next_try_s=round(delay_s, 1))
        self._told = why

    def _retry_delay_s(self) -> float:
        delay_s = retry_delay_s(self._n_failed, dice=self._dice())
        self._n_failed += 1
        return delay_s

    def _look_again_in(self, delay_s: float) -> None:
        self._next_look_s = self._clock.monotonic_s() + delay_s


def _version_ref(ref: BundleRef) -> VersionRef:
    return VersionRef(version=ref.version, digest=ref.fingerprint)
