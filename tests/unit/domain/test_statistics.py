import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from serve_app.domain.statistics import (
    TILT_WEIGHTS,
    TILTS,
    CountComparison,
    MeanComparison,
    Moments,
    mixture_boundary,
    multinomial_log_evidence,
    p_value,
    rate_interval,
    split_log_evidence,
)

ALPHA = 0.05
GOAL = -math.log(ALPHA)
VALUES = st.lists(st.floats(min_value=-100, max_value=100), max_size=30)


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, int, int, int]:
    n, m = draw(st.integers(1, 2000)), draw(st.integers(1, 2000))
    return draw(st.integers(0, n)), n, draw(st.integers(0, m)), m


WINDOWS = st.lists(windows(), min_size=1, max_size=5)


def compared(*rows: tuple[float, float, float, float]) -> CountComparison:
    comparison = CountComparison()
    for row in rows:
        comparison = comparison.plus(*row)
    return comparison


def same(one: Moments, other: Moments) -> bool:
    return one.count == other.count and one.model_dump() == pytest.approx(other.model_dump())


# Moments


@given(VALUES, VALUES)
def test_moments_add_up(one: list[float], other: list[float]) -> None:
    both = Moments.of(one).merged(Moments.of(other))
    assert same(both, Moments.of([*one, *other]))
    assert same(both, Moments.of(other).merged(Moments.of(one)))
    assert same(both.without(Moments.of(other)), Moments.of(one))


