"""The control plane: takes wishes (admin calls, pins, what a source calls current) and turns them into changes.

One object for all families, each with its own loop, so that no family waits for another. It is the only writer of the
state store; a cluster that does not hold the store's lease follows what the other one writes and changes nothing.
"""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from serve_app.domain import reload
from serve_app.domain.errors import (
    PinnedError,
    ReloadDisabledError,
    ReloadError,
    ServeAppError,
    SourceError,
    StoreError,
    UnavailableError,
    UnknownFamilyError,
    UnknownVersionError,
)
from serve_app.domain.following import RETRY_DELAYS_S, FollowRule, agree, asked_interval_s, pin_of
from serve_app.domain.reload import (
    AuditEntry,
    Change,
    FamilyRecord,
    KnownVersion,
    Operation,
    Outcome,
    Phase,
    RoutingTable,
    VersionRef,
)
from serve_app.domain.status import ReplicaStatus
from serve_app.usecases.keep_state import StateKeeper
from serve_app.usecases.ports import BundleRef, BundleSource, Clock, Fleet, Gateways, ReloadMeter
from serve_app.usecases.reload_model import ModelReloader, audit_entry

LEASE_TTL_S = 15.0
KEPT_OPERATIONS = 200
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ControlledFamily:
    """One family under control: where its bundles come from, how it follows them, and who carries changes out."""

    source: BundleSource
    rule: FollowRule
    reloader: ModelReloader


