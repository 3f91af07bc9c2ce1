"""What each group of a rollout's requests adds up to: to look at, never to decide by.

Whoever looks at many groups finds one that differs, by chance alone. So no verdict rests on them, and the intervals
hold together: the alpha of the rollout is split evenly over the groups that there may be, both measures and both sides
(Bonferroni). What counts is how many groups there may be, fixed when the plan was written, not how many had requests.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict

from serve_app.domain.analysis import INTENDED_FACTOR
from serve_app.domain.analysis_plan import MIN_COUNTS, MIN_VALUES
from serve_app.domain.evidence import Evidence, Measurement
from serve_app.domain.statistics import CountComparison, Interval, MeanComparison
from serve_app.domain.traffic import DRAWN, OTHERS, Group, Reason

MEASURES: Final = 2
"""Errors, and the mean latency."""
NOT_DRAWN: Final = frozenset({Reason.SEGMENT.value, Reason.FORCED.value})
"""Nobody drew who got what here, so there is nothing to compare."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GroupTally(_Document):
    """One group over all windows: sums of both sides, and their comparisons where chance assigned."""

    stable: Measurement = Measurement()
    canary: Measurement = Measurement()
    errors: CountComparison = CountComparison()
    latency: MeanComparison = MeanComparison()

    def plus(self, evidence: Evidence) -> "GroupTally":
        """Return the group with one more window."""
        stable, canary = evidence.stable, evidence.canary
        return GroupTally.model_construct(
            stable=self.stable.merged(stable),
            canary=self.canary.merged(canary),
            errors=self.errors.plus(canary.errors, canary.requests, stable.errors, stable.requests),
            latency=self.latency.plus(canary.latency_s, stable.latency_s),
        )


class GroupResult(_Document):
    """One group for people to read; intervals of all groups together hold with the rollout's alpha.

    Differences are the candidate's minus the stable variant's: of error rates, and of mean latencies in seconds. They
    are missing where nobody drew, and where `too_few` says how many there are and how many it takes.
    """

    name: str
    n_stable: int
    n_canary: int
    errors_stable: int
    errors_canary: int
    latency_stable_s: float | None
    latency_canary_s: float | None
    error_difference: float | None = None
    error_interval: Interval | None = None
    latency_difference_s: float | None = None
    latency_interval_s: Interval | None = None
    is_drawn: bool = True
    too_few: str = ""


def grouped(tallies: Mapping[str, GroupTally], windows: Mapping[str, Evidence]) -> dict[str, GroupTally]:
    """Add one window of each group."""
    summed = dict(tallies)
    for name, evidence in windows.items():
        summed[name] = summed.get(name, GroupTally()).plus(evidence)
    return summed


def names_of(groups: Sequence[Group]) -> tuple[str, ...]:
    """Return the groups that there may be: those of the plan and the others, or the kinds of chance."""
    return (*(group.name for group in groups), OTHERS) if groups else DRAWN


def results_of(tallies: Mapping[str, GroupTally], groups: Sequence[Group], *, alpha: float) -> tuple[GroupResult, ...]:
    """Return all groups that had requests, in the order of the plan; what nobody drew comes last."""
    names = names_of(groups)
    side_alpha = alpha / (2 * MEASURES * len(names))
    order = [*names, *sorted(NOT_DRAWN)]
    return tuple(_result(name, tallies[name], side_alpha) for name in order if name in tallies)


def _result(name: str, tally: GroupTally, side_alpha: float) -> GroupResult:
    stable, canary = tally.stable, tally.canary
    result = GroupResult(
        name=name,
        n_stable=stable.requests,
        n_canary=canary.requests,
        errors_stable=stable.errors,
        errors_canary=canary.errors,
        latency_stable_s=stable.latency_s.mean if stable.requests else None,
        latency_canary_s=canary.latency_s.mean if canary.requests else None,
        is_drawn=name not in NOT_DRAWN,
    )
    n = min(stable.requests, canary.requests)
    if not result.is_drawn:
        return result
    if n < MIN_COUNTS:
        return result.model_copy(update={"too_few": f"{n} of at least {MIN_COUNTS} requests of each side"})
    update: dict[str, object] = {
        "error_difference": tally.errors.difference,
        "error_interval": tally.errors.interval(side_alpha),
    }
    if n < MIN_VALUES:
        update["too_few"] = f"{n} of at least {MIN_VALUES} latencies of each side"
    elif tally.latency.stable.variance and tally.latency.canary.variance:
        update["latency_difference_s"] = tally.latency.difference()
        update["latency_interval_s"] = tally.latency.interval(side_alpha, intended=float(INTENDED_FACTOR * MIN_VALUES))
    return result.model_copy(update=update)
