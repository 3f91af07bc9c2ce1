"""What the simulation finds, as stored in `docs/statistics.json`."""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist

from pydantic import BaseModel, ConfigDict

from tests.simulations.rivals import NEVER, RIVALS
from tests.simulations.scenarios import N_LOOKS, Scenario
from tests.simulations.simulated import Course

OURS = "this product"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Share(_Document):
    """How many of all, with the Wilson interval of 95 %."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """Return the share."""
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Return the interval of Wilson (1927)."""
        z = NormalDist().inv_cdf(0.975)
        middle = (self.count + z * z / 2) / (self.total + z * z)
        half = z / (self.total + z * z) * math.sqrt(self.count * (1 - self.value) + z * z / 4)
        return max(middle - half, 0.0), min(middle + half, 1.0)


class Aborts(_Document):
    """When one method aborts: in how many rollouts, after how many looks and requests of the canary.

    The medians and ninetieth percentiles are those of all rollouts; None stands for "not within the looks there were".
    `by_look` counts the rollouts aborted up to each look.
    """

    method: str
    share: Share
    looks_p50: int | None
    looks_p90: int | None
    exposed_p50: int | None
    exposed_p90: int | None
    by_look: tuple[int, ...]


class Found(_Document):
    """What became of the rollouts of one scenario.

    `failed` counts those with the verdict fail at any look, also after the rollout was over where it was watched on;
    `passed` those in which a metric passed at any such look.
    """

    scenario: str
    rollouts: int
    canary_share: float
    aborted: Share
    promoted: Share
    promoted_looks_p50: int | None
    failed: Share
    split_alarms: Share
    passed: dict[str, Share]
    methods: tuple[Aborts, ...]


class SimulationRun(_Document):
    """One run of `make simulate`."""

    started_at: str
    command: str
    code: str
    machine: str
    seconds: float
    seed: int
    alpha: float
    side_alpha: float
    looks: int
    canary_requests: int
    base_error_rate: float
    found: tuple[Found, ...]


def summed_up(scenario: Scenario, courses: Sequence[Course], metrics: Sequence[str]) -> Found:
    """Put the rollouts of one scenario together."""
    n = len(courses)

    def share(happened: Callable[[Course], int]) -> Share:
        return Share(count=sum(happened(course) != NEVER for course in courses), total=n)

    methods = [_aborts(OURS, courses, lambda course: course.aborted)]
    methods += [_aborts(name, courses, _rival(i)) for i, name in enumerate(RIVALS)]
    return Found(
        scenario=scenario.name,
        rollouts=n,
        canary_share=scenario.share,
        aborted=share(lambda course: course.aborted),
        promoted=share(lambda course: course.promoted),
        promoted_looks_p50=_quantile((course.promoted for course in courses), n, 0.5),
        failed=share(lambda course: course.failed),
        split_alarms=share(lambda course: course.split_alarm),
        passed={
            name: Share(count=sum(course.passed[i] != NEVER for course in courses), total=n)
            for i, name in enumerate(metrics)
        },
        methods=tuple(methods),
    )


def _rival(i: int) -> Callable[[Course], int]:
    return lambda course: course.rivals[i]


def _aborts(method: str, courses: Sequence[Course], look_of: Callable[[Course], int]) -> Aborts:
    looks = [look_of(course) for course in courses]
    exposed = [course.canary_requests[look - 1] if look else NEVER for course, look in zip(courses, looks, strict=True)]
    n = len(courses)
    return Aborts(
        method=method,
        share=Share(count=sum(look != NEVER for look in looks), total=n),
        looks_p50=_quantile(looks, n, 0.5),
        looks_p90=_quantile(looks, n, 0.9),
        exposed_p50=_quantile(exposed, n, 0.5),
        exposed_p90=_quantile(exposed, n, 0.9),
        by_look=tuple(sum(NEVER < look <= limit for look in looks) for limit in range(1, N_LOOKS + 1)),
    )


def _quantile(values: Iterable[int], n: int, q: float) -> int | None:
    """Return the quantile over all n rollouts, those in which it never happened being beyond all others."""
    happened = sorted(value for value in values if value != NEVER)
    rank = math.ceil(q * n)
    return happened[rank - 1] if 0 < rank <= len(happened) else None
