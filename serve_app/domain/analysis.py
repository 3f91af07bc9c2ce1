"""From measurements to a verdict that may be asked for at any time.

Of each metric it is asked how much *worse* the canary is than the stable variant in the same windows: its harm. The
margin `max_increase` says which harm is tolerated, that is, what counts as equal enough.

- **fail**: it is proven that the canary is worse at all (the confidence sequence of the harm lies above 0), and the
  estimate of the harm is at or above the margin. The proof bounds false aborts; the estimate keeps a tiny but certain
  harm within the margin from aborting.
- **pass**: it is proven that the harm is smaller than the margin (the confidence sequence lies below it).
- **inconclusive**: neither yet, or fewer than `min_samples` of one of the variants.
- **error**: there is nothing to judge by, or the split is not the one that was asked for.

A *false abort* fails a canary that is not worse. A *false promotion of a metric* passes one whose harm is at the margin
or above it. Whatever the number of looks, a rollout meets any of the first with a probability of at most
`(alpha - srm_alpha) / 2`, and any of the second with at most the same: `alpha` is split evenly over all metrics and
both sides (Bonferroni), less `srm_alpha` for a false alarm about the split.

Harm is, by kind of metric:

- `error_rate`: the difference of the rates, or relative to the stable rate.
- `latency_quantile`: canary and stable answers slower than the stable variant's quantile, as the windows *before*
  estimated it, are compared as counts. "Not worse" means that this share is no larger; "worse by the margin" that it is
  no smaller after the canary's latencies have been divided by 1 + margin. Both are exact: counts above the edge of a
  bucket are, and the margin is rounded down to whole buckets, which makes a pass harder. The bound is the upper edge of
  the quantile's bucket for a fail, its lower edge for a pass: there the stable variant always has enough beyond it. The
  first window only serves to find the bound. What is proven is proven of the tails beyond these edges, which are up
  to 4.4 % and the error of the estimate away from the quantile itself.
- `latency_mean`, `loss`: the difference of the means, or relative to the stable mean; asymptotic (see `statistics`).
- `disagreement`: the share of compared predictions that differ. It has no stable side: it fails when it is proven to be
  above the margin.
"""

import math
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from serve_app.domain.analysis_plan import AnalysisPlan, Metric, MetricKind
from serve_app.domain.evidence import Evidence, Measurement
from serve_app.domain.histogram import LAST_BUCKET, buckets_within
from serve_app.domain.statistics import (
    CountComparison,
    Interval,
    MeanComparison,
    Moments,
    p_value,
    rate_interval,
    split_log_evidence,
)
from serve_app.domain.verdict import Verdict

INTENDED_FACTOR = 4
"""A sequence of means is tightest at this multiple of its minimum sample."""
_NO_COUNTS = CountComparison()
_NO_MEANS = MeanComparison()


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tally(_Document):
    """What all windows so far add up to. It is stored with the rollout, so that nothing is counted twice.

    By name of the metric: `harms` compares counts, `margins` compares them with the canary moved by a relative margin,
    `means` compares means. `split` compares assignments with the asked share. `stable` and `canary` are plain sums,
    and `n_windows` counts.
    """

    stable: Measurement = Measurement()
    canary: Measurement = Measurement()
    harms: dict[str, CountComparison] = {}
    margins: dict[str, CountComparison] = {}
    means: dict[str, MeanComparison] = {}
    split: CountComparison = CountComparison()
    n_windows: int = 0


class MetricAnalysis(_Document):
    """The verdict on one metric. `stable` and `canary` are its values over all windows, for people to read.

    `increase` is the estimated harm in the unit of `max_increase`. `interval` is the confidence sequence of the
    difference, in the unit that `interval_of` names, `difference` its estimate. `p_worse` is the always-valid p-value
    of "not worse at all". `n_stable` and `n_canary` say how many of each variant it rests on.
    """

    name: str
    verdict: Verdict
    reason: str
    stable: float | None = None
    canary: float | None = None
    increase: float | None = None
    interval: Interval | None = None
    interval_of: str = ""
    p_worse: float | None = None
    difference: float | None = None
    n_stable: int = 0
    n_canary: int = 0


class Analysis(_Document):
    """The overall verdict with those that it rests on. `side_alpha` holds for each side of each metric.

    `p_split` is the always-valid p-value of "the split is as asked".
    """

    verdict: Verdict
    reason: str
    metrics: tuple[MetricAnalysis, ...] = ()
    p_split: float = 1.0
    side_alpha: float = 0.0
    n_windows: int = 0


def no_analysis(reason: str) -> Analysis:
    """Return the verdict error: there is nothing to judge by."""
    return Analysis(verdict=Verdict.ERROR, reason=reason)


