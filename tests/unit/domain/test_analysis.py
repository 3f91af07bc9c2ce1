import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.domain.analysis import Analysis, MetricAnalysis, Tally, analyse, no_analysis, tallied
from serve_app.domain.analysis_plan import AnalysisPlan, Metric, MetricKind
from serve_app.domain.evidence import Evidence, Measurement
from serve_app.domain.histogram import LatencyHistogram, bucket_of
from serve_app.domain.statistics import Moments
from serve_app.domain.verdict import Verdict

ERRORS = Metric(kind=MetricKind.ERROR_RATE, max_increase=0.005)
P95 = Metric(kind=MetricKind.LATENCY_QUANTILE, quantile=0.95, max_increase=0.2)
MEAN = Metric(kind=MetricKind.LATENCY_MEAN, max_increase=0.2)
DISAGREEMENT = Metric(kind=MetricKind.DISAGREEMENT, max_increase=0.05)
LOSS = Metric(kind=MetricKind.LOSS, loss="mae", max_increase=0.1)


def answers(n: int, *, errors: int = 0, slower: float = 1.0, seed: int = 1, **facts: Any) -> Measurement:
    """Answers with latencies about 10 ms, times `slower`."""
    latencies_s = slower * np.random.default_rng(seed).lognormal(math.log(0.01), 0.4, n)
    buckets = [bucket_of(latency_s) for latency_s in latencies_s.tolist()]
    return Measurement(
        requests=n,
        errors=errors,
        latency=LatencyHistogram(counts={bucket: buckets.count(bucket) for bucket in set(buckets)}),
        latency_s=Moments.of(latencies_s.tolist()),
        assigned=n,
        **facts,
    )


def judged(*windows: Evidence, metrics: tuple[Metric, ...] = (ERRORS,), **facts: Any) -> Analysis:
    plan = AnalysisPlan(metrics=metrics, **facts)
    tally = Tally()
    for window in windows:
        tally = tallied(tally, window, plan)
    return analyse(tally, plan)


def only(analysis: Analysis) -> MetricAnalysis:
    assert len(analysis.metrics) == 1
    return analysis.metrics[0]


def pair(stable: Measurement, canary: Measurement, share: float | None = None) -> Evidence:
    return Evidence(stable=stable, canary=canary, canary_share=share)


# Error rates


def test_a_canary_that_fails_five_percent_fails() -> None:
    found = judged(pair(answers(1800, errors=18), answers(200, errors=10)), pair(answers(1800), answers(200, errors=9)))
    assert found.verdict is Verdict.FAIL
    assert "error_rate: the canary is worse" in found.reason
    one = only(found)
    assert one.stable == pytest.approx(0.005)
    assert one.canary == pytest.approx(0.0475)
    assert one.interval is not None
    assert 0 < one.interval.lower < 0.0425 < one.interval.upper
    assert one.p_worse is not None
    assert one.p_worse <= found.side_alpha


def test_an_equal_canary_passes_once_enough_is_seen() -> None:
    window = pair(answers(1800, errors=18), answers(200, errors=2))
    assert judged(*[window] * 5).verdict is Verdict.INCONCLUSIVE
    found = judged(*[window] * 40)
    assert found.verdict is Verdict.PASS
    assert found.n_windows == 40


def test_a_canary_without_any_errors_passes_after_a_few_thousand() -> None:
    assert judged(pair(answers(2000), answers(2000))).verdict is Verdict.PASS
    assert judged(pair(answers(500), answers(500))).verdict is Verdict.INCONCLUSIVE


def test_a_certain_harm_below_the_margin_does_not_abort() -> None:
    window = pair(answers(100_000, errors=1000), answers(100_000, errors=1250))
    found = judged(window)
    one = only(found)
    assert one.interval is not None
    assert one.interval.lower > 0
    assert found.verdict is Verdict.PASS


def test_a_better_canary_passes() -> None:
    assert judged(pair(answers(2000, errors=200), answers(2000, errors=20))).verdict is Verdict.PASS


