import math

import pytest

from serve_app.domain.windows import Fate, Lack, Metric, Record, WindowRules, check_record

RULES = WindowRules((Metric("cpu", "percent", 0, 100), Metric("ram", "percent", 0, 100), Metric("load")), length=8)
NOW_S = 1_769_763_600.0


def record(at_s: float = NOW_S, units: dict[str, str] | None = None, **values: float) -> Record:
    return Record("web-1", at_s, values or {"cpu": 10.0}, units)


def test_record_with_some_metrics_in_their_units_is_right() -> None:
    assert check_record(record(cpu=0, ram=100, load=-3.5), RULES, now_s=NOW_S) is None
    assert check_record(record(units={"cpu": "percent"}), RULES, now_s=NOW_S) is None


@pytest.mark.parametrize(
    ("wrong", "fate", "reason"),
    [
        (record(NOW_S + 601), Fate.FROM_THE_FUTURE, "expected a time at most 600 s ahead of the clock, got one 601 s "
         "ahead"),
        (record(cpu=101), Fate.OUT_OF_RANGE, "cpu: expected 0 to 100 percent, got 101"),
        (record(ram=-0.1), Fate.OUT_OF_RANGE, "ram: expected 0 to 100 percent, got -0.1"),
        (record(load=math.inf), Fate.NOT_A_NUMBER, "load: expected a finite number, got inf"),
        (record(load=math.nan), Fate.NOT_A_NUMBER, "load: expected a finite number, got nan"),
        (record(cpv=1), Fate.UNKNOWN_METRIC, "unknown metric 'cpv' (did you mean 'cpu'?)"),
        (record(units={"cpu": "ratio"}), Fate.WRONG_UNIT, "cpu: expected the unit 'percent', got 'ratio'"),
    ],
)  # fmt: skip
def test_record_that_cannot_be_is_refused_with_what_was_expected(wrong: Record, fate: Fate, reason: str) -> None:
    refusal = check_record(wrong, RULES, now_s=NOW_S)
    assert refusal is not None
    assert (refusal.fate, refusal.reason) == (fate, reason)
    assert fate.is_refused


def test_clock_of_a_sender_may_run_ahead_a_little() -> None:
    assert check_record(record(NOW_S + 600), RULES, now_s=NOW_S) is None


@pytest.mark.parametrize("fate", [Fate.TAKEN, Fate.OUT_OF_ORDER, Fate.REPLACED, Fate.DUPLICATE, Fate.LATE])
def test_what_a_network_does_to_records_is_no_fault_of_the_sender(fate: Fate) -> None:
    assert not fate.is_refused


@pytest.mark.parametrize(
    ("lack", "said"),
    [
        (Lack(0, 8, 0, 6), "0 of 8 steps"),
        (Lack(5, 8, 2, 6), "5 of 8 steps"),
        (Lack(8, 8, 7, 6), "a gap of 7 steps, at most 6 are filled"),
    ],
)
def test_lack_says_how_many_steps_are_there_or_how_long_the_gap_is(lack: Lack, said: str) -> None:
    assert str(lack) == said
