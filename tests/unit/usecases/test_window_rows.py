import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.errors import InvalidInputError
from serve_app.domain.temporal import TemporalShape
from serve_app.usecases.window_rows import (
    Float32,
    Float64,
    pack_forecasts,
    pack_rows,
    server_key,
    unpack_forecasts,
    unpack_rows,
)

NAMES = ("web-01", "web-02", "db-01")
SHAPE = TemporalShape(
    mode="tft",
    metrics=("cpu_percent", "disk_io_mb_per_s"),
    units=("percent", "MB/s"),
    max_encoder_length=12,
    max_prediction_length=4,
    step_s=300,
    quantiles=(0.1, 0.5, 0.9),
    n_entities=3,
)


def _windows(n: int) -> Float32:
    return (np.random.default_rng(1).random((n, 12, 2)) * 40 + 10).astype(np.float32)


def _end_times(n: int) -> Float64:
    return 1_767_571_200.0 + 300 * np.arange(n, dtype=np.float64)


@given(st.text(min_size=1))
def test_key_of_a_server_survives_float64(server: str) -> None:
    assert int(float(server_key(server))) == server_key(server) < 2**48


def test_key_of_a_server_never_changes() -> None:
    assert server_key("web-01") == 0xB9D9F06CC8C


def test_packed_rows_unpack_to_the_same() -> None:
    rows = pack_rows(SHAPE, _windows(3), _end_times(3), NAMES)
    assert rows.shape == (3, 26)
    batch = unpack_rows(SHAPE, rows)
    np.testing.assert_array_equal(batch.windows, _windows(3))
    assert batch.windows.dtype == np.float32
    np.testing.assert_array_equal(batch.end_times_s, _end_times(3))
    assert batch.server_keys.tolist() == [server_key(name) for name in NAMES]


def test_row_is_a_head_and_the_window_step_by_step() -> None:
    row = pack_rows(SHAPE, _windows(3), _end_times(3), NAMES)[1]
    assert row[:2].tolist() == [server_key("web-02"), _end_times(3)[1]]
    assert row[2:].tolist() == _windows(3)[1].ravel().tolist()


def test_forecasts_unpack_to_the_same() -> None:
    forecasts = np.random.default_rng(0).random((5, 4, 2, 3)).astype(np.float32)
    answers = pack_forecasts(forecasts)
    assert answers.shape == (5, 24)
    assert answers.dtype == np.float64
    np.testing.assert_array_equal(unpack_forecasts(SHAPE, answers), forecasts)


def test_short_window_is_filled_in_front() -> None:
    batch = unpack_rows(SHAPE, pack_rows(SHAPE, _windows(2)[:, -5:], _end_times(2), NAMES[:2]))
    assert np.isnan(batch.windows[:, :7]).all()
    np.testing.assert_array_equal(batch.windows[:, 7:], _windows(2)[:, -5:])


def test_no_windows_make_no_rows() -> None:
    rows = pack_rows(SHAPE, _windows(0), _end_times(0), ())
    assert rows.shape == (0, 26)
    assert unpack_rows(SHAPE, rows).windows.shape == (0, 12, 2)
    assert unpack_forecasts(SHAPE, np.empty((0, 24))).shape == (0, 4, 2, 3)


@pytest.mark.parametrize("shape", [(2, 13, 2), (2, 12, 3), (2, 0, 2), (24, 2)])
def test_window_of_another_shape_is_refused_with_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match=r"expected windows of shape \(batch, 1 to 12, 2\), found \("):
        pack_rows(SHAPE, np.zeros(shape, dtype=np.float32), _end_times(2), NAMES[:2])


def test_names_and_times_must_be_as_many_as_windows() -> None:
    with pytest.raises(InvalidInputError, match="found 3 and 2"):
        pack_rows(SHAPE, _windows(2), _end_times(3), NAMES[:2])


def test_rows_of_another_width_or_without_a_time_are_refused() -> None:
    rows = pack_rows(SHAPE, _windows(2), _end_times(2), NAMES[:2])
    with pytest.raises(InvalidInputError, match="expected rows of 26 values"):
        unpack_rows(SHAPE, rows[:, 1:])
    rows[1, 1] = np.nan
    with pytest.raises(InvalidInputError, match="end_time_s"):
        unpack_rows(SHAPE, rows)
