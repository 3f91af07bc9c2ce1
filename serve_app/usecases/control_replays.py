"""Replays and shadows as the control plane tells of them: what is asked is checked, then run or merged."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import structlog

from serve_app.domain.diff_report import ShadowDiff
from serve_app.domain.errors import InvalidInputError, NotOfferedError, UnknownFamilyError, VersionNotFoundError
from serve_app.domain.recording import ReplayReport
from serve_app.domain.rollout_record import RolloutReport
from serve_app.domain.rollout_state import NoRolloutError
from serve_app.usecases.keep_shadows import ShadowKeeper
from serve_app.usecases.ports import BundleSource
from serve_app.usecases.replay_ports import Replayer

log = structlog.get_logger(__name__)


class ReplayControl:
    """Implements `ReplayPlane`.

    Args:
        sources: Of all families.
        recorded: Families that record requests.
        replayer: Runs versions.
        shadows: What gateways tell.
        rollouts: Returns the last rollout of each family.
    """

    def __init__(
        self,
        sources: Mapping[str, BundleSource],
        recorded: Collection[str],
        *,
        replayer: Replayer,
        shadows: ShadowKeeper,
        rollouts: Callable[[], Awaitable[Sequence[RolloutReport]]],
    ) -> None:
        self._sources = dict(sources)
        self._recorded = frozenset(recorded)
        self._replayer = replayer
        self._shadows = shadows
        self._rollouts = rollouts

    async def shadow(self, family: str) -> ShadowDiff:
        """See `ReplayPlane.shadow`."""
        self._known(family)
        for report in await self._rollouts():
            if report.family == family:
                return await self._shadows.shadow(report.state)
        raise NoRolloutError(family)

    async def replay(self, family: str, *, version: str, limit: int | None, actor: str) -> ReplayReport:
        """See `ReplayPlane.replay`."""
        source = self._known(family)
        if family not in self._recorded:
            raise InvalidInputError(f"family {family!r} records no requests (families.{family}.record)")
        try:
            await asyncio.to_thread(source.find, version)
        except VersionNotFoundError as error:
            known = ", ".join(error.known) or "none"
            raise NotOfferedError(f"the source of {family!r} has no version {version!r}; it has {known}") from error
        log.info("replay asked for", family=family, version=version, limit=limit, actor=actor)
        return await self._replayer.run(family, version, limit=limit)

    def _known(self, family: str) -> BundleSource:
        if family not in self._sources:
            raise UnknownFamilyError(family, list(self._sources))
        return self._sources[family]
