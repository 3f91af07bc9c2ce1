import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from training.evaluation import Score, expanding_folds, report, report_table, split_at
from training.features import FEATURE_NAMES


def _inputs(n: int, **columns: float) -> np.ndarray:
    inputs = np.zeros((n, len(FEATURE_NAMES)))
    for name, value in columns.items():
        inputs[:, FEATURE_NAMES.index(name)] = value
    return inputs


def test_score_is_the_mean_and_the_root_mean_square_of_the_errors() -> None:
    score = Score.of(np.array([1.0, 2.0]), np.array([1.0, 6.0]))
    assert [score.mae, score.rmse] == pytest.approx([2.0, np.sqrt(8)])


def test_skill_is_the_share_of_the_error_that_is_gone() -> None:
    skill = Score(mae=1.0, rmse=6.0).skill_against(Score(mae=4.0, rmse=4.0))
    assert (skill.mae, skill.rmse) == (0.75, -0.5)


@pytest.mark.parametrize(("error", "skill"), [(0.0, 0.0), (0.1, -1.0)])
def test_skill_against_a_perfect_baseline_is_never_positive(error: float, skill: float) -> None:
    assert Score(error, error).skill_against(Score(0.0, 0.0)).mae == skill


def test_baselines_repeat_the_last_value_the_last_minute_and_the_training_mean() -> None:
    truth = np.array([50.0, 50.0])
    inputs = _inputs(2, cpu_percent_last=40, cpu_percent_mean_60s=47)
    result = report("cpu_usage_node", np.array([51.0, 49.0]), truth, inputs, training_mean=20.0)
    assert {name: score.mae for name, score in result.baselines.items()} == {
        "last_value": 10.0,
        "mean_60s": 3.0,
        "training_mean": 30.0,
    }
    assert result.beaten_by == ()


def test_model_that_is_no_better_than_a_baseline_says_so() -> None:
    inputs = _inputs(1, power_watts_last=5, power_watts_mean_60s=9)
    result = report("power_usage_node", np.array([4.0]), np.array([5.0]), inputs, training_mean=9.0)
    assert result.beaten_by == ("last_value",)
    assert result.as_json()["beaten_by"] == ["last_value"]


def test_table_shows_each_baseline_with_the_skill_against_it() -> None:
    inputs = _inputs(1, cpu_percent_last=40, cpu_percent_mean_60s=48)
    result = report("cpu_usage_node", np.array([49.0]), np.array([50.0]), inputs, training_mean=0.0)
    console = Console(file=io.StringIO(), width=100)
    console.print(report_table([result], {"cpu_usage_node": "percent"}))
    text = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO given above
    assert "cpu_usage_node (percent)" in text
    assert "+90.0%" in text
    assert "+50.0%" in text


@given(
    steps=st.lists(st.sampled_from([1.0, 1.0, 1.0, 40.0]), min_size=50, max_size=300),
    share=st.floats(0.2, 0.9),
    gap_s=st.sampled_from([0.0, 10.0, 60.0]),
)
def test_training_ends_a_gap_before_the_held_out_part(steps: list[float], share: float, gap_s: float) -> None:
    times = np.cumsum(steps)
    first = int(len(times) * share)
    training, held_out = split_at(times, first, len(times), gap_s=gap_s)
    assert held_out.tolist() == list(range(first, len(times)))
    if len(training):
        assert times[training].max() + gap_s <= times[held_out].min()
    left_out = range(len(training), first)
    assert all(times[row] + gap_s > times[first] for row in left_out)


def test_folds_validate_the_later_part_once_and_train_on_what_came_before() -> None:
    times = np.arange(1000.0)
    folds = list(expanding_folds(times, n_folds=3, gap_s=60))
    assert [row for _, validating in folds for row in validating] == list(range(400, 1000))
    for training, validating in folds:
        assert training.tolist() == list(range(validating[0] - 60 + 1))
