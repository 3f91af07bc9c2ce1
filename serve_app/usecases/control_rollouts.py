"""Which changes of version go by a rollout, and what the control plane tells of rollouts.

The rules: where a family's plan is not immediate, every new version goes by it, whoever found it. The first version
of a family, a rollback, and a change that asks to be immediate do not; they end a rollout that is under way. While a
deploy says that a family is paused, nothing begins by itself, and nobody begins or resumes a rollout by call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from serve_app.domain.errors import InvalidInputError, UnavailableError, UnknownFamilyError
from serve_app.domain.reload import FamilyRecord, Operation, Outcome, StoredState, VersionRef
from serve_app.domain.rollout import COMMANDS, Command
from serve_app.domain.rollout_plan import PlanOrigin, RolloutPlan
from serve_app.domain.rollout_record import RolloutRecord, RolloutReport, report_of
from serve_app.domain.rollout_state import (
    CoolingDownError,
    NoPlanError,
    NoRolloutError,
    PauseReason,
    Phase,
    RolloutConflictError,
)
from serve_app.usecases.advance_rollout import RolloutAdvancer, outcome_of
from serve_app.usecases.follow_source import Wish
from serve_app.usecases.keep_plans import PlanKeeper

USER_CONFIG = "user_config"
"""Who pauses and resumes for a deploy."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RolledFamily:
    """One family whose versions may be rolled out; `problems` says why a plan does not fit it."""

    advancer: RolloutAdvancer
    plans: PlanKeeper
    problems: Callable[[RolloutPlan], Sequence[str]] = lambda _plan: ()


