import pytest

from tests.benchmarks.measurements import Kind, Run
from tests.benchmarks.summary import Verdict, fastest_peer, promptest_peer, row_of, rows, verdicts
from tests.unit.benchmarks.builders import facts, load, run, sample

OURS, LIVE = facts("ours", Kind.OURS), facts("live", Kind.CEILING)
SLOW, FAST = facts("slow"), facts("fast")


def compared(*, ours: float, live: float, fast: float, our_p50_ms: float = 1.0, our_errors: int = 0) -> Run:
    """Make a run in which every number of connections gives the same."""
    return run(
        *(
            sample(name, each, connections=connections)
            for connections in (1, 32, 64)
            for name, each in (
                ("ours", load(ours, p50_ms=our_p50_ms, status_errors=our_errors)),
                ("live", load(live)),
                ("slow", load(10, p50_ms=20)),
                ("fast", load(fast, p50_ms=5)),
            )
        ),
        targets=(OURS, LIVE, SLOW, FAST),
    )


def met(found: list[Verdict]) -> list[bool | None]:
    return [verdict.met for verdict in found]


def test_each_figure_is_the_median_of_its_rounds() -> None:
    rounds = [
        sample("fast", load(rate, p50_ms=p50_ms), round_=number, cpu_s=cpu_s)
        for number, (rate, p50_ms, cpu_s) in enumerate([(100, 9, 2.0), (300, 1, 6.0), (200, 3, 8.0)], start=1)
    ]

    row = row_of(FAST, rounds)

    assert row.good_per_s == 200
    assert row.p50_ms == 3
    assert row.p99_ms == 12
    assert row.spread == pytest.approx(1.0)
    # 2 s of load each: 10, 10 and 20 CPU seconds for 1,000 requests.
    assert row.cpu_s_per_1000 == pytest.approx(10.0)


def test_errors_of_all_rounds_are_added_up_and_do_not_count_as_answers() -> None:
    row = row_of(FAST, [sample("fast", load(100, status_errors=7), round_=1), sample("fast", load(100), round_=2)])

    assert row.errors == 7
    assert row.good_per_s == 100


def test_a_server_that_answered_nothing_has_no_price() -> None:
    row = row_of(FAST, [sample("fast", load(0, status_errors=50))])

    assert row.good_per_s == 0
    assert row.cpu_s_per_1000 is None
    assert row.spread == 0


def test_rows_keep_the_order_of_the_targets_and_leave_out_what_was_not_measured() -> None:
    measured = run(sample("fast", load()), sample("ours", load()), targets=(OURS, SLOW, FAST))

    assert [row.target.name for row in rows(measured, 32)] == ["ours", "fast"]


def test_all_aims_are_met_by_a_server_far_ahead() -> None:
    assert met(verdicts(compared(ours=800, live=1000, fast=200, our_p50_ms=2.0))) == [True] * 5


def test_each_aim_fails_on_its_own() -> None:
    assert met(verdicts(compared(ours=799, live=1000, fast=200))) == [False, False, True, True, True]
    assert met(verdicts(compared(ours=800, live=1000, fast=200, our_p50_ms=2.1))) == [True, True, False, True, True]
    assert met(verdicts(compared(ours=800, live=1150, fast=200))) == [True, True, True, False, False]


def test_errors_of_ours_miss_every_aim() -> None:
    assert met(verdicts(compared(ours=800, live=1000, fast=200, our_errors=1))) == [False] * 5


def test_the_verdict_names_the_best_peer_and_both_figures() -> None:
    found = verdicts(compared(ours=900, live=1000, fast=200))

    assert found[0].found == "4.50 × (900 against 200 of FAST)"
    assert found[2].found == "0.20 × (1.00 ms against 5.00 ms of FAST)"
    assert found[3].found == "90% (900 against 1,000)"


def test_without_peers_or_the_empty_route_nothing_is_claimed() -> None:
    alone = run(*(sample("ours", load(), connections=n) for n in (1, 32, 64)), targets=(OURS,))

    assert met(verdicts(alone)) == [None] * 5


def test_a_peer_that_refuses_quickly_is_not_the_promptest() -> None:
    measured = run(
        sample("slow", load(10, p50_ms=20)), sample("fast", load(90, p50_ms=1, status_errors=3)), targets=(SLOW, FAST)
    )
    found = rows(measured, 32)

    assert (promptest := promptest_peer(found)) is not None
    assert promptest.target.name == "slow"
    assert (fastest := fastest_peer(found)) is not None
    assert fastest.target.name == "fast"
