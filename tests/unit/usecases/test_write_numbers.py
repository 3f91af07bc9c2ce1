"""Numbers as people read them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.experiment_report import Unit
from serve_app.domain.statistics import Interval
from serve_app.usecases.write_numbers import MINUS, interval_of, number, percent, span, when, with_unit


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0, "0"), (1.2345, "1.23"), (-0.004567, f"{MINUS}0.00457"), (1234567.0, "1,230,000"), (99.96, "100"),
        (1e-9, "1.00e-09"), (math.inf, "unbounded"), (9.999, "10.0"),
    ],
)  # fmt: skip
def test_number_has_three_digits(value: float, told: str) -> None:
    assert number(value) == told


def test_difference_has_its_sign_and_its_unit() -> None:
    assert with_unit(0.012, Unit.SHARE, is_difference=True) == "+1.20 percentage points"
    assert with_unit(0.012, Unit.SHARE) == "1.20 %"
    assert with_unit(-0.5, Unit.SECONDS, is_difference=True) == f"{MINUS}500 ms"
    assert with_unit(0.25, Unit.LOSS) == "0.250"
    assert with_unit(None, Unit.LOSS) == "–"


def test_both_ends_of_an_interval_have_as_many_places() -> None:
    assert interval_of(Interval(lower=-0.02, upper=-0.004), Unit.SHARE) == f"{MINUS}2.00 to {MINUS}0.40"
    assert interval_of(Interval(lower=-0.00000001, upper=0.5), Unit.LOSS) == "0.000 to 0.500"
    assert interval_of(None, Unit.LOSS) == "–"


@given(st.floats(allow_nan=False, width=64), st.floats(allow_nan=False, width=64))
def test_any_interval_can_be_written(one: float, other: float) -> None:
    assert interval_of(Interval(lower=min(one, other), upper=max(one, other)), Unit.SHARE)
    assert number(one)


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, "0 seconds"), (90.0, "90.0 seconds"), (600.0, "10.0 minutes"), (86_400.0, "24.0 hours"),
                          (604_800.0, "7.00 days")],
)  # fmt: skip
def test_spans_of_time(seconds: float, told: str) -> None:
    assert span(seconds) == told


def test_time_and_probability() -> None:
    assert (when(0.0), percent(1 - 0.05), percent(1 - 0.05 / 3)) == ("1970-01-01 00:00:00", "95 %", "98.33 %")
