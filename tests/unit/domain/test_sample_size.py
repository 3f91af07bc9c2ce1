"""How many samples it takes: what is told agrees with when the analysis decides."""

import numpy as np
import pytest

from serve_app.domain.analysis import Tally, analyse, tallied
from serve_app.domain.analysis_plan import AnalysisPlan, Metric, MetricKind
from serve_app.domain.evidence import Evidence, Measurement
from serve_app.domain.sample_size import size_to_decide
from serve_app.domain.statistics import Moments
from serve_app.domain.verdict import Verdict
from tests.simulations.scenarios import N_LOOKS, Scenario, drawn

ERRORS = Metric(kind=MetricKind.ERROR_RATE, max_increase=0.01)
RELATIVE = Metric(kind=MetricKind.ERROR_RATE, max_increase=0.5, relative=True)
LATENCY = Metric(kind=MetricKind.LATENCY_QUANTILE, quantile=0.95, max_increase=0.2)
LOSS = Metric(kind=MetricKind.LOSS, loss="mae", max_increase=0.05)


def plan_of(metric: Metric) -> AnalysisPlan:
    return AnalysisPlan(metrics=(metric,))


def counted(n: int, m: int, *, rate: float = 0.02) -> Tally:
    stable, canary = (Measurement(requests=k, errors=round(rate * k)) for k in (m, n))
    return Tally(stable=stable, canary=canary)


@pytest.mark.parametrize(
    "metric", [ERRORS, RELATIVE, LATENCY], ids=lambda metric: f"{metric.name}-{metric.is_relative}"
)
def test_half_of_equal_versions_are_decided_about_when_it_says(metric: Metric) -> None:
    scenario, plan, rng = Scenario("equal", error_rate=0.01, share=0.5), plan_of(metric), np.random.default_rng(4)
    sizes, decided = [], []
    for _ in range(12):
        series, tally, at = drawn(scenario, rng), Tally(), np.inf
        for look in range(N_LOOKS):
            tally = tallied(tally, series.evidence(look, scenario.share), plan)
            if analyse(tally, plan).verdict is Verdict.PASS:
                at = min(at, tally.canary.requests)
        size = size_to_decide(tally, metric, plan.side_alpha)
        sizes.append(np.inf if size is None else size.n_canary)
        decided.append(at)
    if np.isfinite(np.median(decided)):
        assert 0.4 < np.median(sizes) / np.median(decided) < 2.5
    else:
        assert np.median(sizes) > 0.6 * N_LOOKS * 200


def test_mean_is_decided_about_when_its_interval_is_as_narrow_as_the_margin() -> None:
    rng, plan = np.random.default_rng(5), plan_of(LOSS)
    tally, size, n = Tally(), None, 0
    while size is None or n < size.n_canary:
        sides = [Measurement(means={"mae": Moments.of(rng.exponential(1.0, 500).tolist())}) for _ in range(2)]
        tally = tallied(tally, Evidence(stable=sides[0], canary=sides[1]), plan)
        n += 500
        size = size_to_decide(tally, LOSS, plan.side_alpha)
    (found,) = analyse(tally, plan).metrics
    assert found.interval is not None
    assert (found.interval.upper - found.interval.lower) / 2 == pytest.approx(0.05 / 1.05, rel=0.1)


def test_sides_keep_their_ratio_and_the_minimum_sample() -> None:
    side_alpha = plan_of(ERRORS).side_alpha
    size = size_to_decide(counted(1_000, 9_000), ERRORS, side_alpha)
    assert size is not None
    assert size.n_stable == pytest.approx(9 * size.n_canary, rel=0.01)
    huge = Metric(kind=MetricKind.ERROR_RATE, max_increase=0.9, min_samples=5_000)
    least = size_to_decide(counted(100, 900), huge, side_alpha)
    assert least is not None
    assert least.n_canary == pytest.approx(5_000, rel=0.01)


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.05])
def test_narrower_margins_take_more(rate: float) -> None:
    metrics = [Metric(kind=MetricKind.ERROR_RATE, max_increase=margin) for margin in (0.05, 0.01, 0.002)]
    sizes = [size_to_decide(counted(2_000, 2_000, rate=rate), metric, 0.01) for metric in metrics]
    found = [size.n_canary for size in sizes if size is not None]
    assert len(found) == 3
    assert found == sorted(found)
    assert found[0] < found[2]


def test_nothing_is_told_where_nothing_is_known_or_no_number_is_enough() -> None:
    assert size_to_decide(Tally(), ERRORS, 0.01) is None
    assert size_to_decide(counted(100, 0), ERRORS, 0.01) is None
    assert size_to_decide(counted(100, 100), LOSS, 0.01) is None
    assert size_to_decide(counted(100, 100, rate=0.0), RELATIVE, 0.01) is None
    disagreement = Metric(kind=MetricKind.DISAGREEMENT, max_increase=0.05)
    assert size_to_decide(counted(100, 100), disagreement, 0.01) is None
