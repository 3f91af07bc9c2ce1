"""How many answers it takes to see the margin of a metric: the least effect that its plan cares about.

It is the size at which the two versions that are hardest to decide about are decided: one that is exactly equal (to
pass) and one that is worse by exactly the margin (to fail). The evidence is computed for the counts that are
*expected* of such versions, with the same e-processes and sequences that judge the real ones (see `statistics`), the
present ratio of both sides, and what the stable variant has shown so far: its rate of errors, its latencies, its
variance. Real counts scatter around the expected ones, so about half of such versions are decided by then, and no
promise is made for one.

For counts the logarithm of each e-process grows in proportion to the expected counts, so its mixture is convex in the
size and crosses the goal once. For means the half-width of the sequence (Waudby-Smith et al., 2024) is to fall to the
margin.
"""

import math
from collections.abc import Callable
from typing import Final

from pydantic import BaseModel, ConfigDict

from serve_app.domain.analysis import INTENDED_FACTOR, Tally
from serve_app.domain.analysis_plan import Metric, MetricKind
from serve_app.domain.histogram import LAST_BUCKET, buckets_within
from serve_app.domain.statistics import CountComparison, mixture_boundary

MOST: Final = 1e12
"""More than this many is told as unknown: nobody waits for them."""
NEAR_ENOUGH: Final = 1.002


class SampleSize(BaseModel):
    """How many of each side it takes in all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_stable: int
    n_canary: int


def size_to_decide(tally: Tally, metric: Metric, side_alpha: float) -> SampleSize | None:
    """Return how many it takes; None where nothing is known to start from, or no number is enough."""
    if metric.kind.is_mean:
        pair = tally.means.get(metric.name)
        n, m = (pair.canary.count, pair.stable.count) if pair is not None else (0, 0)
    else:
        n, m = tally.canary.requests, tally.stable.requests
    if not n or not m:
        return None
    share = n / (n + m)
    total = _total(tally, metric, side_alpha, share)
    if total is None:
        return None
    total = max(total, metric.needed / min(share, 1 - share))
    return SampleSize(n_stable=math.ceil(total * (1 - share)), n_canary=math.ceil(total * share))


def _total(tally: Tally, metric: Metric, side_alpha: float, share: float) -> float | None:
    match metric.kind:
        case MetricKind.ERROR_RATE:
            return _of_rates(tally.stable.errors / tally.stable.requests, metric, side_alpha, share)
        case MetricKind.LATENCY_QUANTILE:
            return _of_quantile(tally, metric, side_alpha, share)
        case MetricKind.LATENCY_MEAN | MetricKind.LOSS:
            return _of_means(tally, metric, side_alpha, share)
        case MetricKind.DISAGREEMENT:
            return None


def _of_rates(rate: float, metric: Metric, side_alpha: float, share: float) -> float | None:
    margin = metric.max_increase
    worse = rate * (1 + margin) if metric.is_relative else rate + margin
    if metric.is_relative:
        equal, tolerated = _Expected(rate, rate, share, harder=1 + margin), 0.0
    else:
        equal, tolerated = _Expected(rate, rate, share), margin
    return _larger(
        _size(lambda total: _Expected(worse, rate, share).of(total).log_evidence_above(0.0), side_alpha),
        _size(lambda total: equal.of(total).log_evidence_below(tolerated), side_alpha),
    )


def _of_quantile(tally: Tally, metric: Metric, side_alpha: float, share: float) -> float | None:
    """Move the stable variant's histogram by the margin; bounds are those of the analysis."""
    latency = tally.stable.latency
    assert metric.quantile is not None, "the metric checks it"
    bound, moved = latency.quantile_bucket(metric.quantile), buckets_within(metric.max_increase)
    if bound is None or bound - 1 + moved >= LAST_BUCKET:
        return None
    inner = max(bound - 1, 0)

    def above(bucket: int) -> float:
        return latency.count_above(bucket) / latency.total

    worse = _Expected(above(bound - moved), above(bound), share)
    equal = _Expected(above(inner + moved), above(inner), share)
    return _larger(
        _size(lambda total: worse.of(total).log_evidence_above(0.0), side_alpha),
        _size(lambda total: equal.of(total).log_evidence_below(0.0), side_alpha),
    )


def _of_means(tally: Tally, metric: Metric, side_alpha: float, share: float) -> float | None:
    pair = tally.means[metric.name]
    margin = metric.max_increase * (pair.stable.mean if metric.is_relative else 1.0)
    variance = max(pair.stable.variance, pair.canary.variance)
    if metric.is_relative:
        variance *= (1 + metric.max_increase) ** 2
    if margin <= 0 or not variance:
        return None
    intended = float(INTENDED_FACTOR * metric.needed)

    def surplus(total: float) -> float:
        weight = total * share * (1 - share)
        return margin / (math.sqrt(variance / weight) * mixture_boundary(weight, 2 * side_alpha, intended=intended))

    return _first(lambda total: surplus(total) >= 1)


class _Expected:
    """What is expected of both sides at these rates; `harder` multiplies the canary's exposure as the analysis does."""

    def __init__(self, canary_rate: float, stable_rate: float, share: float, *, harder: float = 1.0) -> None:
        self._canary_rate = canary_rate
        self._stable_rate = stable_rate
        self._share = share
        self._harder = harder

    def of(self, total: float) -> CountComparison:
        n, m = total * self._share, total * (1 - self._share)
        return CountComparison().plus(self._canary_rate * n, n * self._harder, self._stable_rate * m, m)


def _size(log_evidence: Callable[[float], float], side_alpha: float) -> float | None:
    return _first(lambda total: log_evidence(total) >= -math.log(side_alpha))


def _first(is_enough: Callable[[float], bool]) -> float | None:
    """Return about the least number that is enough; all larger ones are."""
    high = 2.0
    while not is_enough(high):
        high *= 2
        if high > MOST:
            return None
    low = high / 2
    while high / low > NEAR_ENOUGH:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _larger(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else max(first, second)