def tallied(tally: Tally, evidence: Evidence, plan: AnalysisPlan) -> Tally:
    """Add one window. The plan must be the same for all windows of a rollout."""
    stable, canary = evidence.stable, evidence.canary
    harms, margins, means = dict(tally.harms), dict(tally.margins), dict(tally.means)
    for metric in plan.metrics:
        name = metric.name
        if metric.kind.is_mean:
            pair = _moments(canary, metric), _moments(stable, metric)
            means[name] = means.get(name, _NO_MEANS).plus(*pair)
        elif metric.kind is MetricKind.ERROR_RATE:
            counts = canary.errors, canary.requests, stable.errors, stable.requests
            harms[name] = harms.get(name, _NO_COUNTS).plus(*counts)
            if metric.is_relative:
                scaled = canary.errors, canary.requests * (1 + metric.max_increase), stable.errors, stable.requests
                margins[name] = margins.get(name, _NO_COUNTS).plus(*scaled)
        elif metric.quantile is not None:
            bound = tally.stable.latency.quantile_bucket(metric.quantile)
            if bound is not None:
                harms[name] = harms.get(name, _NO_COUNTS).plus(*_slower(canary, bound), *_slower(stable, bound))
                inner = max(bound - 1, 0)
                moved = inner + buckets_within(metric.max_increase)
                if moved < LAST_BUCKET:
                    margins[name] = margins.get(name, _NO_COUNTS).plus(*_slower(canary, moved), *_slower(stable, inner))
    split = tally.split
    if evidence.canary_share is not None and canary.assigned + stable.assigned:
        split = split.plus(canary.assigned, evidence.canary_share, stable.assigned, 1 - evidence.canary_share)
    return Tally.model_construct(
        stable=tally.stable.merged(stable),
        canary=tally.canary.merged(canary),
        harms=harms,
        margins=margins,
        means=means,
        split=split,
        n_windows=tally.n_windows + 1,
    )


def analyse(tally: Tally, plan: AnalysisPlan) -> Analysis:
    """Judge all windows so far. One metric that fails is enough to fail; passing takes them all."""
    found = tuple(_JUDGES[metric.kind](tally, metric, plan.side_alpha) for metric in plan.metrics)
    p_split = p_value(split_log_evidence(tally.split))
    verdict, reason = _overall(found, p_split, plan)
    return Analysis(
        verdict=verdict,
        reason=reason,
        metrics=found,
        p_split=p_split,
        side_alpha=plan.side_alpha,
        n_windows=tally.n_windows,
    )


def _overall(found: tuple[MetricAnalysis, ...], p_split: float, plan: AnalysisPlan) -> tuple[Verdict, str]:
    """Put verdicts together. A fail goes before an error: to abort is safe whatever else is wrong."""
    by_verdict = {verdict: [one for one in found if one.verdict is verdict] for verdict in Verdict}
    if failed := by_verdict[Verdict.FAIL]:
        return Verdict.FAIL, "; ".join(f"{one.name}: {one.reason}" for one in failed)
    if p_split <= plan.srm_alpha:
        return Verdict.ERROR, f"the split is not the one that was asked for (p = {p_split:.2g})"
    for verdict in (Verdict.ERROR, Verdict.INCONCLUSIVE):
        if those := by_verdict[verdict]:
            return verdict, "; ".join(f"{one.name}: {one.reason}" for one in those)
    return Verdict.PASS, "no metric is worse by its margin"


def _judge_error_rate(tally: Tally, metric: Metric, side_alpha: float) -> MetricAnalysis:
    stable, canary = (
        _rate(tally.stable.errors, tally.stable.requests),
        _rate(tally.canary.errors, tally.canary.requests),
    )
    harms = tally.harms.get(metric.name, _NO_COUNTS)
    increase = harms.difference
    if metric.is_relative and increase is not None:
        increase = increase / stable if stable else None
    return _judge_counts(
        tally,
        metric,
        side_alpha,
        samples=(tally.stable.requests, tally.canary.requests),
        values=(stable, canary),
        increase=increase,
        interval_of="difference of the error rates",
    )


def _judge_latency_quantile(tally: Tally, metric: Metric, side_alpha: float) -> MetricAnalysis:
    assert metric.quantile is not None, "the metric checks it"
    stable, canary = (side.latency.quantile_s(metric.quantile) for side in (tally.stable, tally.canary))
    return _judge_counts(
        tally,
        metric,
        side_alpha,
        samples=(tally.stable.latency.total, tally.canary.latency.total),
        values=(stable, canary),
        increase=canary / stable - 1 if stable and canary else None,
        interval_of=f"difference of the shares of answers slower than the stable p{metric.quantile * 100:g}",
    )


def _judge_counts(
    tally: Tally,
    metric: Metric,
    side_alpha: float,
    *,
    samples: tuple[int, int],
    values: tuple[float | None, float | None],
    increase: float | None,
    interval_of: str,
) -> MetricAnalysis:
    """Judge by the exact comparison of counts; a relative margin has one of its own, in which it is no difference."""
    if not min(samples):
        return _unmeasured(metric, Verdict.ERROR, f"no answer of the {'canary' if samples[0] else 'stable variant'}")
    harms = tally.harms.get(metric.name, _NO_COUNTS)
    margin, zero = (tally.margins.get(metric.name, _NO_COUNTS), 0.0) if metric.is_relative else (harms, None)
    tolerated = metric.max_increase if zero is None else zero
    goal = -math.log(side_alpha)
    log_worse = harms.log_evidence_above(0.0)
    difference = margin.difference
    verdict, reason = _verdict(
        metric,
        min(samples),
        is_worse=log_worse >= goal,
        is_at_margin=difference is not None and difference >= tolerated,
        is_below_margin=margin.log_evidence_below(tolerated) >= goal,
    )
    return MetricAnalysis(
        name=metric.name,
        verdict=verdict,
        reason=reason,
        stable=values[0],
        canary=values[1],
        increase=increase,
        interval=harms.interval(side_alpha),
        interval_of=interval_of,
        p_worse=p_value(log_worse),
        difference=harms.difference,
        n_stable=samples[0],
        n_canary=samples[1],
    )


