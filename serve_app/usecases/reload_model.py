"""One change of version, from trial to release: trial -> prepare -> cover -> commit -> release.

Every step is saved before the next begins, and every step may be repeated, so that a change which was interrupted at
any point goes on where it was. Nothing a candidate does is seen by requests before the commit; after it nothing fails.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from serve_app.domain import reload
from serve_app.domain.coverage import Covered, coverage, next_to_unload
from serve_app.domain.errors import ReloadError, SourceError, TrialError
from serve_app.domain.reload import AuditEntry, Change, FamilyRecord, Phase, StoredState, VersionRef
from serve_app.domain.status import ReplicaStatus
from serve_app.usecases.keep_state import StateKeeper
from serve_app.usecases.ports import Clock, Fleet, Gateways, ReloadMeter, Trial, TrialLimits

FLIP_DELAY_S = 0.06
"""From the beginning of a commit until all gateways take it up together: saving takes some 10 ms, telling them 20."""
COVER_POLL_S = 0.05
"""How often replicas are asked while they prepare; an answer costs a millisecond."""
REREAD_S = 0.5
"""How often replicas that could not read a bundle try again while they are waited for."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReloadPolicy:
    """Bounds of one change: the trial's limits, and seconds until every replica must be ready.

    `unloads_first`: replicas that have no room for two versions let go of the old one first, half of them at a time.
    """

    trial: TrialLimits
    prepare_timeout_s: float
    unloads_first: bool = False


class CandidateError(ReloadError):
    """A candidate was refused, or is not ready in time. `blames_bundle` is true where it is the bundle's own fault."""

    def __init__(self, message: str, *, blames_bundle: bool) -> None:
        self.blames_bundle = blames_bundle
        super().__init__(message)


