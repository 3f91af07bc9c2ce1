"""What an operator writes of a rollout: its strategy, its steps, and the limits that end or hold it.

**The watch.** After the promotion nothing is left to compare the new version with, unless some requests stay behind.
What the former version did before is no measure: loads, inputs and labels are others at another hour. So while a
promotion is watched, `holdback` percent of the requests, which the former version answers already, stay with it. They
are drawn by the same hash as before: who got the new version once keeps it, and the share held back only ever falls.
Both sides are judged in the same windows by the same rules as in the steps, and a fail brings the former version back.

**Alpha.** Each kind of evidence (copies, named entities, steps, watch) has a tally of its own, for it answers another
question, and what turns bad after the promotion must not drown in what was good before. `alpha` is split evenly over
those kinds that a plan has, before it is split over metrics and sides: whatever a rollout goes through, all its false
aborts and rollbacks together are bounded by it.
"""

from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serve_app.domain.analysis_plan import AnalysisPlan, MetricKind
from serve_app.domain.traffic import MAX_GROUPS, Group, Targeting, buckets_of, group_problems


class Strategy(StrEnum):
    """What a new version gets: all traffic at once, a growing share, a fixed share, or copies only."""

    IMMEDIATE = "immediate"
    CANARY = "canary"
    AB = "ab"
    SHADOW = "shadow"


class PlanOrigin(StrEnum):
    """Where a plan was written: in `args` of the application, in a deploy of `user_config`, or in a call."""

    CONFIGURATION = "configuration"
    USER_CONFIG = "user_config"
    CALL = "call"


class OnInconclusive(StrEnum):
    """What an inconclusive verdict does once the step has been held for its time."""

    HOLD = "hold"
    PAUSE = "pause"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Percent = Annotated[float, Field(gt=0, le=100)]
