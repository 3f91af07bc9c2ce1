from typing import Any

import pytest

from serve_app.domain.retraining import (
    FIRST_DELAY_S,
    MAX_DELAY_S,
    RetrainAction,
    RetrainOutcome,
    RetrainRules,
    RetrainState,
    RetrainStatus,
    Seen,
    begun,
    counted,
    decide,
    ended,
    next_start_s,
)

RULES = RetrainRules(after_records=100, min_interval_s=600, timeout_s=3600)
NOW_S = 1_769_763_600.0
STORE_S = NOW_S - 50


def state(**facts: Any) -> RetrainState:
    return RetrainState(**facts)


def test_nothing_starts_before_enough_records_came() -> None:
    assert decide(state(), Seen(STORE_S, 99), RULES, now_s=NOW_S) is RetrainAction.WAIT
    assert decide(state(), Seen(STORE_S, 100), RULES, now_s=NOW_S) is RetrainAction.START
    assert decide(state(records=100), None, RULES, now_s=NOW_S) is RetrainAction.START


def test_a_count_is_taken_over_once() -> None:
    once = counted(state(), Seen(STORE_S, 40))
    assert counted(once, Seen(STORE_S, 40)) is once
    assert counted(once, Seen(STORE_S, 45)).records == 45


def test_a_store_that_started_anew_counts_from_zero() -> None:
    before = counted(state(), Seen(STORE_S, 40))
    assert counted(before, Seen(STORE_S + 9, 30)).records == 70
    assert counted(before, Seen(STORE_S + 9, 50)).records == 90  # more than before, and still all of it is new


def test_one_training_at_a_time_and_none_for_ever() -> None:
    running = begun(state(records=500), "job", now_s=NOW_S)
    assert decide(running, Seen(STORE_S, 900), RULES, now_s=NOW_S + 3600) is RetrainAction.LOOK
    assert decide(running, None, RULES, now_s=NOW_S + 3601) is RetrainAction.STOP


def test_what_came_during_a_training_counts_for_the_next() -> None:
    running = counted(begun(state(records=120), "job", now_s=NOW_S), Seen(STORE_S, 30))
    after = ended(running, RetrainOutcome.SUCCEEDED, None, now_s=NOW_S + 60)
    assert (after.records, after.job, after.n_failed) == (30, None, 0)


def test_starts_are_far_enough_apart() -> None:
    after = ended(begun(state(records=0), "job", now_s=NOW_S), RetrainOutcome.SUCCEEDED, None, now_s=NOW_S + 10)
    full = Seen(STORE_S, 1000)
    assert decide(after, full, RULES, now_s=NOW_S + 599) is RetrainAction.WAIT
    assert decide(after, full, RULES, now_s=NOW_S + 600) is RetrainAction.START


@pytest.mark.parametrize(("n_failed", "delay_s"), [(1, FIRST_DELAY_S), (3, 4 * FIRST_DELAY_S), (5000, MAX_DELAY_S)])
def test_failures_use_no_record_up_and_are_waited_after(n_failed: int, delay_s: float) -> None:
    running = begun(state(records=120, n_failed=n_failed - 1), "job", now_s=NOW_S)
    after = ended(running, RetrainOutcome.FAILED, "no data", now_s=NOW_S + 3000)
    assert (after.records, after.error, after.n_failed) == (120, "no data", n_failed)
    assert next_start_s(after, RULES) == NOW_S + 3000 + delay_s
    assert decide(after, None, RULES, now_s=NOW_S + 3000 + delay_s - 1) is RetrainAction.WAIT
    assert decide(after, None, RULES, now_s=NOW_S + 3000 + delay_s) is RetrainAction.START


def test_state_survives_a_restart_and_is_told() -> None:
    running = begun(state(records=120), "job", now_s=NOW_S)
    assert RetrainState.model_validate_json(running.model_dump_json()) == running
    told = RetrainStatus.of(running, RULES)
    assert (told.records, told.after_records, told.job, told.next_start_s) == (120, 100, "job", NOW_S + 600)
