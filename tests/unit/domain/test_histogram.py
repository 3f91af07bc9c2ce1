import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.domain.histogram import (
    BUCKETS_PER_DOUBLING,
    LAST_BUCKET,
    LONGEST_S,
    SHORTEST_S,
    LatencyHistogram,
    bucket_of,
    buckets_within,
    upper_edge_s,
)

LATENCIES_S = st.floats(min_value=1e-6, max_value=100.0)
HISTOGRAMS = st.dictionaries(st.integers(0, LAST_BUCKET), st.integers(0, 1000), max_size=20).map(
    lambda counts: LatencyHistogram(counts=counts)
)


def histogram(*latencies_s: float) -> LatencyHistogram:
    buckets = [bucket_of(latency_s) for latency_s in latencies_s]
    return LatencyHistogram(counts={bucket: buckets.count(bucket) for bucket in buckets})


def counted(histogram: LatencyHistogram) -> dict[int, int]:
    return {bucket: count for bucket, count in histogram.counts.items() if count}


@given(LATENCIES_S)
def test_a_latency_lies_within_the_edges_of_its_bucket(latency_s: float) -> None:
    bucket = bucket_of(latency_s)
    assert latency_s <= upper_edge_s(bucket) * (1 + 1e-12)
    if bucket:
        assert latency_s >= upper_edge_s(bucket - 1) * (1 - 1e-12)


@given(LATENCIES_S, LATENCIES_S)
def test_a_longer_latency_is_never_in_a_lower_bucket(one_s: float, other_s: float) -> None:
    assert bucket_of(min(one_s, other_s)) <= bucket_of(max(one_s, other_s))


def test_the_range_is_covered_and_its_ends_are_open() -> None:
    assert bucket_of(0.0) == bucket_of(SHORTEST_S) == 0
    assert bucket_of(LONGEST_S) < LAST_BUCKET
    assert bucket_of(LONGEST_S * 2) == bucket_of(math.inf) == LAST_BUCKET
    assert upper_edge_s(LAST_BUCKET) == math.inf
    assert upper_edge_s(BUCKETS_PER_DOUBLING) == pytest.approx(2 * SHORTEST_S)


@given(HISTOGRAMS, HISTOGRAMS, HISTOGRAMS)
def test_histograms_add_up_in_any_order(a: LatencyHistogram, b: LatencyHistogram, c: LatencyHistogram) -> None:
    assert counted(a.merged(b)) == counted(b.merged(a))
    assert counted(a.merged(b).merged(c)) == counted(a.merged(b.merged(c)))
    assert counted(a.merged(LatencyHistogram())) == counted(a)
    assert a.merged(b).total == a.total + b.total


@given(HISTOGRAMS, HISTOGRAMS)
def test_what_was_merged_can_be_taken_away_again(a: LatencyHistogram, b: LatencyHistogram) -> None:
    assert counted(a.merged(b).without(b)) == counted(a)


def test_a_histogram_that_is_no_former_state_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        histogram(0.01).without(histogram(0.01, 0.01))


@given(HISTOGRAMS, st.integers(0, LAST_BUCKET))
def test_counts_above_an_edge_add_up(a: LatencyHistogram, bucket: int) -> None:
    assert a.merged(a).count_above(bucket) == 2 * a.count_above(bucket)
    assert a.count_above(LAST_BUCKET) == 0


@given(
    st.lists(st.floats(min_value=0.001, max_value=50.0), min_size=1, max_size=60), st.sampled_from([0.5, 0.95, 0.99])
)
def test_a_quantile_of_the_sample_lies_within_its_bounds(latencies_s: list[float], q: float) -> None:
    found = histogram(*latencies_s)
    bounds = found.quantile_bounds_s(q)
    assert bounds is not None
    exact = sorted(latencies_s)[max(1, math.ceil(q * len(latencies_s))) - 1]
    assert bounds[0] * (1 - 1e-12) <= exact <= bounds[1] * (1 + 1e-12)
    interpolated = found.quantile_s(q)
    assert interpolated is not None
    assert bounds[0] <= interpolated <= bounds[1]


@given(HISTOGRAMS)
def test_quantiles_grow_with_their_share(a: LatencyHistogram) -> None:
    quantiles = [a.quantile_s(q) for q in (0.1, 0.5, 0.9, 0.99)]
    found = [quantile for quantile in quantiles if quantile is not None]
    assert found == sorted(found)


def test_nothing_counted_has_no_quantile() -> None:
    assert LatencyHistogram().quantile_s(0.5) is None
    assert LatencyHistogram().quantile_bounds_s(0.5) is None


def test_the_last_bucket_answers_with_its_lower_edge() -> None:
    assert histogram(1000.0).quantile_s(0.5) == pytest.approx(LONGEST_S, rel=0.05)
    assert histogram(1000.0).quantile_bounds_s(0.5) == (upper_edge_s(LAST_BUCKET - 1), math.inf)


@pytest.mark.parametrize(("increase", "buckets"), [(0.0, 0), (0.04, 0), (0.05, 1), (0.2, 4), (1.0, 16)])
def test_a_margin_is_rounded_down_to_whole_buckets(increase: float, buckets: int) -> None:
    assert buckets_within(increase) == buckets


def test_a_histogram_survives_the_way_through_json() -> None:
    sent = histogram(0.01, 0.02, 5.0)
    assert LatencyHistogram.model_validate_json(sent.model_dump_json()) == sent
