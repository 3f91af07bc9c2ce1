import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.recordings import START_S, series_of
from training.datasets import DatasetError, Series
from training.features import (
    FEATURE_NAMES,
    FEATURES,
    HISTORY_S,
    HORIZON_S,
    SIGNATURE,
    TARGETS,
    examples_of,
    feature_table,
    features_of,
    target_table,
)


def _changed(series: Series, rows: slice, seed: int) -> Series:
    """Return the series with other values in `rows`."""
    values = series.values.copy()
    values[rows] = series_of(len(series), seed=seed).values[rows]
    return Series(series.start_s, series.columns, values)


def _until(series: Series, second: int) -> Series:
    return Series(series.start_s, series.columns, series.values[: second + 1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), second=st.integers(HISTORY_S - 1, HISTORY_S + 200), data=st.data())
def test_changing_the_future_never_changes_a_feature_row(seed: int, second: int, data: st.DataObject) -> None:
    series = series_of(HISTORY_S + 260, seed=seed)
    first_changed = data.draw(st.integers(second + 1, len(series) - 1))
    changed = _changed(series, slice(first_changed, None), seed + 1)
    row = second - HISTORY_S + 1
    np.testing.assert_array_equal(feature_table(series)[: row + 1], feature_table(changed)[: row + 1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), second=st.integers(0, 300))
def test_changing_the_past_never_changes_a_target_row(seed: int, second: int) -> None:
    series = series_of(400, seed=seed)
    changed = _changed(series, slice(0, second + 1), seed + 1)
    np.testing.assert_array_equal(target_table(series)[second:], target_table(changed)[second:])


def test_changing_the_present_changes_features_and_no_target() -> None:
    series = series_of(HISTORY_S + HORIZON_S)
    changed = _changed(series, slice(HISTORY_S - 1, HISTORY_S), seed=1)
    before, after = examples_of([series]), examples_of([changed])
    assert (before.inputs != after.inputs).any()
    np.testing.assert_array_equal(before.targets, after.targets)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n_seconds=st.integers(HISTORY_S, HISTORY_S + 300), n_cores=st.integers(1, 8))
def test_one_row_equals_the_table_bit_for_bit(seed: int, n_seconds: int, n_cores: int) -> None:
    series = series_of(n_seconds, seed=seed, n_cores=n_cores)
    table = feature_table(series)
    assert len(table) == n_seconds - HISTORY_S + 1
    for row in {0, len(table) // 2, len(table) - 1}:
        second = row + HISTORY_S - 1
        window = Series(series.start_s + row, series.columns, series.values[row : second + 1])
        np.testing.assert_array_equal(features_of(window), table[row])
        np.testing.assert_array_equal(features_of(_until(series, second)), table[row])


def test_table_longer_than_a_chunk_equals_single_rows() -> None:
    series = series_of(5000)
    table = feature_table(series)
    for row in (2047, 2048, 4095, 4096, 4700):
        np.testing.assert_array_equal(features_of(_until(series, row + HISTORY_S - 1)), table[row])


def test_features_are_the_statistics_they_are_named_after() -> None:
    series = series_of(HISTORY_S)
    row = dict(zip(FEATURE_NAMES, features_of(series), strict=True))
    cpu, sent = series.column("cpu_percent"), series.column("net_sent_bytes_per_s")
    cores = np.stack([series.column("cpu_0_percent"), series.column("cpu_1_percent")])
    assert row["cpu_percent_last"] == cpu[-1]
    assert row["cpu_percent_mean_10s"] == pytest.approx(cpu[-10:].mean())
    assert row["cpu_percent_std_60s"] == pytest.approx(cpu[-60:].std())
    assert row["cpu_percent_min_60s"] == cpu[-60:].min()
    assert row["cpu_percent_slope_60s"] == pytest.approx(np.polyfit(np.arange(60), cpu[-60:], 1)[0])
    assert row["cpu_core_max_percent_mean_60s"] == pytest.approx(cores[:, -60:].max(axis=0).mean())
    assert row["cpu_core_min_percent_mean_60s"] == pytest.approx(cores[:, -60:].min(axis=0).mean())
    assert row["memory_percent_max_300s"] == series.column("memory_percent").max()
    assert row["net_sent_bytes_per_s_log1p_mean_60s"] == pytest.approx(np.log1p(sent[-60:].mean()))


def test_targets_are_means_over_the_next_minute() -> None:
    series = series_of(100)
    targets = target_table(series)
    assert targets.shape == (100 - HORIZON_S, len(TARGETS))
    for place, column in enumerate(TARGETS.values()):
        assert targets[7, place] == pytest.approx(series.column(column)[8 : 8 + HORIZON_S].mean())


def test_examples_pair_each_moment_with_its_own_future() -> None:
    series = series_of(HISTORY_S + HORIZON_S + 5)
    examples = examples_of([series])
    assert len(examples) == 6
    assert examples.times_s.tolist() == [START_S + HISTORY_S - 1 + k for k in range(6)]
    for k in range(6):
        second = HISTORY_S - 1 + k
        np.testing.assert_array_equal(examples.inputs[k], features_of(_until(series, second)))
        np.testing.assert_array_equal(examples.targets[k], target_table(series)[second])


def test_no_example_spans_two_segments() -> None:
    long, short = series_of(HISTORY_S + HORIZON_S + 3), series_of(HISTORY_S + HORIZON_S - 1)
    assert len(examples_of([short, long, short])) == 4
    assert len(examples_of([short])) == 0
    assert len(examples_of([])) == 0


def test_short_window_is_refused_with_both_lengths() -> None:
    with pytest.raises(DatasetError, match="expected a window of at least 300 s, got 299 s"):
        features_of(series_of(HISTORY_S - 1))


def test_signature_names_every_feature_with_its_unit() -> None:
    assert SIGNATURE.input_names == FEATURE_NAMES
    assert len(FEATURES) == 32
    assert all(column.unit for column in (*SIGNATURE.inputs, *SIGNATURE.outputs))
    units = {column.name: column.unit for column in SIGNATURE.inputs}
    assert units["cpu_percent_slope_60s"] == "percent/s"
    assert units["net_sent_bytes_per_s_log1p_mean_60s"] == "ln(1 + bytes/s)"
    assert [column.unit for column in SIGNATURE.outputs] == ["percent", "percent", "watts"]
