"""Groups of requests: compared where chance assigned, with intervals that allow for all of them."""

import random

import pytest

from serve_app.domain.evidence import Evidence, Measurement
from serve_app.domain.groups import GroupTally, grouped, names_of, results_of
from serve_app.domain.statistics import Moments
from serve_app.domain.traffic import DRAWN, Group

EDGE = Group(name="edge", entities=("edge-*",))


def side(requests: int, errors: int = 0, *, seconds: float = 0.01) -> Measurement:
    values = [seconds * (1 + 0.1 * (i % 5)) for i in range(requests)]
    return Measurement(requests=requests, errors=errors, latency_s=Moments.of(values))


def window(stable: Measurement, canary: Measurement) -> Evidence:
    return Evidence(stable=stable, canary=canary)


def test_windows_of_a_group_add_up() -> None:
    tallies = grouped({}, {"edge": window(side(600, 6), side(500, 5))})
    tallies = grouped(tallies, {"edge": window(side(400, 4), side(500, 5)), "others": window(side(1), side(0))})
    (edge, others) = results_of(tallies, [EDGE], alpha=0.05)
    assert (edge.name, edge.n_stable, edge.n_canary, edge.errors_canary) == ("edge", 1_000, 1_000, 10)
    assert edge.error_difference == pytest.approx(0.0, abs=1e-3)
    assert (others.n_stable, others.n_canary, others.error_interval) == (1, 0, None)
    assert "0 of at least 100" in others.too_few


def test_few_requests_have_errors_compared_before_latencies() -> None:
    (edge,) = results_of(grouped({}, {"edge": window(side(200), side(200))}), [EDGE], alpha=0.05)
    assert edge.error_interval is not None
    assert (edge.latency_interval_s, "500 latencies" in edge.too_few) == (None, True)


def test_latencies_that_never_vary_are_not_compared() -> None:
    still = Measurement(requests=600, latency_s=Moments.of([0.5] * 600))
    (edge,) = results_of(grouped({}, {"edge": window(still, still)}), [EDGE], alpha=0.05)
    assert (edge.latency_difference_s, edge.latency_interval_s) == (None, None)


def test_nothing_is_said_of_what_nobody_drew() -> None:
    tallies = grouped({}, {name: window(side(0), side(5_000, 4_000)) for name in ("forced", "segment", "hash")})
    found = results_of(tallies, [], alpha=0.05)
    assert [(one.name, one.is_drawn) for one in found] == [("hash", True), ("forced", False), ("segment", False)]
    assert all(one.error_interval is None for one in found)


def test_groups_there_may_be_are_those_of_the_plan_or_the_kinds_of_chance() -> None:
    assert names_of([EDGE]) == ("edge", "others")
    assert names_of([]) == DRAWN == ("cookie", "hash", "weight")


def test_intervals_are_wider_the_more_groups_there_may_be() -> None:
    tallies = {"edge": GroupTally().plus(window(side(2_000, 40), side(2_000, 40)))}
    more = [EDGE, *(Group(name=f"g{i}", entities=(f"g{i}",)) for i in range(7))]
    (one,), (other,) = results_of(tallies, [EDGE], alpha=0.05), results_of(tallies, more, alpha=0.05)
    assert one.error_interval is not None
    assert other.error_interval is not None
    assert other.error_interval.upper > one.error_interval.upper
    assert other.error_interval.lower < one.error_interval.lower


def test_groups_without_an_effect_seldom_show_one() -> None:
    rng, wrong, n = random.Random(3), 0, 30
    for _ in range(n):
        tallies: dict[str, GroupTally] = {}
        is_wrong = False
        for _ in range(20):
            counts = {
                name: window(*(side(100, sum(rng.random() < 0.05 for _ in range(100))) for _ in range(2)))
                for name in ("edge", "others")
            }
            tallies = grouped(tallies, counts)
            bounds = [one.error_interval for one in results_of(tallies, [EDGE], alpha=0.05)]
            is_wrong |= any(bound is not None and not bound.lower <= 0 <= bound.upper for bound in bounds)
        wrong += is_wrong
    assert wrong <= 3  # twice what alpha allows
