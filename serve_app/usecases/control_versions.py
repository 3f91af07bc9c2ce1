"""The control plane: takes wishes (admin calls, pins, what a source calls current) and turns them into changes.

One object for all families, each with its own loop, so that no family waits for another. It is the only writer of the
state store; a cluster that does not hold the store's lease follows what the other one writes and changes nothing.
"""

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from serve_app.domain import reload
from serve_app.domain.errors import (
    NotOfferedError,
    PinnedError,
    RefusedVersionError,
    ReloadDisabledError,
    SourceError,
    UnavailableError,
    UnknownFamilyError,
    UnknownVersionError,
)
from serve_app.domain.events import EventPage
from serve_app.domain.experiment_report import ExperimentReport
from serve_app.domain.following import agree, pin_of, retry_delay_s
from serve_app.domain.reload import AuditEntry, FamilyRecord, KnownVersion, Operation, Outcome, RoutingTable, VersionRef
from serve_app.domain.rollout import Command
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutReport
from serve_app.domain.status import ReplicaStatus
from serve_app.usecases.control_rollouts import RolloutControl, operation_of, went_back
from serve_app.usecases.controlled_family import ControlledFamily
from serve_app.usecases.keep_state import StateKeeper
from serve_app.usecases.ports import BundleRef, Clock, Fleet, Gateways, ReloadMeter
from serve_app.usecases.run_changes import ChangeRuns, Run
from serve_app.usecases.watch_sources import SourceWatch

LEASE_TTL_S = 15.0
log = structlog.get_logger(__name__)


