"""The rollout of one family, tick by tick: observe, decide, save, act.

What was decided is saved before anything is done about it, and everything that is done may be done again. So whoever
comes up after a crash has nothing to remember: the stored phase says what is to be brought about. Loading the
candidate takes long and goes on in a task; all writes are made within `tick`, `begin`, `operate` and `end`, whose
calls must not overlap.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from serve_app.domain import reload, rollout, rollout_changes
from serve_app.domain.analysis import Analysis, Tally, analyse, no_analysis, tallied
from serve_app.domain.evidence_window import Window, kind_of, looked_at, moved_on, window_of
from serve_app.domain.experiment_report import ExperimentReport, experiment_report
from serve_app.domain.reload import AuditEntry, FamilyRecord, Outcome
from serve_app.domain.rollout import Command, Findings, Progress
from serve_app.domain.rollout_plan import PlanOrigin, RolloutPlan, Strategy
from serve_app.domain.rollout_record import RolloutRecord, is_promoted, report_of
from serve_app.domain.rollout_state import NoRolloutError, Phase, RolloutConflictError, RolloutState
from serve_app.domain.verdict import Verdict
from serve_app.domain.version_ref import VersionRef
from serve_app.usecases.keep_state import StateKeeper
from serve_app.usecases.ports import Clock, Fleet, Gateways
from serve_app.usecases.reload_model import CandidateError, ModelReloader
from serve_app.usecases.rollout_ports import RolloutMeter

ERRORS_EVERY_S = 30.0
"""How often a verdict `error` counts: a first step of 1 % may get its first request after some seconds only."""
SAVED_EVERY_S = 60.0
"""How often counts are saved of which nothing is new, so that silence of nobody is taken for that of gateways."""
MOST_MOVES = 6
"""Moves in one tick: from a fail over the abort to the release are three."""
log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Work:
    """A task that brings something about for one phase of one attempt."""

    key: tuple[str, int, str]
    task: asyncio.Task[None]


class RolloutAdvancer:
    """Carries the rollouts of one family on. Lives on one event loop.

    Args:
        family: Whose rollouts.
        reloader: Holds trials, covers replicas, flips generations.
        keeper: The stored state.
        fleet: The replicas.
        gateways: Asked for evidence.
        clock: Time.
        meter: Told how the rollout stands.
    """

    def __init__(
        self,
        family: str,
        *,
        reloader: ModelReloader,
        keeper: StateKeeper,
        fleet: Fleet,
        gateways: Gateways,
        clock: Clock,
        meter: RolloutMeter,
    ) -> None:
        self._family = family
        self._reloader = reloader
        self._keeper = keeper
        self._fleet = fleet
        self._gateways = gateways
        self._clock = clock
        self._meter = meter
        self._work: _Work | None = None
        self.wake: Callable[[], None] = lambda: None
        """Called when the next tick would find something done."""

    @property
    def rollout(self) -> RolloutRecord | None:
        """What is stored of the last rollout."""
        return self._keeper.state.family(self._family).rollout

    def reported(self) -> ExperimentReport:
        """Return the report of the last rollout.

        Raises:
            NoRolloutError: There was none yet.
        """
        if self.rollout is None:
            raise NoRolloutError(self._family)
        return experiment_report(self.rollout, now_s=self._clock.now_s())

    @property
    def is_under_way(self) -> bool:
        """True while a rollout is not over."""
        return self.rollout is not None and self.rollout.is_under_way

    async def begin(
        self,
        plan: RolloutPlan,
        candidate: VersionRef,
        *,
        actor: str,
        reason: str,
        follows: bool = False,
        waits: bool = False,
        plan_from: PlanOrigin = PlanOrigin.CALL,
    ) -> RolloutRecord:
        """Save a new rollout; the next tick begins to load the candidate.

        Raises:
            RolloutTransitionError: Another one is under way.
            CoolingDownError: The last one has ended too short a time ago, and this one `waits` for that.
            RolloutConflictError: There is nothing to start from, or the candidate is active already.
            StoreError: It could not be saved.
        """
        record = self._keeper.state.family(self._family)
        if record.active is None:
            raise RolloutConflictError(f"family {self._family!r} has no version yet that a rollout could start from")
        is_same_place = plan.pool == plan.stable_pool or plan.strategy is not Strategy.AB
        if record.active == candidate and is_same_place:
            raise RolloutConflictError(f"version {candidate.version!r} of {self._family!r} answers already")
        state = rollout.start(
            plan,
            rollout_id=uuid.uuid4().hex,
            family=self._family,
            candidate=candidate,
            stable=record.active,
            actor=actor,
            reason=reason,
            now_s=self._clock.now_s(),
            previous=record.rollout.state if record.rollout else None,
            waits=waits,
            plan_from=plan_from,
        )
        started = RolloutRecord(state=state, follows=follows)
        await self._save(lambda record: rollout_changes.begun(record, started), actor=actor, reason=reason)
        log.info("rollout started", family=self._family, version=candidate.version, strategy=plan.strategy.value)
        self.wake()
        return started

    async def operate(self, command: Command, *, actor: str, reason: str) -> RolloutRecord:
        """Save what an operator asks for, and act on it as far as that goes at once.

        Raises:
            NoRolloutError: There was no rollout yet.
            RolloutTransitionError: The phase does not allow it; nothing has changed.
            RolloutConflictError: It cannot be tried again: another version is active since.
            StoreError: It could not be saved.
        """
        if self.rollout is None:
            raise NoRolloutError(self._family)
        now_s = self._clock.now_s()
        await self._save(
            lambda record: rollout_changes.commanded(record, command, actor=actor, reason=reason, now_s=now_s),
            actor=actor,
        )
        await self._act()
        return self._rollout

    async def end(self, *, actor: str, reason: str) -> bool:
        """Abort a rollout that is under way and bring that to its end; return whether there was one.

        Raises:
            StoreError: It could not be saved; the abort goes on with the next tick, if it has begun.
        """
        if not self.is_under_way:
            return False
        if self._rollout.state.phase is not Phase.ABORTING:
            await self.operate(Command.ABORT, actor=actor, reason=reason)
        await self._act()
        return True

    async def tick(self) -> None:
        """Go on with the rollout, if there is one that is not done with.

        Raises:
            StoreError: The state cannot be written now; the next tick tries again.
        """
        if self.rollout is None:
            return
        if not self.rollout.is_released:
            await self._judge()
            await self._act()
        state = self._rollout.state
        self._meter.set_rollout(
            self._family, state.phase, weight=report_of(self._rollout).weight, verdict=state.verdict
        )
        self._meter.set_progress(
            self._family, requests=state.exposed_requests, entities=state.exposed_entities,
            deadline_s=0.0 if state.phase.is_over else state.overdue_at_s,
        )  # fmt: skip

    @property
    def _rollout(self) -> RolloutRecord:
        assert self.rollout is not None, "only a rollout is carried on"
        return self.rollout

    # Observe and decide

    async def _judge(self) -> None:
        """Take up what gateways have counted since the last look, and move on by what it says."""
        if kind_of(self._rollout.state) is None:
            return
        reports = await self._gateways.evidence()
        now_s = self._clock.now_s()
        before = self._rollout
        window = window_of(before, reports, effective_at_s=self._keeper.state.effective_at_s, now_s=now_s)
        tally, analysis = self._analysed(before, window, is_told=bool(reports))
        findings = Findings(
            verdict=_counted(analysis, before.state, now_s),
            exposed_requests=before.state.exposed_requests + window.exposed_requests,
            exposed_entities=window.exposed_entities,
            detail=analysis.reason if analysis is not None else "",
        )
        observed = looked_at(before, window, tally, analysis, now_s=now_s)
        after = moved_on(observed, rollout.decide(before.state, findings, now_s=now_s).state)
        if window.is_empty and not window.exposed_requests and not _says_more(before, after, now_s):
            return
        await self._save(lambda record: record.model_copy(update={"rollout": after}))

    def _analysed(self, before: RolloutRecord, window: Window, *, is_told: bool) -> tuple[Tally, Analysis | None]:
        plan = before.state.judged_by
        if plan is None:
            return before.tally, None
        if not is_told:
            return before.tally, no_analysis("no gateway says what it has counted")
        tally = before.tally if window.is_empty else tallied(before.tally, window.evidence, plan)
        return tally, analyse(tally, plan)

    # Act

    async def _act(self) -> None:
        """Bring about what the stored phase asks for; moves that this leads to are saved and acted on as well."""
        for _ in range(MOST_MOVES):
            before = self._rollout
            self._drop_stale_work()
            match before.state.phase:
                case Phase.PENDING:
                    await self._load(before)
                case Phase.PROMOTING:
                    await self._promote(before)
                case Phase.WATCHING:
                    await self._advance(Findings())
                case Phase.ABORTING:
                    await self._restore()
                case Phase.SUCCEEDED | Phase.ABORTED | Phase.FAILED:
                    await self._release(before)
                    return
                case _:  # who lacks the candidate is told by the loop that heals replicas
                    return
            if self._rollout.state.phase is before.state.phase and self._rollout.is_tried is before.is_tried:
                return

    async def _load(self, before: RolloutRecord) -> None:
        """Hold the candidate's trial, then have all replicas load it."""
        candidate = before.state.candidate
        what, work = ("cover", self._reloader.cover) if before.is_tried else ("trial", self._reloader.try_out)
        failure = self._ended(what, lambda: work(candidate))
        if failure is None:
            await self._advance(Findings())  # the deadline
        elif isinstance(failure, CandidateError):
            reason, blames, now_s = str(failure), failure.blames_bundle, self._clock.now_s()
            await self._save(
                lambda record: rollout_changes.not_loaded(record, reason=reason, blames_bundle=blames, now_s=now_s)
            )
            await self._fleet.evict(self._family, candidate)
        elif before.is_tried:
            await self._gateways.refresh(self._family)
            await self._advance(Findings(progress=Progress.DONE))
        else:
            await self._save(rollout_changes.tried)

    async def _promote(self, before: RolloutRecord) -> None:
        """See that all replicas still have the candidate, then make it active. If that breaks, stable stays."""
        failure = self._ended("promotion", lambda: self._reloader.cover(before.state.candidate))
        if failure is None:
            await self._advance(Findings())
        elif isinstance(failure, CandidateError):
            await self._advance(Findings(progress=Progress.BROKEN, detail=str(failure)))
        else:
            await self._gateways.refresh(self._family)
            now_s = self._clock.now_s()
            await self._save(lambda record: rollout_changes.promoted(record, now_s=now_s))

    async def _restore(self) -> None:
        """Have the gateways send everything to the stable version, and make it active again where it is not."""
        await self._gateways.push(reload.table_of(self._keeper.state))
        now_s = self._clock.now_s()
        await self._save(lambda record: rollout_changes.restored(record, now_s=now_s))

    async def _release(self, before: RolloutRecord) -> None:
        """Tell the replicas what to hold from now on."""
        if before.is_released:
            return
        state = before.state
        wanted = reload.wanted_versions(self._keeper.state.family(self._family))
        await self._gateways.push(reload.table_of(self._keeper.state))
        await self._fleet.hold(self._family, wanted)
        if state.candidate not in wanted:
            await self._fleet.evict(self._family, state.candidate)
        await self._save(rollout_changes.released)
        log.info("rollout ended", family=self._family, version=state.candidate.version, phase=state.phase.value)

    async def _advance(self, findings: Findings) -> None:
        now_s = self._clock.now_s()
        await self._save(lambda record: rollout_changes.advanced(record, findings, now_s=now_s))

    # Work that takes long

    def _ended(self, what: str, begin: Callable[[], Awaitable[None]]) -> Exception | bool | None:
        """Begin a piece of work, unless it is under way; None: it still is, True: it is done, or why it broke."""
        key = self._key(what)
        if self._work is None or self._work.key != key:
            self._drop_work()
            self._work = _Work(key, asyncio.create_task(self._carried_out(begin)))
            return None
        if not self._work.task.done():
            return None
        task, self._work = self._work.task, None
        if task.cancelled():
            return None
        return self._failure_of(task) or True

    async def _carried_out(self, begin: Callable[[], Awaitable[None]]) -> None:
        try:
            await begin()
        finally:
            self.wake()

    def _failure_of(self, task: asyncio.Task[None]) -> CandidateError | None:
        error = task.exception()
        if error is None or isinstance(error, CandidateError):
            return error
        if not isinstance(error, Exception):
            raise error
        log.error("candidate not loaded", family=self._family, exc_info=error)
        return CandidateError(f"internal error ({type(error).__name__}); the log has the details", blames_bundle=False)

    def _key(self, what: str) -> tuple[str, int, str]:
        state = self._rollout.state
        return state.rollout_id, state.retries, what

    def _drop_stale_work(self) -> None:
        """End the work of a phase that has been left."""
        if self._work is not None and self._rollout.state.phase not in (Phase.PENDING, Phase.PROMOTING):
            self._drop_work()

    def _drop_work(self) -> None:
        if self._work is not None:
            self._work.task.cancel()
            self._work = None

    # Save

    async def _save(self, step: Callable[[FamilyRecord], FamilyRecord], *, actor: str = "", reason: str = "") -> None:
        """Save a step with its line of the audit log; as a new generation where it changes what gateways do."""
        before = self._keeper.state.family(self._family)
        after = step(before)
        if after == before:
            return
        flips = after.active != before.active or reload.split_in(after) != reload.split_in(before)
        entry = self._entry(before, after, actor=actor, reason=reason, generation=self._keeper.state.generation + flips)
        if flips:
            await self._reloader.flip(step, entry=entry)
        else:
            await self._keeper.update(self._family, step, entry=entry)
        if entry is not None:
            log.info("rollout", family=self._family, action=entry.action, reason=entry.reason, actor=entry.actor)

    def _entry(
        self, before: FamilyRecord, after: FamilyRecord, *, actor: str, reason: str, generation: int
    ) -> AuditEntry | None:
        """Return the line that tells of a move; None where nothing has moved."""
        assert after.rollout is not None, "only a rollout is saved here"
        state = after.rollout.state
        is_new = before.rollout is None or before.rollout.state.rollout_id != state.rollout_id
        moves = () if before.rollout is None or is_new else before.rollout.state.history
        if not is_new and state.history[-1:] == moves[-1:]:
            return None
        move = state.history[-1] if state.history else None
        return AuditEntry(
            at_s=self._clock.now_s(),
            operation_id=state.rollout_id,
            family=self._family,
            actor=move.actor if move else actor,
            action=f"rollout {state.phase.value}",
            from_version=state.stable.version,
            to_version=state.candidate.version,
            reason=move.reason if move else reason,
            outcome=outcome_of(state),
            detail=f"{move.found.value} to {move.to.value}" if move else state.plan.strategy.value,
            generation=generation,
        )