def test_below_the_minimum_sample_nothing_is_decided() -> None:
    found = judged(pair(answers(5000), answers(99, errors=99)))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "99 of at least 100 samples" in found.reason
    assert judged(pair(answers(5000), answers(100, errors=99))).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("stable", "canary", "missing"), [(0, 500, "stable variant"), (500, 0, "canary"), (0, 0, "variant")]
)
def test_without_answers_of_a_variant_it_is_an_error(stable: int, canary: int, missing: str) -> None:
    found = judged(pair(answers(stable), answers(canary)))
    assert found.verdict is Verdict.ERROR
    assert missing in found.reason or missing == "variant"


def test_a_relative_margin_of_errors_is_a_share_of_the_stable_rate() -> None:
    half_more = Metric(kind=MetricKind.ERROR_RATE, max_increase=0.5, relative=True)
    assert (
        judged(pair(answers(5000, errors=500), answers(5000, errors=600)), metrics=(half_more,)).verdict is Verdict.PASS
    )
    failed = judged(pair(answers(5000, errors=500), answers(5000, errors=800)), metrics=(half_more,))
    assert failed.verdict is Verdict.FAIL
    assert only(failed).increase == pytest.approx(0.6)


@given(st.integers(0, 200), st.integers(0, 60))
def test_more_errors_never_make_a_better_verdict(errors: int, more: int) -> None:
    worst_first = [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]
    stable = Measurement(requests=2000, errors=20)
    few, many = (
        worst_first.index(judged(pair(stable, Measurement(requests=2000, errors=n))).verdict)
        for n in (errors, errors + more)
    )
    assert many <= few


# Latency


def test_a_canary_thirty_percent_slower_fails() -> None:
    windows = [pair(answers(900, seed=k), answers(300, slower=1.3, seed=100 + k)) for k in range(6)]
    found = judged(*windows, metrics=(P95,))
    assert found.verdict is Verdict.FAIL
    assert only(found).increase == pytest.approx(0.3, abs=0.1)


def test_an_equally_fast_canary_passes() -> None:
    windows = [pair(answers(900, seed=k), answers(300, seed=100 + k)) for k in range(12)]
    found = judged(*windows, metrics=(P95,))
    assert found.verdict is Verdict.PASS
    one = only(found)
    assert one.interval is not None
    assert one.interval.lower < 0 < one.interval.upper
    assert one.name == "latency_p95"


def test_a_slower_hour_of_both_is_no_harm_of_the_canary() -> None:
    calm = [pair(answers(900, seed=k), answers(100, seed=50 + k)) for k in range(5)]
    slow = [pair(answers(500, slower=3, seed=k), answers(500, slower=3, seed=70 + k)) for k in range(5)]
    found = only(judged(*calm, *slow, metrics=(P95,)))
    assert found.verdict is not Verdict.FAIL
    assert found.increase is not None
    assert found.increase > 0.2, "added up, the canary looks slower: it had more of the slow hour"


def test_the_first_window_of_latencies_finds_the_bound_only() -> None:
    found = only(judged(pair(answers(5000), answers(5000, slower=10, seed=2)), metrics=(P95,)))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.p_worse == 1.0


def constant(latency_s: float, n: int = 400) -> Measurement:
    return Measurement(requests=n, latency=LatencyHistogram(counts={bucket_of(latency_s): n}))


@pytest.mark.parametrize(("slower", "verdict"), [(1.0, Verdict.PASS), (1.3, Verdict.FAIL)])
def test_latencies_that_all_lie_in_one_bucket_are_judged(slower: float, verdict: Verdict) -> None:
    window = pair(constant(0.01), constant(0.01 * slower))
    assert judged(window, window, window, metrics=(P95,)).verdict is verdict


