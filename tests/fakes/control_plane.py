"""A control plane in memory."""

import asyncio
from collections.abc import Callable
from typing import Any

from serve_app.domain import rollout
from serve_app.domain.diff_report import NoShadowError, ShadowDiff
from serve_app.domain.errors import (
    InvalidInputError,
    NotOfferedError,
    PinnedError,
    SourceError,
    UnavailableError,
    UnknownFamilyError,
    UnknownVersionError,
)
from serve_app.domain.events import Event, EventPage
from serve_app.domain.experiment_report import ExperimentReport, experiment_report
from serve_app.domain.recording import ReplayReport
from serve_app.domain.reload import AuditEntry, KnownVersion, Operation, Outcome, Phase, VersionRef
from serve_app.domain.rollout import Command, Findings, Progress
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutRecord, RolloutReport, report_of
from serve_app.domain.rollout_state import NoPlanError, NoRolloutError

NOW_S = 1_769_763_600.0


class FakeControlPlane:
    """Changes versions at once; those in `broken` fail for the reason given there.

    With `is_held` a change stays under way until `finish`. Set `error` to make every call raise it. `asked` holds what
    every reload and rollback asked for; `on_commit(family, version)` is called when another version becomes active.
    `shadows` and `replays` are what is told of a family's shadow, and of a version's replay.
    Set `plans[family]` to let reloads begin rollouts; `rolled` holds them, for a test to change.
    `offers` maps the model and version that a demand names to the version that is then loaded, or to an error;
    `told` holds the events, for a test to add to.
    `demanded` holds every demand, `on_demand(family, version)` is called when one is loaded.
    """

    def __init__(self, *families: str, on_commit: Callable[[str, str], None] | None = None) -> None:
        self.error: Exception | None = None
        self.broken: dict[str, str] = {}
        self.pins: dict[str, str] = {}
        self.is_held = False
        self.asked: list[dict[str, Any]] = []
        self.entries: list[AuditEntry] = []
        self.told: list[Event] = []
        self.looked: list[str] = []
        self.offers: dict[tuple[str | None, str | None], str | Exception] = {}
        self.demanded: list[tuple[str | None, str | None, bool]] = []
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.on_demand: Callable[[str, str], None] = lambda _family, _version: None
        self.generation = 0
        self.plans: dict[str, RolloutPlan] = {}
        self.rolled: dict[str, RolloutRecord] = {}
        self.shadows: dict[str, ShadowDiff] = {}
        self.replays: dict[str, ReplayReport] = {}
        self.replayed: list[tuple[str, str, int | None, str]] = []
        self._on_commit = on_commit
        self._known: dict[str, list[KnownVersion]] = {family: [] for family in families}
        self._active: dict[str, str] = {}
        self._last_good: dict[str, str] = {}
        self._operations: dict[str, Operation] = {}
        self._ended: dict[str, asyncio.Event] = {}

    def publish(self, version: str, *, family: str = "forecaster", active: bool = False, **facts: Any) -> None:
        """Add a version to the source, newest and current; `active` also lets it answer from now on."""
        known: dict[str, Any] = {"location": f"/srv/models/{version}", "modified_at_s": NOW_S, "size_bytes": 1 << 20}
        self._known[family].append(KnownVersion(version=version, **known | facts))
        if active:
            self._commit(family, version)

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
        """Change to a version, or to the newest one; where there is a plan, begin a rollout unless it is immediate."""
        self.asked.append({"family": family, "version": version, "force": force, "actor": actor, "wait_s": wait_s})
        self._check(family, version)
        wanted = version or self.pins.get(family) or self._newest(family)
        if family in self.plans and not immediate:
            report = await self.start_rollout(
                family, version=wanted, plan=None, force=force, actor=actor, reason=reason
            )
            return Operation(
                operation_id=report.state.rollout_id, family=family, outcome=Outcome.RUNNING,
                from_version=self._active[family], to_version=wanted, is_rollout=True,
            )  # fmt: skip
        return await self._change(family, wanted, "reload", actor, reason, wait_s, force=force)

    async def rollback(self, family: str, *, to: str | None, actor: str, wait_s: float) -> Operation:
        """Change back to a version, or to the one before."""
        self.asked.append({"family": family, "version": to, "actor": actor, "wait_s": wait_s})
        self._check(family, to)
        wanted = to or self._last_good.get(family)
        if wanted is None:
            raise UnknownVersionError(family, "last good", [])
        return await self._change(family, wanted, "rollback", actor, f"rollback to {wanted}", wait_s)

    async def rollouts(self) -> list[RolloutReport]:
        """Return the last rollout of each family."""
        self._maybe_fail()
        return [report_of(record) for record in self.rolled.values()]

    async def rollout_report(self, family: str) -> ExperimentReport:
        """Return the report of the last rollout."""
        self._maybe_fail()
        if family not in self.rolled:
            raise NoRolloutError(family)
        return experiment_report(self.rolled[family], now_s=NOW_S + 3)

    async def start_rollout(
        self, family: str, *, version: str | None, plan: RolloutPlan | None, force: bool, actor: str, reason: str
    ) -> RolloutReport:
        """Begin a rollout by the rules, and have its candidate loaded at once."""
        self._check(family, version)
        chosen = plan or self.plans.get(family)
        if chosen is None:
            raise NoPlanError(family)
        before = self.rolled.get(family)
        state = rollout.start(
            chosen, rollout_id=f"rollout-{len(self.rolled) + 1}", family=family,
            candidate=VersionRef(version=version or self._newest(family), digest="d-new"),
            stable=VersionRef(version=self._active[family], digest="d-old"), actor=actor, reason=reason,
            now_s=NOW_S, previous=before.state if before else None,
        )  # fmt: skip
        loaded = rollout.decide(state, Findings(progress=Progress.DONE), now_s=NOW_S + 1).state
        self.rolled[family] = RolloutRecord(state=loaded, is_tried=True)
        return report_of(self.rolled[family])

    async def command_rollout(self, family: str, command: Command, *, actor: str, reason: str) -> RolloutReport:
        """Move a rollout as its rules say."""
        self._maybe_fail()
        if family not in self.rolled:
            raise NoRolloutError(family)
        state = rollout.operate(self.rolled[family].state, command, actor=actor, now_s=NOW_S + 2, reason=reason)
        self.rolled[family] = self.rolled[family].model_copy(update={"state": state})
        return report_of(self.rolled[family])

    async def shadow(self, family: str) -> ShadowDiff:
        """Return what stands in `shadows`."""
        self._maybe_fail()
        if family not in self.rolled:
            raise NoRolloutError(family)
        if family not in self.shadows:
            raise NoShadowError(family)
        return self.shadows[family]

    async def replay(self, family: str, *, version: str, limit: int | None, actor: str) -> ReplayReport:
        """Return what stands in `replays` for a version, and note in `replayed` that it was asked for."""
        self._maybe_fail()
        known = [one.version for one in self._known_of(family)]
        if version not in known:
            raise NotOfferedError(f"the source of {family!r} has no version {version!r}; it has {', '.join(known)}")
        if version not in self.replays:
            raise InvalidInputError(f"family {family!r} records no requests (families.{family}.record)")
        self.replayed.append((family, version, limit, actor))
        return self.replays[version]

    async def demand(
        self, family: str, *, model: str | None, version: str | None, wait_s: float, renew: bool = False
    ) -> VersionRef:
        """Load what stands in `offers`, once `may_load` is set; raise what stands there if it is an error."""
        self.demanded.append((model, version, renew))
        self._maybe_fail()
        try:
            async with asyncio.timeout(wait_s):
                await self.may_load.wait()
        except TimeoutError:
            raise UnavailableError("still being loaded") from None
        found = self.offers.get((model, version))
        if found is None:
            raise NotOfferedError(f"the registry has no {model} {version}")
        if isinstance(found, Exception):
            raise found
        self.on_demand(family, found)
        return VersionRef(version=found, digest="0" * 64)

    async def look(self, family: str) -> None:
        """Note that the source was to be looked at."""
        self._maybe_fail()
        self._known_of(family)
        self.looked.append(family)

    async def operation(self, operation_id: str) -> Operation | None:
        """Return an operation."""
        self._maybe_fail()
        return self._operations.get(operation_id)

    async def versions(self, family: str) -> list[KnownVersion]:
        """List what was published, newest first."""
        self._maybe_fail()
        known = self._known_of(family)
        newest = known[-1].version if known else None
        active = self._active.get(family)
        return [
            k.model_copy(update={"is_active": k.version == active, "is_current": k.version == newest})
            for k in reversed(known)
        ]

    async def audit(self, *, family: str | None, limit: int) -> list[AuditEntry]:
        """Return what was done, newest first."""
        self._maybe_fail()
        return [entry for entry in reversed(self.entries) if family in (None, entry.family)][:limit]

    async def events(self, *, after: int | None, family: str | None, limit: int) -> EventPage:
        """Return what a test has told."""
        self._maybe_fail()
        fitting = [event for event in self.told if family in (None, event.family) and event.id > (after or 0)]
        chosen = fitting[:limit] if after is not None else fitting[len(fitting) - min(limit, len(fitting)) :]
        newest = self.told[-1].id if self.told else 0
        return EventPage(events=tuple(chosen), oldest=min(1, newest), newest=newest)

    def finish(self) -> None:
        """Let the changes end that are under way."""
        for operation in list(self._operations.values()):
            if operation.outcome is Outcome.RUNNING:
                self._end(operation)

    async def _change(
        self, family: str, version: str, action: str, actor: str, reason: str, wait_s: float, *, force: bool = False
    ) -> Operation:
        active = self._active.get(family)
        if version == active and not force:
            return Operation(
                operation_id="", family=family, outcome=Outcome.UNCHANGED, from_version=active, to_version=active,
                generation=self.generation,
            )  # fmt: skip
        started = Operation(
            operation_id=f"op-{len(self._operations) + 1}", family=family, outcome=Outcome.RUNNING, phase=Phase.TRIAL,
            from_version=active, to_version=version, started_at_s=NOW_S,
        )  # fmt: skip
        self._operations[started.operation_id] = started
        self._ended[started.operation_id] = asyncio.Event()
        if not self.is_held:
            self._end(started)
        try:
            async with asyncio.timeout(wait_s):
                await self._ended[started.operation_id].wait()
        except TimeoutError:
            pass
        operation = self._operations[started.operation_id]
        self.entries.append(
            AuditEntry(
                at_s=NOW_S, operation_id=operation.operation_id, family=family, actor=actor, action=action,
                from_version=active, to_version=version, reason=reason, outcome=operation.outcome,
                detail=operation.detail, generation=operation.generation,
            )
        )  # fmt: skip
        return operation

    def _end(self, operation: Operation) -> None:
        version = operation.to_version or ""
        reason = self.broken.get(version)
        if reason is None:
            self._commit(operation.family, version)
        self._operations[operation.operation_id] = operation.model_copy(
            update={
                "outcome": Outcome.FAILED if reason else Outcome.RELOADED,
                "phase": None,
                "detail": reason or "",
                "ended_at_s": NOW_S + 1,
                "generation": self.generation,
            }
        )
        self._ended[operation.operation_id].set()

    def _commit(self, family: str, version: str) -> None:
        self.generation += 1
        if family in self._active:
            self._last_good[family] = self._active[family]
        self._active[family] = version
        if self._on_commit is not None:
            self._on_commit(family, version)

    def _check(self, family: str, version: str | None) -> None:
        self._maybe_fail()
        known = [k.version for k in self._known_of(family)]
        pin = self.pins.get(family)
        if pin is not None and version not in (None, pin):
            raise PinnedError(family, pin)
        under_way = [o for o in self._operations.values() if o.outcome is Outcome.RUNNING and o.family == family]
        if under_way and version != under_way[0].to_version:
            raise UnavailableError(f"another change of {family!r} is under way: {under_way[0].to_version}")
        if version is not None and version not in known:
            raise UnknownVersionError(family, version, known)

    def _known_of(self, family: str) -> list[KnownVersion]:
        if family not in self._known:
            raise UnknownFamilyError(family, list(self._known))
        return self._known[family]

    def _newest(self, family: str) -> str:
        if not self._known[family]:
            raise SourceError(f"the source of {family!r} has no bundle")
        return self._known[family][-1].version

    def _maybe_fail(self) -> None:
        if self.error is not None:
            raise self.error