class ModelReloader:
    """Runs the changes of one family, one at a time. Rollouts, which have steps of their own, use its parts."""

    def __init__(
        self,
        family: str,
        policy: ReloadPolicy,
        *,
        keeper: StateKeeper,
        fleet: Fleet,
        gateways: Gateways,
        trial: Trial,
        clock: Clock,
        meter: ReloadMeter,
    ) -> None:
        self._family = family
        self._policy = policy
        self._keeper = keeper
        self._fleet = fleet
        self._gateways = gateways
        self._trial = trial
        self._clock = clock
        self._meter = meter
        self._n_gateways: int | None = None

    @property
    def unloads_first(self) -> bool:
        """True where replicas without room for two versions let go of the old one first."""
        return self._policy.unloads_first

    @property
    def record(self) -> FamilyRecord:
        """What is stored of the family now."""
        return self._keeper.state.family(self._family)

    async def run(self) -> None:
        """Carry the stored change to its end.

        Raises:
            ReloadError: The change was given up; what was active before still is.
            StoreError: The state cannot be written now. The change stays as it is stored, and may be run again.
        """
        while (change := self.record.change) is not None:
            started_s = self._clock.monotonic_s()
            try:
                await self._step(change)
            except CandidateError as error:
                await self._give_up(str(error), blame_bundle=error.blames_bundle)
            self._meter.observe_stage(self._family, change.phase, self._clock.monotonic_s() - started_s)

    async def _step(self, change: Change) -> None:
        match change.phase:
            case Phase.TRIAL:
                await self.try_out(change.to)
                await self._save(reload.tried)
            case Phase.PREPARE:
                await self.cover(change.to)
                await self._gateways.refresh(self._family)
                await self._commit()
            case Phase.RELEASE:
                await self._gateways.push(reload.table_of(self._keeper.state))
                await self._fleet.hold(self._family, reload.wanted_versions(self.record))
                await self._save(reload.released)

    async def try_out(self, ref: VersionRef) -> None:
        """Hold the trial, unless every replica has the very bundle loaded already.

        Raises:
            CandidateError: It was refused, or the trial could not be held.
        """
        if await self._is_resident(ref):
            return
        try:
            tried = await self._trial.run(self._family, ref.version, self._policy.trial)
        except TrialError as error:
            raise CandidateError(str(error), blames_bundle=error.blames_bundle) from error
        except SourceError as error:
            raise CandidateError(str(error), blames_bundle=False) from error
        if tried.digest != ref.digest:
            found = f"expected the bundle {ref.digest[:12]}, found {tried.digest[:12]}"
            raise CandidateError(f"{found}: it changed during its trial", blames_bundle=False)

    async def _is_resident(self, ref: VersionRef) -> bool:
        statuses = await self._fleet.statuses(self._family)
        return bool(statuses) and all(status.holds_bundle(ref.version, ref.digest) for status in statuses)

    async def cover(self, ref: VersionRef) -> None:
        """Have every routable replica load the candidate, and wait until all report it ready, or half of them.

        Raises:
            CandidateError: A replica refused it, or not all are ready in time.
        """
        asked_s = self._clock.monotonic_s()
        deadline_s = asked_s + self._policy.prepare_timeout_s
        await self._fleet.prepare(self._family, reload.wanted_versions(self.record))
        asked = 1
        while True:
            statuses = await self._fleet.statuses(self._family)
            seen = self._covered(statuses, ref)
            if seen.is_complete:
                seen = self._covered(statuses, ref, expected=await self._fleet.routable(self._family))
            if seen.is_complete:
                return
            if seen.failure is not None:
                raise CandidateError(seen.failure, blames_bundle=True)
            if self._clock.monotonic_s() > deadline_s:
                raise CandidateError(
                    f"not ready within {self._policy.prepare_timeout_s:g} s: {seen.waiting_for}", blames_bundle=False
                )
            if self._policy.unloads_first and (turn := next_to_unload(statuses, ref)):
                refs = dict.fromkeys((ref, *reload.wanted_versions(self.record)))
                await self._fleet.prepare(self._family, tuple(refs), unloading=[turn])
                deadline_s = self._clock.monotonic_s() + self._policy.prepare_timeout_s
            elif asked < len(statuses) or (  # a replica that came since does not know the candidate
                any(ref.digest in status.unread for status in statuses)
                and self._clock.monotonic_s() >= asked_s + REREAD_S
            ):
                asked_s = self._clock.monotonic_s()
                await self._fleet.prepare(self._family, reload.wanted_versions(self.record))
            asked = len(statuses)
            await asyncio.sleep(COVER_POLL_S)

    def _covered(self, statuses: Sequence[ReplicaStatus], ref: VersionRef, *, expected: int = 0) -> Covered:
        return coverage(statuses, ref, expected=expected, unloads_first=self._policy.unloads_first)

    async def _commit(self) -> None:
        before = self.record.active
        store_s, push_s = await self.flip(reload.commit)
        active = self.record.active
        log.info(
            "version changed",
            family=self._family,
            from_version=before.version if before else None,
            version=active.version if active else None,
            generation=self._keeper.state.generation,
            store_ms=round(store_s * 1e3, 1),
            push_ms=round(push_s * 1e3, 1),
        )

    async def flip(
        self, step: Callable[[FamilyRecord], FamilyRecord], *, entry: AuditEntry | None = None
    ) -> tuple[float, float]:
        """Save a new generation and have all gateways take it up together; return the seconds of saving and telling.

        Raises:
            StoreError: It could not be saved; nothing has changed.
        """
        started_s = self._clock.monotonic_s()
        # One gateway need not wait for others. How many there are is known from the last push.
        delay_s = 0.0 if self._n_gateways == 1 else FLIP_DELAY_S
        await self._keeper.update(
            self._family, step, committed=True, effective_at_s=self._clock.now_s() + delay_s, entry=entry
        )
        pushed_s = self._clock.monotonic_s()
        self._n_gateways = await self._gateways.push(reload.table_of(self._keeper.state))
        await asyncio.sleep(started_s + delay_s - self._clock.monotonic_s())
        ended_s = self._clock.monotonic_s()
        self._meter.observe_commit(self._family, ended_s - started_s)
        return pushed_s - started_s, ended_s - pushed_s

    async def _give_up(self, why: str, *, blame_bundle: bool) -> None:
        change = self.record.change
        assert change is not None, "only a change under way is given up"
        now_s = self._clock.now_s()
        await self._keeper.update(
            self._family,
            lambda record: reload.abort(record, reason=why, now_s=now_s, blame_bundle=blame_bundle),
            reason=why,
        )
        await self._fleet.hold(self._family, reload.wanted_versions(self.record))
        if change.phase is Phase.PREPARE:  # before, no replica has met it
            await self._fleet.evict(self._family, change.to)
        log.error("version refused", family=self._family, version=change.to.version, reason=why)
        raise ReloadError(why)

    async def _save(self, step: Callable[[FamilyRecord], FamilyRecord]) -> None:
        await self._keeper.update(self._family, step)


def audit_entry(
    state: StoredState, family: str, operation: reload.Operation, *, actor: str, action: str, reason: str, at_s: float
) -> AuditEntry:
    """Build the line that tells of an ended operation."""
    return AuditEntry(
        at_s=at_s,
        operation_id=operation.operation_id,
        family=family,
        actor=actor,
        action=action,
        from_version=operation.from_version,
        to_version=operation.to_version,
        reason=reason,
        outcome=operation.outcome,
        detail=operation.detail,
        generation=state.generation,
    )