HeldBack = Annotated[float, Field(ge=0, le=50)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Step(_Document):
    """One weight of the candidate, in percent with steps of 0.01, and the least seconds that it is held."""

    weight: Percent
    hold_s: Seconds = 0.0

    @field_validator("weight")
    @classmethod
    def _is_whole_buckets(cls, weight: float) -> float:
        buckets_of(weight)
        return weight

    @property
    def buckets(self) -> int:
        """The weight in buckets of 0.01 %."""
        return buckets_of(self.weight)


class SegmentFirst(_Document):
    """Named entities (`edge-*` for all that begin so) that get the candidate before anybody else, and keep it."""

    entities: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    hold_s: Seconds = 0.0


class ShadowFirst(_Document):
    """Copies for the candidate before it answers anybody: for how long, and of how many percent of the requests."""

    hold_s: Seconds
    sample: Percent = 100.0

    @field_validator("sample")
    @classmethod
    def _is_whole_buckets(cls, sample: float) -> float:
        buckets_of(sample)
        return sample

    @property
    def buckets(self) -> int:
        """The sample in buckets of 0.01 %."""
        return buckets_of(self.sample)


class RolloutPlan(_Document):
    """The recipe of a rollout. Every phase goes on after its `hold_s` *and* a pass; without `analysis`, after `hold_s`.

    `deadline_s` bounds all from the start to the promotion, pauses included; it aborts a rollout and ends an
    experiment. `watch_s` follows the promotion: a fail in it brings the former version back, which keeps `holdback`
    percent of the requests until then to compare with (0: nobody, and nothing is judged). It should be as long as
    labels are late, where they are a metric. `cool_down_s` must pass before the next rollout of the family begins by
    itself. The candidate answers at most `max_exposed_requests`, or `max_exposed_entities` different entities; then it
    gets no more until an operator grants as many again (`resume`). `max_errors` verdicts in a row that are errors pause
    the rollout. `pool` and `stable_pool` tie a side to hardware.
    """

    strategy: Strategy
    steps: tuple[Step, ...] = ()
    segment_first: SegmentFirst | None = None
    shadow_first: ShadowFirst | None = None
    analysis: AnalysisPlan | None = AnalysisPlan()
    on_inconclusive: OnInconclusive = OnInconclusive.HOLD
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 86_400.0
    watch_s: Seconds = 0.0
    holdback: HeldBack = 5.0
    cool_down_s: Seconds = 0.0
    max_exposed_requests: Annotated[int, Field(ge=1)] | None = None
    max_exposed_entities: Annotated[int, Field(ge=1)] | None = None
    max_errors: Annotated[int, Field(ge=1)] = 5
    targeting: Targeting | None = None
    pool: str | None = None
    stable_pool: str | None = None
    groups: Annotated[tuple[Group, ...], Field(max_length=MAX_GROUPS)] = ()

    @field_validator("holdback")
    @classmethod
    def _is_whole_buckets(cls, holdback: float) -> float:
        buckets_of(holdback)
        return holdback

    @model_validator(mode="after")
    def _fits_strategy(self) -> Self:
        problems = [*self._step_problems(), *self._first_problems(), *group_problems(self.groups)]
        if self.deadline_s <= self.least_s:
            problems.append(
                f"deadline_s: expected more than the {self.least_s:g} s that all is held, found {self.deadline_s:g}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _step_problems(self) -> list[str]:
        n_steps = len(self.steps)
        match self.strategy:
            case Strategy.CANARY if n_steps == 0:
                return ["steps: expected at least one with the strategy canary, found none"]
            case Strategy.AB if n_steps != 1 or self.steps[0].hold_s:
                return ["steps: expected exactly one, without hold_s, with the strategy ab: it lasts until deadline_s"]
            case Strategy.IMMEDIATE | Strategy.SHADOW if n_steps:
                return [f"steps: expected none with the strategy {self.strategy.value}, found {n_steps}"]
        weights = [step.weight for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise(weights)):
            return [f"steps: expected weights that grow, found {', '.join(f'{weight:g}' for weight in weights)}"]
        return []

    def _first_problems(self) -> list[str]:
        problems = []
        if self.segment_first is not None and self.strategy is not Strategy.CANARY:
            problems.append(f"segment_first: expected only with the strategy canary, found {self.strategy.value}")
        if self.shadow_first is None and self.strategy is Strategy.SHADOW:
            problems.append("shadow_first: expected with the strategy shadow, found none")
        if self.shadow_first is not None and self.strategy is Strategy.IMMEDIATE:
            problems.append("shadow_first: expected not with the strategy immediate")
        return problems

    @property
    def least_s(self) -> float:
        """The seconds that the plan takes when every verdict is a pass at once."""
        firsts = [first.hold_s for first in (self.shadow_first, self.segment_first) if first is not None]
        return sum(firsts) + sum(step.hold_s for step in self.steps)

    @property
    def is_watched(self) -> bool:
        """True when what comes after the promotion is judged."""
        return self.watch_s > 0 and self.holdback > 0 and self.analysis is not None

    @property
    def n_kinds(self) -> int:
        """How many kinds of evidence are judged, each with its own tally and an equal part of alpha."""
        kinds = (
            self.shadow_first is not None,
            self.segment_first is not None,
            self.strategy in (Strategy.CANARY, Strategy.AB),
            self.is_watched,
        )
        return max(sum(kinds), 1)

    def analysis_of(self, *, is_shadow: bool = False) -> AnalysisPlan | None:
        """Return what one kind of evidence is judged by; None: by time alone.

        Nobody gets the answers of a shadow, so no label speaks of them: its losses are not waited for.
        """
        if self.analysis is None:
            return None
        metrics = tuple(one for one in self.analysis.metrics if not (is_shadow and one.kind is MetricKind.LOSS))
        if not metrics:
            return None
        part = {"alpha": self.analysis.alpha / self.n_kinds, "srm_alpha": self.analysis.srm_alpha / self.n_kinds}
        return self.analysis.model_copy(update={**part, "metrics": metrics})


class NextPlan(_Document):
    """What the next rollout of a family goes by; `plan` None: every change is at once.

    `is_paused`: nothing new begins by itself, and what is under way waits. `problem` says why what was deployed last
    is not gone by; this stood before it.
    """

    plan: RolloutPlan | None = None
    origin: PlanOrigin = PlanOrigin.CONFIGURATION
    is_paused: bool = False
    problem: str | None = None

    @property
    def is_gradual(self) -> bool:
        """True when a new version does not get all traffic at once."""
        return self.plan is not None and self.plan.strategy is not Strategy.IMMEDIATE
