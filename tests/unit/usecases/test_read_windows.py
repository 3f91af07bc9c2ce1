import numpy as np
import pytest

from serve_app.domain.errors import PredictionError
from serve_app.domain.temporal import TemporalShape
from serve_app.domain.windows import Metric, Record, WindowRules
from serve_app.usecases.keep_windows import WindowTable
from serve_app.usecases.read_windows import read_windows

RULES = WindowRules((Metric("cpu"), Metric("ram"), Metric("disk")), length=6, max_gap_steps=1)
STEP_S = 300


def shape(*metrics: str, encoder: int = 4, step_s: int = STEP_S) -> TemporalShape:
    return TemporalShape(
        mode="tft",
        metrics=metrics or ("cpu", "ram", "disk"),
        units=("",) * len(metrics or "abc"),
        max_encoder_length=encoder,
        max_prediction_length=2,
        step_s=step_s,
        quantiles=(0.5,),
        n_entities=1,
    )


def table(**steps: list[int]) -> WindowTable:
    kept = WindowTable(RULES)
    for entity, numbers in steps.items():
        for step in numbers:
            kept.put(Record(entity, step * STEP_S + 7, {"cpu": step, "ram": step + 0.25, "disk": step + 0.5}))
    return kept


def test_windows_are_the_last_steps_in_the_models_order_of_metrics() -> None:
    read = read_windows(table(a=[1, 2, 3, 4, 5]), RULES, shape("disk", "cpu"))
    assert read.entities == ("a",)
    np.testing.assert_array_equal(read.values[0], [[2.5, 2], [3.5, 3], [4.5, 4], [5.5, 5]])
    assert read.end_times_s.tolist() == [5 * STEP_S]
    assert read.values.flags.c_contiguous


def test_who_has_too_few_steps_is_told_apart() -> None:
    read = read_windows(table(a=[1, 2, 3, 4], b=[3, 4], c=[1, 4]), RULES, shape())
    assert read.entities == ("a",)
    assert read.lacking == {"b": "2 of 4 steps", "c": "a gap of 2 steps, at most 1 are filled"}


def test_fewer_steps_suffice_where_the_operator_says_so() -> None:
    read = read_windows(table(b=[3, 4]), RULES, shape(), warm_up_steps=2)
    assert read.entities == ("b",)
    assert np.isnan(read.values[0, :2]).all()
    np.testing.assert_array_equal(read.values[0, 2:, 0], [3, 4])


def test_only_those_that_were_asked_for_are_read_each_once() -> None:
    read = read_windows(table(a=[1, 2, 3, 4], b=[1, 2, 3, 4]), RULES, shape(), entities=["b", "b", "nobody"])
    assert read.entities == ("b",)
    assert read.lacking == {"nobody": "0 of 4 steps"}


def test_an_empty_table_gives_no_windows() -> None:
    read = read_windows(WindowTable(RULES), RULES, shape())
    assert (read.entities, read.values.shape, read.lacking) == ((), (0, 4, 3), {})


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (shape("cpu", "swap"), "the model takes swap, which the windows do not keep (cpu, ram, disk)"),
        (shape(step_s=60), "the model takes steps of 60 s, the windows have steps of 300 s"),
        (shape(encoder=7), "the model takes 7 steps, the windows keep 6"),
    ],
)
def test_a_model_that_does_not_fit_the_windows_is_told_why(wanted: TemporalShape, problem: str) -> None:
    with pytest.raises(PredictionError) as raised:
        read_windows(table(a=[1]), RULES, wanted)
    assert str(raised.value) == problem


def test_a_model_that_looks_back_further_may_be_given_what_there_is() -> None:
    read = read_windows(table(a=[1, 2, 3, 4, 5, 6]), RULES, shape(encoder=9), warm_up_steps=3)
    assert read.values.shape == (1, 6, 3)