class VersionControl:
    """Implements `ControlPlane`. Lives on one event loop."""

    def __init__(
        self,
        families: Mapping[str, ControlledFamily],
        *,
        owner: str,
        keeper: StateKeeper,
        fleet: Fleet,
        gateways: Gateways,
        clock: Clock,
        meter: ReloadMeter,
    ) -> None:
        self._families = families
        self._owner = owner
        self._keeper = keeper
        self._fleet = fleet
        self._gateways = gateways
        self._clock = clock
        self._runs = ChangeRuns(
            {name: family.reloader for name, family in families.items()}, keeper=keeper, clock=clock, meter=meter
        )
        self._rollouts = RolloutControl({name: one.rolled for name, one in families.items() if one.rolled is not None})
        self._starting = {name: asyncio.Lock() for name in families}
        self._turns = {name: asyncio.Event() for name in families}
        self._rereads: dict[str, tuple[int, float]] = {}  # how often so far, and when next
        for name, family in families.items():
            if family.rolled is not None:
                family.rolled.advancer.wake = self._turns[name].set
        self._lease_holder: str | None = None
        self._lease_due_s = 0.0
        self._watch = SourceWatch(keeper, clock)

    @property
    def table(self) -> RoutingTable:
        """What gateways are to follow now, why some family has not what it should, and how the sources are."""
        followers = {name: family.follower for name, family in self._families.items()}
        looks = {name: follower.trouble for name, follower in followers.items() if follower.trouble is not None}
        sources = {name: follower.status for name, follower in followers.items()}
        trainings = {name: family.retrainer.status for name, family in self._families.items() if family.retrainer}
        retraining = {name: status for name, status in trainings.items() if status is not None}
        return reload.table_of(self._keeper.state).model_copy(
            update={"troubles": self._troubles | looks, "sources": sources, "retraining": retraining}
        )

    @property
    def _troubles(self) -> dict[str, str]:
        """Why a change did not come about, and what is wrong with deployed plans."""
        plans, found = self._rollouts.troubles, dict(self._runs.troubles)
        return found | {name: "; ".join(filter(None, (found.get(name), plan))) for name, plan in plans.items()}

    @property
    def leads(self) -> bool:
        """True while this cluster may change things."""
        return self._lease_holder == self._owner

    def wanted(self, family: str) -> tuple[VersionRef, ...]:
        """What every replica of a family is to hold, most important first."""
        return reload.wanted_versions(self._keeper.state.family(family))

    def record(self, family: str) -> FamilyRecord:
        """What is stored of a family.

        Raises:
            UnknownFamilyError: No such family.
        """
        self._known(family)
        return self._keeper.state.family(family)

    async def reload(
        self,
        family: str,
        *,
        version: str | None,
        force: bool,
        actor: str,
        reason: str,
        wait_s: float,
        immediate: bool = False,
    ) -> Operation:
        """See `ControlPlane.reload`."""
        if not self._known(family).follower.rule.takes_calls:
            raise ReloadDisabledError(f"family {family!r} has reload mode 'none'; nothing was changed")
        async with self._starting[family]:
            run = self._runs.under_way(family)
            if run is not None:
                self._check_joinable(run, version)
            else:
                started = await self._start(
                    family, version, force=force, actor=actor, reason=reason, immediate=immediate
                )
                if isinstance(started, Operation):
                    return started
                run = started
        return await self._runs.wait(run, wait_s)

    async def rollback(self, family: str, *, to: str | None, actor: str, wait_s: float) -> Operation:
        """See `ControlPlane.rollback`."""
        follower = self._known(family).follower
        async with self._starting[family]:
            self._check_free(family)
            record = self._keeper.state.family(family)
            rollout = self._rollouts.under_way(family)
            if to is not None:
                ref = await follower.find(to, record)
            else:
                ref = record.last_good if rollout is None else rollout.state.stable
            if ref is None:
                raise UnknownVersionError(family, "last good", [])
            await self._check_pin(family, ref.version)
            if await self._rollouts.end(family, actor=actor, reason=f"rollback to {ref.version}"):
                record = self._keeper.state.family(family)
                if ref == record.active and record.rollout is not None:
                    return went_back(record.rollout, self._keeper.state)
            if ref == record.active:
                return self._runs.unchanged(family)
            run = await self._runs.launch(
                family, ref, actor=actor, action="rollback", reason=f"rollback to {ref.version}", undoes=record.active
            )
        return await self._runs.wait(run, wait_s)

    async def rollouts(self) -> list[RolloutReport]:
        """See `ControlPlane.rollouts`."""
        return self._rollouts.reports()

    async def rollout_report(self, family: str) -> ExperimentReport:
        """See `ControlPlane.rollout_report`."""
        self._known(family)
        return self._rollouts.advancer(family).reported()

    async def start_rollout(
        self, family: str, *, version: str | None, plan: RolloutPlan | None, force: bool, actor: str, reason: str
    ) -> RolloutReport:
        """See `ControlPlane.start_rollout`."""
        follower = self._known(family).follower
        if not follower.rule.takes_calls:
            raise ReloadDisabledError(f"family {family!r} has reload mode 'none'; nothing was changed")
        async with self._starting[family]:
            self._check_free(family)
            self._rollouts.plan(family, plan)  # before the source is asked
            record = self._keeper.state.family(family)
            pin = await self._check_pin(family, version)
            ref = await follower.find(version or pin, record)
            if ref is None:
                raise SourceError(f"the source of {family!r} has no bundle")
            if ref.digest in record.failed and not force:
                why = record.failed[ref.digest].reason
                raise RefusedVersionError(f"{why} (this very bundle was refused before; force tries it again)")
            follows = version is None and pin is None
            await self._rollouts.begin(family, ref, plan=plan, actor=actor, reason=reason, follows=follows)
            return self._rollouts.report(family)

    async def command_rollout(self, family: str, command: Command, *, actor: str, reason: str) -> RolloutReport:
        """See `ControlPlane.command_rollout`."""
        self._known(family)
        async with self._starting[family]:
            self._check_free(family)
            await self._rollouts.operate(family, command, actor=actor, reason=reason)
            self._turns[family].set()
            return self._rollouts.report(family)

    async def demand(
        self, family: str, *, model: str | None, version: str | None, wait_s: float, renew: bool = False
    ) -> VersionRef:
        """See `ControlPlane.demand`. It changes nothing that is stored, so any cluster may do it."""
        demands = self._known(family).demands
        if demands is None:
            raise NotOfferedError(f"family {family!r} loads no versions by name")
        return await demands.demand(model, version, wait_s=wait_s, renew=renew)

    async def look(self, family: str) -> None:
        """See `ControlPlane.look`."""
        self._known(family).follower.hurry()
        self._turns[family].set()

    async def turn(self, family: str, timeout_s: float) -> None:
        """Wait until the next turn of a family's loop is due: after `timeout_s` seconds, or at once after `look`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._turns[family].wait()
        except TimeoutError:
            return
        self._turns[family].clear()

    async def operation(self, operation_id: str) -> Operation | None:
        """See `ControlPlane.operation`."""
        return self._rollouts.operation(operation_id, self._keeper.state) or await self._runs.operation(operation_id)

    async def versions(self, family: str) -> list[KnownVersion]:
        """See `ControlPlane.versions`."""
        settings = self._known(family)
        refs = await asyncio.to_thread(settings.source.versions)
        statuses = await self._fleet.statuses(family)
        record = self._keeper.state.family(family)
        return [_known_version(ref, record, statuses and all(s.holds(ref.version) for s in statuses)) for ref in refs]

    async def audit(self, *, family: str | None, limit: int) -> list[AuditEntry]:
        """See `ControlPlane.audit`."""
        return await self._keeper.audit(family=family, limit=limit)

    async def events(self, *, after: int | None, family: str | None, limit: int) -> EventPage:
        """See `EventPlane.events`."""
        return await self._keeper.events(after=after, family=family, limit=limit)

    async def keep_lease(self) -> None:
        """Take or renew the lease when it is due; without it, read what its holder wrote and pass it on."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._lease_due_s:
            before = self._lease_holder
            self._lease_holder = await self._keeper.take_lease(
                self._owner, ttl_s=LEASE_TTL_S, now_s=self._clock.now_s()
            )
            self._lease_due_s = now_s + LEASE_TTL_S / 3
            if self._lease_holder != before:
                await self._keeper.refresh()
                log.info("lease", holder=self._lease_holder, leads=self.leads)
        if not self.leads:
            generation = self._keeper.state.generation
            if (await self._keeper.refresh()).generation != generation:
                await self._gateways.push(self.table)

    async def tick(self, family: str) -> None:
        """One turn of a family's loop: resume what was interrupted, follow pin and source, make late replicas whole.

        Raises:
            StoreError: The store cannot be used now; the next turn tries again.
        """
        statuses = await self._fleet.statuses(family)
        async with self._starting[family]:
            await self._reconsider(family)
            record = self._keeper.state.family(family)
            if self.leads and self._runs.under_way(family) is None:
                if record.change is not None:
                    await self._runs.resume(family)
                elif await self._roll(family, statuses):
                    pass
                elif agree(statuses) or (statuses and record.active is None):  # between two pins nothing is followed
                    await self._follow(family, record, pin_of(statuses))
                await self._watch.look(family, self._families[family].follower)
        await self._heal(family, statuses)

    async def _reconsider(self, family: str) -> None:
        """Once after the settings have changed: forget which bundles were refused under the old ones."""
        record, settings = self._keeper.state.family(family), self._families[family].tried_under
        if self.leads and record.change is None and record.tried_under != settings:
            await self._keeper.update(family, lambda before: reload.reconsider(before, settings))
            if refused := [bundle.version for bundle in record.failed.values() if bundle.in_trial]:
                log.info("other settings: refused versions may be tried again", family=family, versions=refused)

    async def _roll(self, family: str, statuses: Sequence[ReplicaStatus]) -> bool:
        """Go on with a rollout, unless a pin forbids it; return whether one is under way, for it comes first."""
        rolled = self._families[family].rolled
        if rolled is None:
            return False
        rollout, pin = self._rollouts.under_way(family), pin_of(statuses)
        if rollout is not None and pin is not None and pin != rollout.state.candidate.version:
            await self._rollouts.end(family, actor="user_config", reason=f"pinned to {pin}")
        await self._rollouts.heed(family)
        await rolled.advancer.tick()
        return rolled.advancer.is_under_way

    async def _follow(self, family: str, record: FamilyRecord, pin: str | None) -> None:
        """Look at the source when it is time, and start a change when there is something new."""
        follower = self._families[family].follower
        if not follower.is_due(pin):
            return
        wish = await follower.look(record, pin)
        if follower.trouble is None:
            self._runs.troubles.pop(family, None)
        if wish is None:
            return
        if (held_because := self._rollouts.held_because(family, record)) is not None:
            self._runs.troubles[family] = f"{wish.ref.version} waits: {held_because}"
        elif self._rollouts.is_for(family, record):
            if (why_not := await self._rollouts.follow(family, wish)) is not None:
                self._runs.troubles[family] = why_not
        else:
            await self._runs.launch(
                family, wish.ref, actor=wish.actor, action="reload", reason=wish.reason, follows=wish.follows
            )

    async def _heal(self, family: str, statuses: Sequence[ReplicaStatus]) -> None:
        """Tell replicas that lack something they should hold; one that has just started may have missed a change."""
        wanted = self.wanted(family)
        lacking = [
            (status, ref)
            for status in statuses
            for ref in wanted
            if _lacks(status, ref) and ref.digest not in status.no_room
        ]
        if not lacking:
            self._rereads.pop(family, None)
        missing = any(ref.digest not in status.unread for status, ref in lacking)
        late = self._late_to_unload(family, statuses)
        if missing or late or (lacking and self._may_reread(family)):
            await self._fleet.prepare(family, wanted, unloading=late)

    def _may_reread(self, family: str) -> bool:
        """Say whether it is time that replicas try once more to read what they could not; less and less often."""
        n_before, due_s = self._rereads.get(family, (0, 0.0))
        now_s = self._clock.monotonic_s()
        if now_s < due_s:
            return False
        self._rereads[family] = n_before + 1, now_s + retry_delay_s(n_before, dice=0.5)
        return True

    def _late_to_unload(self, family: str, statuses: Sequence[ReplicaStatus]) -> tuple[str, ...]:
        """Name the replicas that lacked the room for what is active now: after the commit they may unload for it."""
        record = self._keeper.state.family(family)
        if record.change is not None or record.active is None or not self._known(family).reloader.unloads_first:
            return ()
        active = record.active
        return tuple(
            status.replica_id for status in statuses if _lacks(status, active) and active.digest in status.no_room
        )

    def _known(self, family: str) -> ControlledFamily:
        if family not in self._families:
            raise UnknownFamilyError(family, list(self._families))
        return self._families[family]

    def _check_lease(self) -> None:
        if not self.leads:
            raise UnavailableError(
                f"another cluster ({self._lease_holder or 'not known yet'}) may change versions, this one follows",
                retry_after_s=int(LEASE_TTL_S),
            )

    def _check_free(self, family: str) -> None:
        """See that this cluster may change versions and that no change is under way."""
        self._check_lease()
        if (run := self._runs.under_way(family)) is not None:
            raise UnavailableError(f"another change of {family!r} is under way: {run.to.version}")

    async def _check_pin(self, family: str, version: str | None) -> str | None:
        pin = pin_of(await self._fleet.statuses(family))
        if pin is not None and version is not None and version != pin:
            raise PinnedError(family, pin)
        return pin

    @staticmethod
    def _check_joinable(run: Run, version: str | None) -> None:
        if version is not None and version != run.to.version:
            raise UnavailableError(f"another change of {run.operation.family!r} is under way: {run.to.version}")

    async def _start(
        self, family: str, version: str | None, *, force: bool, actor: str, reason: str, immediate: bool
    ) -> "Run | Operation":
        self._check_lease()
        record = self._keeper.state.family(family)
        pin = await self._check_pin(family, version)
        ref = await self._families[family].follower.find(version or pin, record)
        if ref is None:
            raise SourceError(f"the source of {family!r} has no bundle")
        if not immediate and (joined := self._rollouts.joined(family, ref, self._keeper.state)) is not None:
            return joined
        if ref == record.active and not force:
            return self._runs.unchanged(family)
        if ref.digest in record.failed and not force:
            before = record.failed[ref.digest]
            return Operation(
                operation_id="",
                family=family,
                outcome=Outcome.FAILED,
                from_version=record.active.version if record.active else None,
                to_version=ref.version,
                detail=f"{before.reason} (this very bundle was refused before; force tries it again)",
                generation=self._keeper.state.generation,
            )
        follows = version is None and pin is None
        if not immediate and ref != record.active and self._rollouts.is_for(family, record):
            rollout = await self._rollouts.begin(family, ref, plan=None, actor=actor, reason=reason, follows=follows)
            return operation_of(rollout, self._keeper.state)
        await self._rollouts.end(family, actor=actor, reason=f"immediate change to {ref.version}")
        return await self._runs.launch(family, ref, actor=actor, action="reload", reason=reason, follows=follows)


def _lacks(status: ReplicaStatus, ref: VersionRef) -> bool:
    """True when a replica has not a bundle, does not load it, and has not refused it."""
    is_here = status.holds_bundle(ref.version, ref.digest)
    return not (is_here or ref.version in status.loading or ref.digest in status.failed)


def _known_version(ref: BundleRef, record: FamilyRecord, is_resident: object) -> KnownVersion:
    failure = record.failed.get(ref.fingerprint)
    return KnownVersion(
        version=ref.version,
        location=ref.location,
        modified_at_s=float(ref.facts.get("modified_at_s", 0.0)),
        size_bytes=int(ref.facts.get("size_bytes", 0)),
        is_current=ref.is_current,
        is_active=record.active is not None and record.active.digest == ref.fingerprint,
        is_resident=bool(is_resident),
        failed_reason=failure.reason if failure else None,
        metrics=ref.facts.get("metrics", {}),
        training=ref.facts.get("training", {}),
    )