@pytest.mark.parametrize("latency_s", [1e-6, 59.0, 1000.0])
def test_latencies_beyond_the_buckets_prove_nothing(latency_s: float) -> None:
    window = pair(constant(latency_s), constant(latency_s))
    assert judged(window, window, window, metrics=(P95,)).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("slower", "verdict"), [(1.0, Verdict.PASS), (1.18, Verdict.INCONCLUSIVE), (1.5, Verdict.FAIL)]
)
def test_mean_latency_is_judged(slower: float, verdict: Verdict) -> None:
    windows = [pair(answers(900, seed=k), answers(300, slower=slower, seed=100 + k)) for k in range(8)]
    assert judged(*windows, metrics=(MEAN,)).verdict is verdict


# Disagreement and losses


@pytest.mark.parametrize(
    ("disagreed", "verdict"), [(10, Verdict.PASS), (100, Verdict.INCONCLUSIVE), (300, Verdict.FAIL)]
)
def test_disagreement_is_held_against_its_margin(disagreed: int, verdict: Verdict) -> None:
    window = pair(answers(10), answers(10, compared=2000, disagreed=disagreed))
    assert judged(window, metrics=(DISAGREEMENT,)).verdict is verdict


def test_nothing_compared_is_an_error() -> None:
    assert judged(pair(answers(10), answers(10)), metrics=(DISAGREEMENT,)).verdict is Verdict.ERROR


@pytest.mark.parametrize(("level", "verdict"), [(1.0, Verdict.PASS), (1.3, Verdict.FAIL)])
def test_losses_of_labelled_predictions_are_judged(level: float, verdict: Verdict) -> None:
    losses = np.random.default_rng(3).exponential(1.0, (2, 4000)) * [[1.0], [level]]
    stable, canary = (Moments.of(values.tolist()) for values in losses)
    window = pair(Measurement(means={"mae": stable}), Measurement(means={"mae": canary}))
    found = judged(window, metrics=(LOSS,))
    assert found.verdict is verdict
    assert only(found).name == "loss_mae"


def test_labels_that_have_not_come_yet_are_waited_for() -> None:
    assert judged(pair(answers(500), answers(500)), metrics=(LOSS,)).verdict is Verdict.INCONCLUSIVE


def test_labels_of_one_variant_wait_for_those_of_the_other() -> None:
    losses = Moments.of([0.5, 1.5] * 2000)
    first, second = (
        pair(Measurement(means={"mae": losses}), Measurement()),
        pair(Measurement(), Measurement(means={"mae": losses})),
    )
    assert judged(first, second, metrics=(LOSS,)).verdict is Verdict.PASS


# The whole


def test_one_failed_metric_is_enough_and_passing_takes_all() -> None:
    windows = [pair(answers(2000, seed=k), answers(2000, seed=k + 50)) for k in range(4)]
    assert judged(*windows, metrics=(ERRORS, P95)).verdict is Verdict.PASS
    bad = [pair(answers(2000, seed=k), answers(2000, errors=200, seed=k + 50)) for k in range(4)]
    found = judged(*bad, metrics=(ERRORS, P95))
    assert found.verdict is Verdict.FAIL
    assert [one.verdict for one in found.metrics] == [Verdict.FAIL, Verdict.PASS]
    assert judged(*windows, metrics=(ERRORS, P95, LOSS)).verdict is Verdict.INCONCLUSIVE


def test_a_fail_goes_before_an_error() -> None:
    found = judged(pair(answers(2000), answers(2000, errors=200)), metrics=(ERRORS, DISAGREEMENT))
    assert found.verdict is Verdict.FAIL


def test_a_broken_split_is_an_error_whatever_the_metrics_say() -> None:
    found = judged(pair(answers(2600), answers(2000), share=0.5))
    assert found.verdict is Verdict.ERROR
    assert "split" in found.reason
    assert found.p_split < 0.001
    assert judged(pair(answers(2040), answers(2000), share=0.5)).verdict is Verdict.PASS
    assert judged(pair(answers(2600), answers(2000))).verdict is Verdict.PASS, "nobody said how it was to be split"