def test_moments_know_mean_and_variance() -> None:
    found = Moments.of([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert found.mean == 5.0
    assert found.variance == pytest.approx(32 / 7)


def test_few_values_have_no_variance() -> None:
    assert Moments().mean == 0.0
    assert Moments.of([3.0]).variance == 0.0


def test_moments_that_are_no_former_state_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Moments.of([1.0]).without(Moments.of([1.0, 2.0]))


# Comparisons of counts


def test_without_windows_nothing_is_known() -> None:
    nothing = CountComparison()
    assert nothing.difference is None
    assert nothing.log_evidence_above(0.0) == pytest.approx(0.0)
    assert nothing.interval(ALPHA).model_dump() == {"lower": -1.0, "upper": 1.0}


@given(st.integers(0, 50), st.integers(1, 50))
def test_a_window_of_one_variant_says_nothing(events: int, requests: int) -> None:
    start = compared((3, 100, 1, 100))
    assert start.plus(min(events, requests), requests, 0, 0) == start
    assert start.plus(0, 0, min(events, requests), requests) == start


def test_at_no_difference_the_evidence_is_the_binomial_likelihood_ratio() -> None:
    x, n, s, m = 7, 200, 3, 300
    mixed = 0.0
    for tilt, weight in zip(TILTS, TILT_WEIGHTS, strict=True):
        tilted = math.exp(tilt) * n / (math.exp(tilt) * n + m)
        even = n / (n + m)
        mixed += weight * (tilted / even) ** x * ((1 - tilted) / (1 - even)) ** s
    assert compared((x, n, s, m)).log_evidence_above(0.0) == pytest.approx(math.log(mixed))


def test_no_events_bound_the_rate_as_they_do_in_theory() -> None:
    """Without events the best possible e-process is exp(n d); mixing and the finite ratio may cost a little."""
    upper = compared((0, 3000, 0, 3000)).interval(ALPHA).upper
    assert GOAL / 3000 < upper < 2.2 * GOAL / 3000


@given(WINDOWS)
def test_the_order_of_windows_does_not_matter(rows: list[tuple[int, int, int, int]]) -> None:
    forth, back = compared(*rows), compared(*reversed(rows))
    assert forth.interval(ALPHA).model_dump() == pytest.approx(back.interval(ALPHA).model_dump(), abs=1e-6)


@given(WINDOWS)
def test_exchanging_the_variants_exchanges_the_evidence(rows: list[tuple[int, int, int, int]]) -> None:
    swapped = [(s, m, x, n) for x, n, s, m in rows]
    above = compared(*rows).log_evidence_above(0.0)
    assert compared(*swapped).log_evidence_below(0.0) == pytest.approx(above, rel=1e-6, abs=1e-6)


@given(windows())
def test_the_estimate_of_a_window_lies_within_its_sequence(row: tuple[int, int, int, int]) -> None:
    found = compared(row)
    interval = found.interval(ALPHA)
    assert found.difference is not None
    assert interval.lower - 1e-9 <= found.difference <= interval.upper + 1e-9


@given(WINDOWS, st.floats(min_value=-0.2, max_value=0.2))
def test_the_sequence_is_what_has_not_been_refuted(rows: list[tuple[int, int, int, int]], difference: float) -> None:
    found = compared(*rows)
    interval = found.interval(ALPHA)
    if found.log_evidence_above(difference) < GOAL:
        assert interval.lower <= difference
    elif found.log_evidence_above(difference) > GOAL + 0.01:
        assert interval.lower >= difference
    if found.log_evidence_below(difference) < GOAL:
        assert interval.upper >= difference
    elif found.log_evidence_below(difference) > GOAL + 0.01:
        assert interval.upper <= difference


@given(windows(), windows())
def test_the_ends_of_the_sequence_are_only_just_refuted(
    one: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> None:
    found = compared(one, other)
    interval = found.interval(ALPHA)
    if interval.lower > -1:
        assert found.log_evidence_above(interval.lower) == pytest.approx(GOAL, abs=0.01)
    if interval.upper < 1:
        assert found.log_evidence_below(interval.upper) == pytest.approx(GOAL, abs=0.01)


@given(WINDOWS)
def test_a_smaller_alpha_widens_the_sequence(rows: list[tuple[int, int, int, int]]) -> None:
    wide, narrow = compared(*rows).interval(0.001), compared(*rows).interval(0.1)
    assert wide.lower <= narrow.lower
    assert wide.upper >= narrow.upper


@given(windows(), st.integers(1, 20))
def test_more_errors_of_the_canary_are_more_evidence(row: tuple[int, int, int, int], more: int) -> None:
    x, n, s, m = row
    worse = compared((min(x + more, n), n, s, m)).log_evidence_above(0.0)
    assert worse >= compared(row).log_evidence_above(0.0) - 1e-9


def test_a_base_rate_that_moves_with_the_weight_is_no_difference() -> None:
    """An incident while the canary has half of the traffic; added up, the canary would look four times as bad."""
    calm, incident = (2, 200, 18, 1800), (200, 1000, 200, 1000)
    found = compared(*[calm] * 5, *[incident] * 5)
    assert found.difference == pytest.approx(0.0)
    assert found.log_evidence_above(0.0) < 0
    assert compared((1010, 6000, 1090, 14000)).log_evidence_above(0.0) > GOAL


def test_a_ratio_of_risks_becomes_no_difference_when_exposures_are_multiplied() -> None:
    assert compared((30, 1000 * 1.5, 20, 1000)).difference == pytest.approx(0.0)


# One rate


def test_one_rate_is_known_the_better_the_more_is_seen() -> None:
    few, many = rate_interval(5, 100, ALPHA), rate_interval(500, 10_000, ALPHA)
    assert few.lower < many.lower < 0.05 < many.upper < few.upper


def test_a_rate_of_which_nothing_was_seen_can_be_anything() -> None:
    assert rate_interval(0, 0, ALPHA).model_dump() == {"lower": 0.0, "upper": 1.0}
    assert rate_interval(0, 1000, ALPHA).lower == 0.0
    assert GOAL / 1000 < rate_interval(0, 1000, ALPHA).upper < 2.2 * GOAL / 1000


# Means


def test_the_boundary_is_the_one_of_the_paper() -> None:
    """Worked by hand: alpha = 0.05, t = intended = 1000."""
    k = (5.991464547107982 + math.log(6.991464547107982)) / 1000
    expected = math.sqrt(2 * (1000 * k + 1) / (1000 * k) * (math.log(1000 * k + 1) / 2 + 2.995732273553991))
    assert mixture_boundary(1000, 0.05, intended=1000) == pytest.approx(expected)
    assert expected == pytest.approx(3.044, abs=0.01)


def test_the_boundary_is_tightest_about_where_it_is_intended() -> None:
    def width(t: float, intended: float) -> float:
        return mixture_boundary(t, ALPHA, intended=intended)

    assert width(1000, 1000) < width(1000, 30)
    assert width(1000, 1000) < width(1000, 30_000)


def test_means_of_one_variant_wait_for_the_other() -> None:
    waiting = MeanComparison().plus(Moments.of([1.0, 2.0]), Moments()).plus(Moments.of([3.0]), Moments())
    assert waiting.difference() is None
    assert waiting.plus(Moments(), Moments.of([1.0, 1.0])).difference() == pytest.approx(1.0)


def test_without_spread_nothing_is_claimed_of_means() -> None:
    alike = MeanComparison().plus(Moments.of([0.0] * 1000), Moments.of([0.0] * 1000))
    assert alike.interval(ALPHA, intended=1000).upper == math.inf


def test_one_window_of_means_has_the_width_of_the_boundary() -> None:
    canary, stable = Moments.of([1.0, 3.0] * 300), Moments.of([1.0, 2.0] * 600)
    interval = MeanComparison().plus(canary, stable).interval(0.02, intended=1000)
    standard_error = math.sqrt(canary.variance * (1 / 600 + 1 / 1200))
    half = standard_error * mixture_boundary(400, 0.04, intended=1000)
    assert interval.model_dump() == pytest.approx({"lower": 0.5 - half, "upper": 0.5 + half})


def test_windows_are_compared_each_by_itself() -> None:
    calm, busy = Moments.of([1.0, 1.2] * 50), Moments.of([9.0, 9.2] * 50)
    few, many = Moments.of([1.0, 1.2] * 5), Moments.of([9.0, 9.2] * 5)
    found = MeanComparison().plus(few, calm).plus(busy, many)
    assert found.difference() == pytest.approx(0.0)
    assert found.canary.mean > found.stable.mean + 5


def test_a_multiple_of_the_stable_mean_can_be_compared_with() -> None:
    found = MeanComparison().plus(Moments.of([2.4, 2.6] * 200), Moments.of([1.9, 2.1] * 200))
    assert found.difference() == pytest.approx(0.5)
    assert found.difference(1.25) == pytest.approx(0.0)
    assert found.interval(ALPHA, ratio=1.25, intended=400).lower < 0 < found.interval(ALPHA, intended=400).lower


# The split


def test_the_multinomial_evidence_is_the_ratio_of_likelihoods() -> None:
    """Two assignments to the first of two even variants: Dirichlet(1, 1) gives 1/3, an even split 1/4."""
    assert multinomial_log_evidence([2, 0], [0.5, 0.5], concentration=2.0) == pytest.approx(math.log(4 / 3))


@pytest.mark.parametrize(("counts", "is_broken"), [([5000, 5000], False), ([5100, 4900], False), ([5300, 4700], True)])
def test_a_broken_split_is_found(counts: list[int], is_broken: bool) -> None:
    assert (multinomial_log_evidence(counts, [0.5, 0.5]) > -math.log(0.001)) is is_broken
    split = compared((counts[0], 0.5, counts[1], 0.5))
    assert (split_log_evidence(split) > -math.log(0.001)) is is_broken


def test_the_evidence_about_a_split_is_the_mean_of_both_directions() -> None:
    split = compared((530, 0.5, 470, 0.5))
    both = math.exp(split.log_evidence_above(0.0)), math.exp(split.log_evidence_below(0.0))
    assert math.exp(split_log_evidence(split)) == pytest.approx(sum(both) / 2)


def test_a_split_is_judged_across_changes_of_its_weight() -> None:
    kept = compared((100, 0.1, 900, 0.9), (500, 0.5, 500, 0.5))
    assert p_value(split_log_evidence(kept)) == 1.0
    lost = compared((60, 0.1, 940, 0.9), (420, 0.5, 580, 0.5))
    assert p_value(split_log_evidence(lost)) < 0.001


# How often they err, looked at after every batch

Drawn = NDArray[np.int64]


def worst_of_looks(
    draw: Callable[[np.random.Generator], tuple[Drawn, Drawn, Drawn, Drawn]], difference: float
) -> NDArray[np.bool_]:
    """Return for each simulated rollout whether either side was ever refuted; the formulas are vectorised here."""
    x, n, s, m = draw(np.random.default_rng(6))
    refuted = np.zeros(len(x), dtype=bool)
    for sign in (1, -1):
        ratio = np.exp(sign * np.array(TILTS))[:, None, None]
        scaled = ratio * n + m
        terms = (x + s) * np.log((n + m) / scaled) + x * np.log(ratio) - difference * n * (ratio - 1) * m / scaled
        sums = terms.cumsum(axis=2)
        mixture = np.tensordot(np.array(TILT_WEIGHTS), np.exp(np.minimum(sums, 300)), 1)
        refuted |= (mixture >= 2 / ALPHA).any(axis=1)
    return refuted


@pytest.mark.parametrize(
    ("canary_rate", "stable_rate", "canary_requests", "stable_requests"),
    [
        (0.01, 0.01, 200, 1800),
        (0.01, 0.01, 200, 200),
        (0.3, 0.3, 200, 200),
        (0.0005, 0.0005, 20, 2000),
        (0.02, 0.005, 200, 200),
    ],
)
def test_the_sequence_covers_the_difference_at_all_looks(
    canary_rate: float, stable_rate: float, canary_requests: int, stable_requests: int
) -> None:
    shape = (1500, 60)

    def draw(rng: np.random.Generator) -> tuple[Drawn, Drawn, Drawn, Drawn]:
        x, s = rng.binomial(canary_requests, canary_rate, shape), rng.binomial(stable_requests, stable_rate, shape)
        return x, np.full(shape, canary_requests), s, np.full(shape, stable_requests)

    refuted = worst_of_looks(draw, canary_rate - stable_rate)
    assert refuted.mean() <= ALPHA


def test_the_vectorised_formulas_are_those_of_the_product() -> None:
    rng = np.random.default_rng(7)
    n, m = rng.integers(50, 300, 20), rng.integers(50, 300, 20)
    x, s = rng.binomial(n, 0.08), rng.binomial(m, 0.03)
    product = compared(*zip(x.tolist(), n.tolist(), s.tolist(), m.tolist(), strict=True))
    never = worst_of_looks(lambda _: (x[None], n[None], s[None], m[None]), 0.0)
    looks = [
        compared(*zip(x[:k].tolist(), n[:k].tolist(), s[:k].tolist(), m[:k].tolist(), strict=True))
        for k in range(1, 21)
    ]
    ever = any(max(look.log_evidence_above(0.0), look.log_evidence_below(0.0)) >= math.log(2 / ALPHA) for look in looks)
    assert bool(never[0]) is ever
    assert product == looks[-1]


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_the_sequence_of_means_covers_at_all_looks_even_of_skewed_values(sigma: float) -> None:
    rng = np.random.default_rng(8)
    wrong, n_rollouts = 0, 150
    for _ in range(n_rollouts):
        found = MeanComparison()
        for _ in range(25):
            canary, stable = rng.lognormal(0.0, sigma, 100), rng.lognormal(0.0, sigma, 900)
            found = found.plus(*(Moments(count=len(v), total=v.sum(), squares=(v * v).sum()) for v in (canary, stable)))
            interval = found.interval(ALPHA / 2, intended=2000)
            if found.canary.count >= 500 and not interval.lower <= 0 <= interval.upper:
                wrong += 1
                break
    assert wrong / n_rollouts <= ALPHA