class RolloutControl:
    """The rollouts of all families. The caller sees that calls for one family do not overlap."""

    def __init__(self, families: Mapping[str, RolledFamily]) -> None:
        self._families = families

    def advancer(self, family: str) -> RolloutAdvancer:
        """Return what carries the rollouts of a family on.

        Raises:
            UnknownFamilyError: No such family, or none that can be rolled out.
        """
        return self._rolled(family).advancer

    def _rolled(self, family: str) -> RolledFamily:
        if family not in self._families:
            raise UnknownFamilyError(family, list(self._families))
        return self._families[family]

    def under_way(self, family: str) -> RolloutRecord | None:
        """Return the rollout of a family that is under way."""
        known = self._families.get(family)
        return known.advancer.rollout if known is not None and known.advancer.is_under_way else None

    def is_for(self, family: str, record: FamilyRecord) -> bool:
        """True when a new version of a family goes by a rollout; the first one has nothing to be compared with."""
        known = self._families.get(family)
        return known is not None and known.plans.of(family).is_gradual and record.active is not None

    def held_because(self, family: str, record: FamilyRecord) -> str | None:
        """Return why no new version of a family is taken up by itself; None: it may be, and the first one always is."""
        known = self._families.get(family)
        return None if known is None or record.active is None else known.plans.held_because(family)

    @property
    def troubles(self) -> dict[str, str]:
        """What is wrong with the plans that were deployed last, by family."""
        found = {name: known.plans.problem for name, known in self._families.items()}
        return {name: problem for name, problem in found.items() if problem is not None}

    def plan(self, family: str, given: RolloutPlan | None) -> tuple[RolloutPlan, PlanOrigin]:
        """Return the plan to go by and where it was written: the given one, else the deployed or configured one.

        Raises:
            UnknownFamilyError: No such family, or none that can be rolled out.
            NoPlanError: There is neither.
            InvalidInputError: The given one does not fit the family.
        """
        rolled = self._rolled(family)
        if given is not None:
            if problems := rolled.problems(given):
                raise InvalidInputError("; ".join(f"plan.{problem}" for problem in problems))
            return given, PlanOrigin.CALL
        found = rolled.plans.of(family)
        if found.plan is None:
            raise NoPlanError(family)
        return found.plan, found.origin

    async def follow(self, family: str, wish: Wish) -> str | None:
        """Begin a rollout of what a source or a pin asks for; return why not, where it has to wait.

        A pin stands until it is changed. What it names is rolled out once: after an abort an operator retries it.

        Raises:
            StoreError: It could not be saved; nothing has begun.
        """
        advancer = self.advancer(family)
        last = advancer.rollout
        if not wish.follows and last is not None and last.is_tried and last.state.candidate == wish.ref:
            return f"{wish.ref.version} is pinned, and its rollout has ended: {last.state.phase.value}; retry it"
        plan, origin = self.plan(family, None)
        try:
            await advancer.begin(
                plan,
                wish.ref,
                actor=wish.actor,
                reason=wish.reason,
                follows=wish.follows,
                waits=True,
                plan_from=origin,
            )
        except CoolingDownError as error:
            return f"{wish.ref.version} waits: {error}"
        return None

    async def begin(
        self, family: str, ref: VersionRef, *, plan: RolloutPlan | None, actor: str, reason: str, follows: bool
    ) -> RolloutRecord:
        """Begin a rollout that somebody asked for; it does not wait for the last one to cool down.

        Raises:
            RolloutConflictError: A deploy says that the family's rollouts are paused.
            NoPlanError, RolloutTransitionError, RolloutConflictError, StoreError: See `RolloutAdvancer.begin`.
        """
        chosen, origin = self.plan(family, plan)
        self._check_not_paused(family)
        return await self.advancer(family).begin(
            chosen, ref, actor=actor, reason=reason, follows=follows, plan_from=origin
        )

    async def operate(self, family: str, command: Command, *, actor: str, reason: str) -> None:
        """Do what an operator asks for.

        Raises:
            RolloutConflictError: A deploy says that the family's rollouts are paused.
            NoRolloutError, RolloutTransitionError, RolloutConflictError, StoreError: See `RolloutAdvancer.operate`.
        """
        if command in (Command.RESUME, Command.RETRY):
            self._check_not_paused(family)
        await self.advancer(family).operate(command, actor=actor, reason=reason)

    def _check_not_paused(self, family: str) -> None:
        if self._rolled(family).plans.of(family).is_paused:
            raise RolloutConflictError(f"rollouts of {family!r} are paused in the user_config of the reconciler")

    async def heed(self, family: str) -> None:
        """Pause what is under way while a deploy says so, and resume what was paused for that alone.

        Raises:
            StoreError: It could not be saved; the next turn tries again.
        """
        rollout = self.under_way(family)
        if rollout is None:
            return
        state, advancer = rollout.state, self._rolled(family).advancer
        if self._rolled(family).plans.of(family).is_paused:
            if state.phase in COMMANDS[Command.PAUSE]:
                await advancer.operate(Command.PAUSE, actor=USER_CONFIG, reason="paused by a deploy")
        elif (
            state.phase is Phase.PAUSED
            and state.pause_reason is PauseReason.OPERATOR
            and state.history[-1].actor == USER_CONFIG
        ):
            await advancer.operate(Command.RESUME, actor=USER_CONFIG, reason="paused by a deploy no more")

    async def end(self, family: str, *, actor: str, reason: str) -> bool:
        """End a rollout that is under way; return whether there was one."""
        if self.under_way(family) is None:
            return False
        return await self.advancer(family).end(actor=actor, reason=reason)

    def joined(self, family: str, ref: VersionRef, state: StoredState) -> Operation | None:
        """Return the operation of the rollout under way if it is of this version; None where there is none.

        Raises:
            UnavailableError: Another version is being rolled out.
        """
        rollout = self.under_way(family)
        if rollout is None:
            return None
        if rollout.state.candidate != ref:
            raise UnavailableError(
                f"a rollout of {family!r} is under way: {rollout.state.candidate.version}; "
                "promote or abort it first, or ask for an immediate change"
            )
        return operation_of(rollout, state)

    def operation(self, operation_id: str, state: StoredState) -> Operation | None:
        """Return the last rollout of a family as an operation, by its id."""
        for known in self._families.values():
            rollout = known.advancer.rollout
            if rollout is not None and rollout.state.rollout_id == operation_id:
                return operation_of(rollout, state)
        return None

    def reports(self) -> list[RolloutReport]:
        """Return what is told of the last rollout of each family that has had one."""
        return [self.report(family) for family, known in self._families.items() if known.advancer.rollout is not None]

    def report(self, family: str) -> RolloutReport:
        """Return what is told of the last rollout of a family.

        Raises:
            NoRolloutError: It has had none.
        """
        record = self.advancer(family).rollout
        if record is None:
            raise NoRolloutError(family)
        return report_of(record).model_copy(update={"next_plan": self._families[family].plans.of(family)})


def operation_of(rollout: RolloutRecord, state: StoredState) -> Operation:
    """Return how a rollout stands, in the words of changes."""
    told = rollout.state
    outcome = outcome_of(told)
    move = told.history[-1] if told.history else None
    why = f": {move.reason}" if move else ""
    return Operation(
        operation_id=told.rollout_id,
        family=told.family,
        outcome=outcome,
        from_version=told.stable.version,
        to_version=told.candidate.version,
        detail=f"rollout {told.phase.value}{why}",
        started_at_s=told.started_at_s,
        ended_at_s=told.ended_at_s,
        generation=state.generation,
        is_rollout=True,
    )


def went_back(rollout: RolloutRecord, state: StoredState) -> Operation:
    """Return the operation of a rollback that had only a rollout to end."""
    told = rollout.state
    return Operation(
        operation_id=told.rollout_id,
        family=told.family,
        outcome=Outcome.RELOADED,
        from_version=told.candidate.version,
        to_version=told.stable.version,
        detail=f"the rollout of {told.candidate.version} was ended",
        started_at_s=told.began_at_s,
        ended_at_s=told.ended_at_s,
        generation=state.generation,
        is_rollout=True,
    )