def outcome_of(state: RolloutState) -> Outcome:
    """Say how a rollout has ended, in the words of changes; an experiment or a shadow that ran its time left all."""
    match state.phase:
        case Phase.SUCCEEDED:
            return Outcome.RELOADED if is_promoted(state) else Outcome.UNCHANGED
        case Phase.ABORTED | Phase.FAILED:
            return Outcome.FAILED
        case _:
            return Outcome.RUNNING


def _counted(analysis: Analysis | None, state: RolloutState, now_s: float) -> Verdict | None:
    """Return the verdict that is to be acted on; errors count once in a while only."""
    if analysis is None:
        return None
    if analysis.verdict is Verdict.ERROR and now_s < max(state.began_at_s, state.judged_at_s) + ERRORS_EVERY_S:
        return None
    return analysis.verdict


def _says_more(before: RolloutRecord, after: RolloutRecord, now_s: float) -> bool:
    """True when a look that found nothing new is worth a write all the same."""
    timeless = {"judged_at_s": 0.0}
    if after.state.model_copy(update=timeless) != before.state.model_copy(update=timeless):
        return True
    newest_s = max((gateway.at_s for gateway in before.seen.values()), default=0.0)
    return after.weight != before.weight or now_s >= newest_s + SAVED_EVERY_S
