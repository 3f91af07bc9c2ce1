import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.differences import LAST_BUCKET, DifferenceHistogram, bucket_of, upper_edge

POSITIVE = st.floats(min_value=1e-25, max_value=1e25)


def histogram(values: list[float]) -> DifferenceHistogram:
    counts: dict[int, int] = {}
    for value in values:
        if value:
            counts[bucket_of(value)] = counts.get(bucket_of(value), 0) + 1
    return DifferenceHistogram(equal=values.count(0.0), counts=counts)


@given(POSITIVE)
def test_difference_lies_within_its_bucket(value: float) -> None:
    bucket = bucket_of(value)
    assert upper_edge(bucket - 1) * (1 - 1e-9) < value <= upper_edge(bucket) * (1 + 1e-9)


@given(st.lists(st.one_of(st.just(0.0), POSITIVE), min_size=1), st.floats(min_value=0.01, max_value=1.0))
def test_quantile_is_a_close_bound_of_the_sample_s(values: list[float], q: float) -> None:
    true = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    told = histogram(values).quantile(q)
    assert told is not None
    assert true <= told * (1 + 1e-9)
    assert told <= true * 1.0906


@given(st.lists(POSITIVE), st.lists(POSITIVE))
def test_histograms_add_up(first: list[float], second: list[float]) -> None:
    assert histogram(first).merged(histogram(second)) == histogram(first + second)


def test_nothing_counted_has_no_quantile_and_equal_answers_have_zero() -> None:
    assert DifferenceHistogram().quantile(0.5) is None
    assert DifferenceHistogram(equal=3).quantile(1.0) == 0.0


@pytest.mark.parametrize("value", [1e300, 5e-324])
def test_what_is_beyond_the_buckets_is_in_the_outermost(value: float) -> None:
    assert abs(bucket_of(value)) == LAST_BUCKET