def _judge_mean(tally: Tally, metric: Metric, side_alpha: float) -> MetricAnalysis:
    """Judge by the asymptotic sequence; a relative margin compares with a multiple of the stable mean."""
    pair = tally.means.get(metric.name, _NO_MEANS)
    samples = min(pair.stable.count, pair.canary.count)
    if not samples:
        if metric.kind is MetricKind.LOSS:
            return _unmeasured(metric, Verdict.INCONCLUSIVE, "no labels of both variants yet")
        return _unmeasured(metric, Verdict.ERROR, "no answers of both variants")
    intended = float(INTENDED_FACTOR * metric.needed)
    interval = pair.interval(side_alpha, intended=intended)
    difference = pair.difference()
    if metric.is_relative:
        moved = pair.interval(side_alpha, ratio=1 + metric.max_increase, intended=intended)
        from_margin, is_below_margin = pair.difference(1 + metric.max_increase), moved.upper < 0
    else:
        from_margin = None if difference is None else difference - metric.max_increase
        is_below_margin = interval.upper < metric.max_increase
    verdict, reason = _verdict(
        metric,
        samples,
        is_worse=interval.lower > 0,
        is_at_margin=from_margin is not None and from_margin >= 0,
        is_below_margin=is_below_margin,
    )
    relative_to = pair.stable.mean if metric.is_relative else 1.0
    return MetricAnalysis(
        name=metric.name,
        verdict=verdict,
        reason=reason,
        stable=pair.stable.mean,
        canary=pair.canary.mean,
        increase=difference / relative_to if difference is not None and relative_to else None,
        interval=interval if math.isfinite(interval.lower) else None,
        interval_of="difference of the means",
        difference=difference,
        n_stable=pair.stable.count,
        n_canary=pair.canary.count,
    )


def _judge_disagreement(tally: Tally, metric: Metric, side_alpha: float) -> MetricAnalysis:
    compared, disagreed = tally.canary.compared, tally.canary.disagreed
    if not compared:
        return _unmeasured(metric, Verdict.ERROR, "no predictions were compared")
    interval = rate_interval(disagreed, compared, side_alpha)
    verdict, reason = _verdict(
        metric,
        compared,
        is_worse=interval.lower > metric.max_increase,
        is_at_margin=disagreed / compared >= metric.max_increase,
        is_below_margin=interval.upper < metric.max_increase,
    )
    return MetricAnalysis(
        name=metric.name,
        verdict=verdict,
        reason=reason,
        canary=disagreed / compared,
        increase=disagreed / compared,
        interval=interval,
        interval_of="share of predictions that differ",
        difference=disagreed / compared,
        n_canary=compared,
    )


_JUDGES: dict[MetricKind, Callable[[Tally, Metric, float], MetricAnalysis]] = {
    MetricKind.ERROR_RATE: _judge_error_rate,
    MetricKind.LATENCY_QUANTILE: _judge_latency_quantile,
    MetricKind.LATENCY_MEAN: _judge_mean,
    MetricKind.LOSS: _judge_mean,
    MetricKind.DISAGREEMENT: _judge_disagreement,
}


def _verdict(
    metric: Metric, samples: int, *, is_worse: bool, is_at_margin: bool, is_below_margin: bool
) -> tuple[Verdict, str]:
    """Apply the rule at the head of this file."""
    if samples < metric.needed:
        return Verdict.INCONCLUSIVE, f"{samples} of at least {metric.needed} samples of each variant"
    if is_worse and is_at_margin:
        return Verdict.FAIL, f"the canary is worse, by an estimated {metric.shown_margin} or more"
    if is_below_margin:
        return Verdict.PASS, f"the canary is worse by less than {metric.shown_margin}, if at all"
    if is_worse:
        return Verdict.INCONCLUSIVE, f"the canary is worse, and whether by {metric.shown_margin} is not known"
    return Verdict.INCONCLUSIVE, "neither proven worse nor proven equal enough"


def _unmeasured(metric: Metric, verdict: Verdict, reason: str) -> MetricAnalysis:
    return MetricAnalysis(name=metric.name, verdict=verdict, reason=reason)


def _moments(measurement: Measurement, metric: Metric) -> Moments:
    return measurement.latency_s if metric.loss is None else measurement.means.get(metric.loss, Moments())


def _slower(measurement: Measurement, bucket: int) -> tuple[int, int]:
    return measurement.latency.count_above(bucket), measurement.latency.total


def _rate(events: int, trials: int) -> float | None:
    return events / trials if trials else None
