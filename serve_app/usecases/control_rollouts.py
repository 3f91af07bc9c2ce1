"""Which changes of version go by a rollout, and what the control plane tells of rollouts.

The rules: where a family's plan is not immediate, every new version goes by it, whoever found it. The first version
of a family, a rollback, and a change that asks to be immediate do not; they end a rollout that is under way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from serve_app.domain.errors import InvalidInputError, UnavailableError, UnknownFamilyError
from serve_app.domain.reload import FamilyRecord, Operation, Outcome, StoredState, VersionRef
from serve_app.domain.rollout_plan import RolloutPlan, Strategy
from serve_app.domain.rollout_record import RolloutRecord, RolloutReport, report_of
from serve_app.domain.rollout_state import CoolingDownError, NoPlanError, NoRolloutError
from serve_app.usecases.advance_rollout import RolloutAdvancer, outcome_of
from serve_app.usecases.follow_source import Wish

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RolledFamily:
    """One family whose versions may be rolled out; `plan` is the configured one, None where every change is at once.

    `check` raises ValueError for a plan that does not fit the family.
    """

    advancer: RolloutAdvancer
    plan: RolloutPlan | None = None
    check: Callable[[RolloutPlan], None] = lambda _plan: None

    @property
    def is_gradual(self) -> bool:
        """True when a new version does not get all traffic at once."""
        return self.plan is not None and self.plan.strategy is not Strategy.IMMEDIATE


class RolloutControl:
    """The rollouts of all families. The caller sees that calls for one family do not overlap."""

    def __init__(self, families: Mapping[str, RolledFamily]) -> None:
        self._families = families

    def advancer(self, family: str) -> RolloutAdvancer:
        """Return what carries the rollouts of a family on.

        Raises:
            UnknownFamilyError: No such family, or none that can be rolled out.
        """
        if family not in self._families:
            raise UnknownFamilyError(family, list(self._families))
        return self._families[family].advancer

    def under_way(self, family: str) -> RolloutRecord | None:
        """Return the rollout of a family that is under way."""
        known = self._families.get(family)
        return known.advancer.rollout if known is not None and known.advancer.is_under_way else None

    def is_for(self, family: str, record: FamilyRecord) -> bool:
        """True when a new version of a family goes by a rollout; the first one has nothing to be compared with."""
        known = self._families.get(family)
        return known is not None and known.is_gradual and record.active is not None

    def plan(self, family: str, given: RolloutPlan | None) -> RolloutPlan:
        """Return the plan to go by: the given one, else the configured one.

        Raises:
            UnknownFamilyError: No such family, or none that can be rolled out.
            NoPlanError: There is neither.
            InvalidInputError: The given one does not fit the family.
        """
        if family not in self._families:
            raise UnknownFamilyError(family, list(self._families))
        rolled = self._families[family]
        if given is not None:
            try:
                rolled.check(given)
            except ValueError as error:
                raise InvalidInputError(str(error)) from error
            return given
        if rolled.plan is None:
            raise NoPlanError(family)
        return rolled.plan

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
        try:
            await advancer.begin(
                self.plan(family, None),
                wish.ref,
                actor=wish.actor,
                reason=wish.reason,
                follows=wish.follows,
                waits=True,
            )
        except CoolingDownError as error:
            return f"{wish.ref.version} waits: {error}"
        return None

    async def begin(
        self, family: str, ref: VersionRef, *, plan: RolloutPlan | None, actor: str, reason: str, follows: bool
    ) -> RolloutRecord:
        """Begin a rollout that somebody asked for; it does not wait for the last one to cool down.

        Raises:
            NoPlanError, RolloutTransitionError, RolloutConflictError, StoreError: See `RolloutAdvancer.begin`.
        """
        chosen = self.plan(family, plan)
        return await self.advancer(family).begin(chosen, ref, actor=actor, reason=reason, follows=follows)

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
        records = (known.advancer.rollout for known in self._families.values())
        return [report_of(record) for record in records if record is not None]

    def report(self, family: str) -> RolloutReport:
        """Return what is told of the last rollout of a family.

        Raises:
            NoRolloutError: It has had none.
        """
        record = self.advancer(family).rollout
        if record is None:
            raise NoRolloutError(family)
        return report_of(record)


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