def test_alpha_is_split_over_metrics_and_sides() -> None:
    assert AnalysisPlan(metrics=(ERRORS, P95)).side_alpha == pytest.approx(0.049 / 4)
    assert AnalysisPlan(alpha=0.1, metrics=(ERRORS,)).side_alpha == pytest.approx(0.099 / 2)
    more_metrics = judged(pair(answers(2000), answers(2000)), metrics=(ERRORS, P95, MEAN))
    assert more_metrics.side_alpha < judged(pair(answers(2000), answers(2000))).side_alpha


def test_a_tally_survives_being_stored_at_any_point() -> None:
    plan = AnalysisPlan(metrics=(ERRORS, P95, MEAN, LOSS))
    straight = stored = Tally()
    for k in range(4):
        losses = {"mae": Moments.of([0.5 + k, 1.0])}
        window = pair(answers(900, errors=k, seed=k, means=losses), answers(100, errors=2 * k, seed=k + 9), share=0.1)
        straight = tallied(straight, window, plan)
        stored = Tally.model_validate_json(
            tallied(stored, Evidence.model_validate_json(window.model_dump_json()), plan).model_dump_json()
        )
    assert stored == straight
    assert analyse(stored, plan) == analyse(straight, plan)


def test_measurements_of_gateways_add_up() -> None:
    one, other = answers(300, errors=3, means={"mae": Moments.of([1.0])}), answers(500, errors=1, seed=5)
    both = one.merged(other)
    assert (both.requests, both.errors, both.latency.total, both.assigned) == (800, 4, 800, 800)
    assert both.means == one.means
    window = pair(one, other, 0.1).merged(pair(one, other, 0.1))
    assert (window.stable.requests, window.canary_share) == (600, 0.1)
    assert pair(one, other, 0.1).merged(pair(one, other, 0.2)).canary_share is None


def test_no_analysis_is_an_error_with_its_reason() -> None:
    assert no_analysis("the gateways are away").verdict is Verdict.ERROR


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({"kind": "error_rate", "max_increase": 0.0}, "greater than 0"),
        ({"kind": "error_rate", "max_increase": 0.1, "quantile": 0.5}, "quantile: expected exactly with the kind"),
        ({"kind": "latency_quantile", "max_increase": 0.2}, "quantile: expected exactly with the kind"),
        ({"kind": "latency_quantile", "max_increase": 0.01, "quantile": 0.5}, "at least 0.045"),
        ({"kind": "loss", "max_increase": 0.1}, "loss: expected exactly with the kind"),
        ({"kind": "disagreement", "max_increase": 1.0}, "absolute one below 1"),
    ],
)
def test_a_metric_that_makes_no_sense_is_refused(facts: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Metric.model_validate(facts)


def test_a_plan_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValidationError, match="found twice: error_rate"):
        AnalysisPlan(metrics=(ERRORS, ERRORS))
    with pytest.raises(ValidationError, match="less than alpha"):
        AnalysisPlan(alpha=0.001)


def test_more_events_than_trials_are_refused() -> None:
    with pytest.raises(ValidationError, match="2 errors of 1 requests"):
        Measurement(requests=1, errors=2)


def test_few_rollouts_of_an_equal_canary_are_ever_failed() -> None:
    """Sixty looks at each of forty; the simulation of the documentation has ten thousand."""
    plan = AnalysisPlan(metrics=(ERRORS,))
    rng = np.random.default_rng(4)
    failed = 0
    for _ in range(40):
        tally = Tally()
        stable, canary = rng.binomial(1800, 0.01, 60).tolist(), rng.binomial(200, 0.01, 60).tolist()
        for s, x in zip(stable, canary, strict=True):
            window = pair(Measurement(requests=1800, errors=s), Measurement(requests=200, errors=x))
            tally = tallied(tally, window, plan)
            if analyse(tally, plan).verdict is Verdict.FAIL:
                failed += 1
                break
    assert failed <= 2