@dataclass(slots=True, eq=False)
class _Run:
    """An operation under way."""

    operation: Operation
    to: VersionRef
    actor: str
    action: str
    reason: str
    done: asyncio.Event


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
        self._meter = meter
        self._runs: dict[str, _Run] = {}
        self._ended: dict[str, Operation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = {name: asyncio.Lock() for name in families}
        self._next_look_s = dict.fromkeys(families, 0.0)
        self._pins: dict[str, str | None] = dict.fromkeys(families)
        self._resume_at_s = dict.fromkeys(families, 0.0)
        self._failed_looks = dict.fromkeys(families, 0)
        self._look_troubles: dict[str, str] = {}
        self._run_troubles: dict[str, str] = {}
        self._lease_holder: str | None = None
        self._lease_due_s = 0.0

    @property
    def table(self) -> RoutingTable:
        """What gateways are to follow now, and why some family has not what it should."""
        troubles = self._run_troubles | self._look_troubles
        return reload.table_of(self._keeper.state).model_copy(update={"troubles": troubles})

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
        self, family: str, *, version: str | None, force: bool, actor: str, reason: str, wait_s: float
    ) -> Operation:
        """See `ControlPlane.reload`."""
        settings = self._known(family)
        if not settings.rule.takes_calls:
            raise ReloadDisabledError(f"family {family!r} has reload mode 'none'; nothing was changed")
        async with self._starting[family]:
            if (run := self._runs.get(family)) is not None:
                self._check_joinable(run, version)
            else:
                started = await self._start(family, version, force=force, actor=actor, reason=reason)
                if isinstance(started, Operation):
                    return started
                run = started
        return await self._wait(run, wait_s)

    async def rollback(self, family: str, *, to: str | None, actor: str, wait_s: float) -> Operation:
        """See `ControlPlane.rollback`."""
        settings = self._known(family)
        async with self._starting[family]:
            if family in self._runs:
                raise UnavailableError(f"another change of {family!r} is under way: {self._runs[family].to.version}")
            self._check_lease()
            record = self._keeper.state.family(family)
            ref = record.last_good if to is None else await self._find(settings, family, to, record)
            if ref is None:
                raise UnknownVersionError(family, "last good", [])
            await self._check_pin(family, ref.version)
            if ref == record.active:
                return self._unchanged(family, record)
            run = await self._launch(
                family, ref, actor=actor, action="rollback", reason=f"rollback to {ref.version}", undoes=record.active
            )
        return await self._wait(run, wait_s)

    async def operation(self, operation_id: str) -> Operation | None:
        """See `ControlPlane.operation`."""
        for run in self._runs.values():
            if run.operation.operation_id == operation_id:
                return self._seen(run)
        if operation_id in self._ended:
            return self._ended[operation_id]
        entries = await self._keeper.audit(family=None, operation_id=operation_id, limit=1)
        return _operation_of(entries[0]) if entries else None

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
            record = self._keeper.state.family(family)
            if self.leads and family not in self._runs:
                if record.change is not None:
                    if self._clock.monotonic_s() >= self._resume_at_s[family]:
                        self._resume(family, record.change)
                elif agree(statuses) or (statuses and record.active is None):  # between two pins nothing is followed
                    pin_before, self._pins[family] = self._pins[family], pin_of(statuses)
                    if self._pins[family] != pin_before or self._clock.monotonic_s() >= self._next_look_s[family]:
                        await self._look(family, record, pin_before)
        await self._heal(family, statuses)

    async def _look(self, family: str, record: FamilyRecord, pin_before: str | None) -> None:
        """Ask the source for the pin, or for what it calls current, and start a change when it is something new."""
        settings, pin = self._families[family], self._pins[family]
        interval_s = await self._interval_s(settings)
        self._next_look_s[family] = self._clock.monotonic_s() + interval_s
        if pin is None and record.active is not None and not settings.rule.polls:
            return
        try:
            ref = await self._find(settings, family, pin, record)
        except (SourceError, UnknownVersionError) as error:
            self._meter.count_source_error(family)
            self._look_failed(family, record, str(error))
            return
        self._failed_looks[family] = 0
        self._look_troubles.pop(family, None)
        self._run_troubles.pop(family, None)
        if ref is None:
            self._look_failed(family, record, "the source has no bundle yet")
        elif reload.is_news(record.model_copy(update={"followed": None}) if pin or pin_before else record, ref):
            actor = "user_config" if pin else "source"
            reason = f"{actor} asks for {ref.version}"
            await self._launch(family, ref, actor=actor, action="reload", reason=reason, follows=pin is None)
        elif ref.digest in record.failed:
            why = f"{ref.version} was refused: {record.failed[ref.digest].reason}"
            if record.active is None:
                self._look_failed(family, record, why)
            else:
                self._look_troubles[family] = why

    def _look_failed(self, family: str, record: FamilyRecord, why: str) -> None:
        """Look again later: with nothing to serve soon and then ever later, else in the usual interval."""
        self._look_troubles[family] = why
        tries = self._failed_looks[family]
        self._failed_looks[family] = tries + 1
        delay_s = RETRY_DELAYS_S[min(tries, len(RETRY_DELAYS_S) - 1)]
        if record.active is not None:
            delay_s = self._families[family].rule.interval_s
        self._next_look_s[family] = self._clock.monotonic_s() + delay_s
        log.warning("source not followed", family=family, reason=why, next_try_s=delay_s)

    @staticmethod
    async def _interval_s(settings: ControlledFamily) -> float:
        """Return the seconds until the next look: what the manifest's `sidecar` section asks for, else the rule."""
        if not settings.rule.polls:
            return settings.rule.interval_s
        try:
            current = await asyncio.to_thread(settings.source.current)
        except SourceError:
            return settings.rule.interval_s
        return asked_interval_s(current.facts if current else {}, settings.rule)

    async def _heal(self, family: str, statuses: Sequence[ReplicaStatus]) -> None:
        """Tell replicas that lack something they should hold; one that has just started may have missed a change."""
        wanted = self.wanted(family)
        missing = [
            ref
            for status in statuses
            for ref in wanted
            if not status.holds_bundle(ref.version, ref.digest)
            and ref.version not in status.loading
            and ref.digest not in status.failed
        ]
        if missing:
            await self._fleet.prepare(family, wanted)

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

    async def _check_pin(self, family: str, version: str | None) -> str | None:
        pin = pin_of(await self._fleet.statuses(family))
        if pin is not None and version is not None and version != pin:
            raise PinnedError(family, pin)
        return pin

    @staticmethod
    def _check_joinable(run: _Run, version: str | None) -> None:
        if version is not None and version != run.to.version:
            raise UnavailableError(f"another change of {run.operation.family!r} is under way: {run.to.version}")

    async def _find(
        self, settings: ControlledFamily, family: str, version: str | None, record: FamilyRecord
    ) -> VersionRef | None:
        """Find a version at the source (None: what it calls current), else among what replicas still hold."""
        try:
            if version is None:
                ref = await asyncio.to_thread(settings.source.current)
                return VersionRef(version=ref.version, digest=ref.fingerprint) if ref else None
            refs = await asyncio.to_thread(settings.source.versions)
        except SourceError:
            if version is None:
                raise
            refs = []
        for ref in refs:
            if ref.version == version:
                return VersionRef(version=ref.version, digest=ref.fingerprint)
        for status in await self._fleet.statuses(family):
            for loaded in status.versions:
                if loaded.version == version:
                    return VersionRef(version=version, digest=loaded.digest)
        known = {ref.version for ref in refs} | {ref.version for ref in reload.wanted_versions(record)}
        raise UnknownVersionError(family, version, sorted(known))

    async def _start(
        self, family: str, version: str | None, *, force: bool, actor: str, reason: str
    ) -> "_Run | Operation":
        self._check_lease()
        settings = self._families[family]
        record = self._keeper.state.family(family)
        pin = await self._check_pin(family, version)
        ref = await self._find(settings, family, version or pin, record)
        if ref is None:
            raise SourceError(f"the source of {family!r} has no bundle")
        if ref == record.active and not force:
            return self._unchanged(family, record)
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
        return await self._launch(
            family, ref, actor=actor, action="reload", reason=reason, follows=version is None and pin is None
        )

    async def _launch(
        self,
        family: str,
        ref: VersionRef,
        *,
        actor: str,
        action: str,
        reason: str,
        undoes: VersionRef | None = None,
        follows: bool = False,
    ) -> _Run:
        now_s = self._clock.now_s()
        change = Change(
            operation_id=uuid.uuid4().hex,
            to=ref,
            phase=Phase.TRIAL,
            actor=actor,
            reason=reason,
            started_at_s=now_s,
            deadline_s=now_s,
            follows=follows,
        )

        def step(record: FamilyRecord) -> FamilyRecord:
            started = reload.start(record, change)
            if undoes is None:
                return started
            return reload.distrust(started, undoes, reason=f"rolled back by {actor}", now_s=now_s)

        before = self._keeper.state.family(family).active
        await self._keeper.update(family, step)
        return self._spawn(family, change, from_version=before.version if before else None, action=action)

    def _resume(self, family: str, change: Change) -> None:
        record = self._keeper.state.family(family)
        before = record.last_good if change.phase is Phase.RELEASE else record.active
        log.info("change resumed", family=family, version=change.to.version, phase=change.phase.value)
        self._spawn(family, change, from_version=before.version if before else None, action="resume")

    def _spawn(self, family: str, change: Change, *, from_version: str | None, action: str) -> _Run:
        operation = Operation(
            operation_id=change.operation_id,
            family=family,
            outcome=Outcome.RUNNING,
            from_version=from_version,
            to_version=change.to.version,
            started_at_s=change.started_at_s,
        )
        run = _Run(operation, change.to, change.actor, action, change.reason, asyncio.Event())
        self._runs[family] = run
        task = asyncio.create_task(self._carry_out(family, run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    async def _carry_out(self, family: str, run: _Run) -> None:
        outcome, detail = Outcome.RELOADED, ""
        try:
            await self._families[family].reloader.run()
        except ReloadError as error:
            outcome, detail = Outcome.FAILED, str(error)
        except StoreError as error:
            outcome, detail = Outcome.FAILED, f"the state could not be saved: {error}; it is tried again"
            self._resume_at_s[family] = self._clock.monotonic_s() + RETRY_DELAYS_S[0]
        except Exception as error:
            log.exception("change failed", family=family)
            outcome, detail = Outcome.FAILED, f"internal error ({type(error).__name__}); the log has the details"
            self._resume_at_s[family] = self._clock.monotonic_s() + RETRY_DELAYS_S[0]
        run.operation = run.operation.model_copy(
            update={
                "outcome": outcome,
                "detail": detail,
                "ended_at_s": self._clock.now_s(),
                "generation": self._keeper.state.generation,
            }
        )
        if outcome is Outcome.FAILED:
            self._run_troubles[family] = f"{run.to.version} was not taken up: {detail}"
        else:
            self._run_troubles.pop(family, None)
        self._ended[run.operation.operation_id] = run.operation
        while len(self._ended) > KEPT_OPERATIONS:
            del self._ended[next(iter(self._ended))]
        del self._runs[family]
        self._meter.count_reload(family, outcome)
        run.done.set()
        await self._write_audit(family, run)

    async def _write_audit(self, family: str, run: _Run) -> None:
        entry = audit_entry(
            self._keeper.state,
            family,
            run.operation,
            actor=run.actor,
            action=run.action,
            reason=run.reason,
            at_s=self._clock.now_s(),
        )
        try:
            await self._keeper.append(entry)
        except ServeAppError as error:
            log.error("audit entry lost", entry=entry.model_dump(mode="json"), reason=str(error))

    def _unchanged(self, family: str, record: FamilyRecord) -> Operation:
        version = record.active.version if record.active else None
        self._meter.count_reload(family, Outcome.UNCHANGED)
        return Operation(
            operation_id="",
            family=family,
            outcome=Outcome.UNCHANGED,
            from_version=version,
            to_version=version,
            generation=self._keeper.state.generation,
        )

    async def _wait(self, run: _Run, wait_s: float) -> Operation:
        try:
            async with asyncio.timeout(wait_s):
                await run.done.wait()
        except TimeoutError:
            return self._seen(run)
        return run.operation

    def _seen(self, run: _Run) -> Operation:
        """Return an operation with the phase it is in now."""
        change = self._keeper.state.family(run.operation.family).change
        return run.operation.model_copy(update={"phase": change.phase if change else None})


def _operation_of(entry: AuditEntry) -> Operation:
    return Operation(
        operation_id=entry.operation_id,
        family=entry.family,
        outcome=entry.outcome,
        from_version=entry.from_version,
        to_version=entry.to_version,
        detail=entry.detail,
        ended_at_s=entry.at_s,
        generation=entry.generation,
    )


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
