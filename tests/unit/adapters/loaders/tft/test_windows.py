import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.adapters.loaders.tft.server_mapping import ServerMapping
from serve_app.adapters.loaders.tft.windows import (
    known_features,
    pack_forecasts,
    pack_rows,
    server_key,
    unpack_forecasts,
    unpack_rows,
)
from serve_app.domain.errors import InvalidInputError
from tests.unit.adapters.loaders.tft.forecasters import SERVERS, config, end_times, windows


@given(st.text(min_size=1))
def test_key_of_a_server_survives_float64(server: str) -> None:
    assert int(float(server_key(server))) == server_key(server) < 2**48


def test_key_of_a_server_never_changes() -> None:
    assert server_key("web-01") == 0xB9D9F06CC8C


def test_packed_rows_unpack_to_the_same() -> None:
    rows = pack_rows(config(), windows(3), end_times(3), SERVERS)
    assert rows.shape == (3, len(config().signature().inputs))
    batch = unpack_rows(config(), rows)
    np.testing.assert_array_equal(batch.windows, windows(3))
    np.testing.assert_array_equal(batch.end_times_s, end_times(3))
    assert batch.server_keys.tolist() == [server_key(server) for server in SERVERS]


def test_columns_stand_where_the_signature_says() -> None:
    names = config().signature().input_names
    rows = pack_rows(config(), windows(3), end_times(3), SERVERS)
    assert rows[1, names.index("cpu_percent.t")] == windows(3)[1, -1, 0]
    assert rows[1, names.index("disk_io_mb_per_s.t-11")] == windows(3)[1, 0, 1]
    outputs = config().signature().output_names
    forecasts = np.arange(4 * 2 * 3, dtype=np.float32).reshape(1, 4, 2, 3)
    assert pack_forecasts(forecasts)[0, outputs.index("disk_io_mb_per_s.t+3.q0.9")] == forecasts[0, 2, 1, 2]


def test_forecasts_unpack_to_the_same() -> None:
    forecasts = np.random.default_rng(0).random((5, 4, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(unpack_forecasts(config(), pack_forecasts(forecasts)), forecasts)


def test_short_window_is_filled_in_front() -> None:
    batch = unpack_rows(config(), pack_rows(config(), windows(2)[:, -5:], end_times(2), SERVERS[:2]))
    assert np.isnan(batch.windows[:, :7]).all()
    np.testing.assert_array_equal(batch.windows[:, 7:], windows(2)[:, -5:])


@pytest.mark.parametrize("shape", [(2, 13, 2), (2, 12, 3), (2, 0, 2), (24, 2)])
def test_window_of_another_shape_is_refused_with_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match=r"expected windows of shape \(batch, 1 to 12, 2\), found \("):
        pack_rows(config(), np.zeros(shape, dtype=np.float32), end_times(2), SERVERS[:2])


def test_names_and_times_must_be_as_many_as_windows() -> None:
    with pytest.raises(InvalidInputError, match="found 3 and 2"):
        pack_rows(config(), windows(2), end_times(3), SERVERS[:2])


def test_rows_of_another_width_or_without_a_time_are_refused() -> None:
    rows = pack_rows(config(), windows(2), end_times(2), SERVERS[:2])
    with pytest.raises(InvalidInputError, match="expected rows of 26 values"):
        unpack_rows(config(), rows[:, 1:])
    rows[1, 1] = np.nan
    with pytest.raises(InvalidInputError, match="end_time_s"):
        unpack_rows(config(), rows)


def test_known_features_are_the_calendar_of_window_and_future() -> None:
    monday_six = 1_767_571_200.0 + 6 * 3600
    features = known_features(config(step_seconds=3600), np.array([monday_six]))
    assert features.shape == (1, 16, 4)
    # the twelfth step is six in the morning, a quarter of the day
    np.testing.assert_allclose(features[0, 11, :2], [1.0, 0.0], atol=1e-6)
    week = 2 * np.pi * ((monday_six % 604_800) / 604_800)
    np.testing.assert_allclose(features[0, 11, 2:], [np.sin(week), np.cos(week)], atol=1e-6)
    later = known_features(config(step_seconds=3600), np.array([monday_six + 4 * 3600]))
    np.testing.assert_allclose(later[0, :12], features[0, 4:], atol=1e-6)


def test_mapping_finds_numbers_by_name_and_key_and_gives_nought_to_strangers() -> None:
    mapping = ServerMapping.of(SERVERS)
    assert mapping.numbers_of(["db-01", "web-01", "nobody", "web-02"]).tolist() == [3, 1, 0, 2]
    assert ServerMapping.parse(mapping.to_bytes()).servers == SERVERS


@pytest.mark.parametrize(
    "raw", [b"[]", b"{}", b'{"a": 0}', b'{"a": 1, "b": 3}', b'{"a": 1, "b": 1}', b'{"a": true}', b'{"a": 1.0}', b"{"]
)
def test_mapping_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected|Expecting"):
        ServerMapping.parse(raw)


def test_servers_with_the_same_key_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="the same for web-01, web-01"):
        ServerMapping.of(["web-01", "db-01", "web-01"])
