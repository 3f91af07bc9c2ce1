"""What is stored of a rollout, and the words for it."""

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from serve_app.domain.analysis_plan import AnalysisPlan
from serve_app.domain.errors import ServeAppError
from serve_app.domain.rollout_plan import PlanOrigin, RolloutPlan, Strategy
from serve_app.domain.traffic import salt_of
from serve_app.domain.verdict import Verdict
from serve_app.domain.version_ref import VersionRef


class Phase(StrEnum):
    """How far a rollout has come."""

    PENDING = "pending"
    SHADOW = "shadow"
    SEGMENT = "segment"
    STEP = "step"
    EXPERIMENT = "experiment"
    PAUSED = "paused"
    PROMOTING = "promoting"
    WATCHING = "watching"
    ABORTING = "aborting"
    SUCCEEDED = "succeeded"
    ABORTED = "aborted"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """True when nothing more happens unless an operator retries."""
        return self in OVER


OVER = frozenset({Phase.SUCCEEDED, Phase.ABORTED, Phase.FAILED})
TRIED = frozenset({Phase.SHADOW, Phase.SEGMENT, Phase.STEP, Phase.EXPERIMENT})
"""The phases in which the candidate is tried, and which a pause comes back to."""


class RolloutTransitionError(ServeAppError):
    """A rollout cannot go from the phase it is in to the one that was asked for; nothing has changed."""

    def __init__(self, action: str, expected: tuple[Phase, ...], found: Phase) -> None:
        self.action = action
        self.expected = expected
        self.found = found
        super().__init__(
            f"{action}: expected a rollout that is {' or '.join(phase.value for phase in expected)}, "
            f"found one that is {found.value}"
        )

    def __reduce__(self) -> tuple[type["RolloutTransitionError"], tuple[str, tuple[Phase, ...], Phase]]:
        return type(self), (self.action, self.expected, self.found)


class CoolingDownError(ServeAppError):
    """The last rollout of the family ended too short a time ago."""

    def __init__(self, family: str, left_s: float) -> None:
        self.family = family
        self.left_s = left_s
        super().__init__(f"family {family!r} cools down after its last rollout for another {left_s:.0f} s")

    def __reduce__(self) -> tuple[type["CoolingDownError"], tuple[str, float]]:
        return type(self), (self.family, self.left_s)


class NoRolloutError(ServeAppError):
    """The family has had no rollout."""

    def __init__(self, family: str) -> None:
        self.family = family
        super().__init__(f"family {family!r} has had no rollout")

    def __reduce__(self) -> tuple[type["NoRolloutError"], tuple[str]]:
        return type(self), (self.family,)


class NoPlanError(ServeAppError):
    """No plan was given and none is configured for the family."""

    def __init__(self, family: str) -> None:
        self.family = family
        super().__init__(
            f"expected a plan: none is configured for family {family!r} (families.{family}.rollout), and none deployed "
            "(user_config of the reconciler)"
        )

    def __reduce__(self) -> tuple[type["NoPlanError"], tuple[str]]:
        return type(self), (self.family,)


class RolloutConflictError(ServeAppError):
    """What is active does not let this rollout begin; the message says why."""


class PauseReason(StrEnum):
    """Why a rollout waits for an operator."""

    OPERATOR = "operator"
    INCONCLUSIVE = "inconclusive"
    ERRORS = "errors"
    CAP = "cap"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Move(_Document):
    """One transition: when, from where to where, who made it, and why."""

    at_s: float
    found: Phase
    to: Phase
    step: int
    actor: str
    reason: str


class RolloutState(_Document):
    """All that is stored of a rollout. Times are seconds since the epoch.

    `plan` stands from the start on, whatever becomes of the plan at its origin; `plan_from` says where it was written.
    `step` counts from 0. `began_at_s` is when the phase, or the step, began. `came_from` is the phase whose traffic
    stays while PAUSED or PROMOTING. `errors` counts verdicts in a row, the last of them at `judged_at_s`.
    `verdict` is the last one. Exposures count answers of the candidate, and entities that got some, since this attempt
    began; the caps of the plan count from `granted_requests` and `granted_entities` on.
    """

    rollout_id: str
    family: str
    plan: RolloutPlan
    plan_from: PlanOrigin = PlanOrigin.CONFIGURATION
    candidate: VersionRef
    stable: VersionRef
    actor: str
    reason: str
    started_at_s: float
    began_at_s: float
    ended_at_s: float | None = None
    phase: Phase = Phase.PENDING
    step: int = 0
    came_from: Phase | None = None
    pause_reason: PauseReason | None = None
    verdict: Verdict | None = None
    judged_at_s: float = 0.0
    errors: int = 0
    exposed_requests: int = 0
    exposed_entities: int = 0
    granted_requests: int = 0
    granted_entities: int = 0
    retries: int = 0
    history: tuple[Move, ...] = ()

    @model_validator(mode="after")
    def _has_two_sides(self) -> Self:
        is_same_place = self.plan.pool == self.plan.stable_pool
        if self.candidate == self.stable and (is_same_place or self.plan.strategy is not Strategy.AB):
            raise ValueError(
                f"candidate: expected another version than {self.stable.version!r}, or an experiment on two pools"
            )
        return self

    @property
    def salt(self) -> str:
        """What tells this attempt from all other experiments; every retry shuffles the keys anew."""
        return salt_of(self.family, f"{self.rollout_id}/{self.retries}")

    @property
    def judged_by(self) -> AnalysisPlan | None:
        """What the evidence of this phase, or of the one that is paused, is judged by; None: by time alone."""
        phase = self.came_from if self.phase is Phase.PAUSED else self.phase
        return self.plan.analysis_of(is_shadow=phase is Phase.SHADOW)

    @property
    def overdue_at_s(self) -> float:
        """When the deadline of this attempt passes."""
        return self.started_at_s + self.plan.deadline_s
