import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.errors import InvalidInputError
from serve_app.domain.temporal import TemporalShape
from serve_app.ingress.window_bodies import WindowsGiven, read_windows

NOON_S = 1_769_774_400.0
SHAPE = TemporalShape(
    mode="tft",
    metrics=("cpu", "ram"),
    units=("percent", "percent"),
    max_encoder_length=3,
    max_prediction_length=2,
    step_s=300,
    quantiles=(0.1, 0.5, 0.9),
    n_entities=4,
)
GOOD = {"server": "web-1", "end_time": NOON_S, "values": [[1, 2], [3, 4.5]]}


def read(*windows: Any) -> WindowsGiven:
    return read_windows({"windows": list(windows)}, SHAPE, max_windows=3)


@pytest.mark.parametrize(
    "window",
    [
        GOOD,
        {"server_name": "web-1", "timestamp": "2026-01-30T12:00:00Z", "values": [{"cpu": 1, "ram": 2}, [3.0, 4.5]]},
        {"entity": "web-1", "at": "2026-01-30T13:00:00+01:00", "values": [[1, 2], {"ram": 4.5, "cpu": 3}]},
    ],
)
def test_every_form_of_a_window_says_the_same(window: Any) -> None:
    given = read(window)
    assert given.entities == ("web-1",)
    assert given.end_times_s.tolist() == [NOON_S]
    assert given.windows.dtype == np.float32
    assert given.windows.tolist() == [[[1, 2], [3, 4.5]]]


@pytest.mark.parametrize(
    "steps", [[[1, None], [None, None], [3, 4]], [{"cpu": 1}, None, {"cpu": 3, "ram": 4}], [[1, None], {}, [3, 4]]]
)
def test_what_was_not_observed_is_nan(steps: Any) -> None:
    nan = np.nan
    np.testing.assert_array_equal(read({**GOOD, "values": steps}).windows, [[[1, nan], [nan, nan], [3, 4]]])


def test_a_shorter_window_starts_later() -> None:
    windows = read({**GOOD, "server": "a", "values": [[5, 6]]}, GOOD).windows
    np.testing.assert_array_equal(windows[0], [[np.nan, np.nan], [5, 6]])
    np.testing.assert_array_equal(windows[1], [[1, 2], [3, 4.5]])


@pytest.mark.parametrize(
    ("window", "said"),
    [
        (7, "window 0: expected an object, got the number 7"),
        ({**GOOD, "valeus": []}, "window 0: unknown field 'valeus' (did you mean 'values'?)"),
        ({**GOOD, "server": ""}, "window 0: expected a server's name of 1 to 256 printable characters"),
        ({**GOOD, "entity": "b"}, "window 0: expected one of server, server_name, entity, got 'server' and 'entity'"),
        ({**GOOD, "end_time": "noon"}, "window 0: expected a time as RFC 3339"),
        ({"server": "a", "values": [[1, 2]]}, "window 0: expected one of end_time, timestamp, time, at, got none"),
        ({**GOOD, "values": None}, "window 0: 'values': expected a list of 1 to 3 steps, got null"),
        ({**GOOD, "values": []}, "window 0: 'values': expected a list of 1 to 3 steps, got a list of 0"),
        ({**GOOD, "values": [[1, 2]] * 4}, "window 0: 'values': expected a list of 1 to 3 steps, got a list of 4"),
        ({**GOOD, "values": [[1, 2], [1]]}, "window 0, step 1: expected 2 values (cpu, ram), got 1"),
        ({**GOOD, "values": [[1, 2], "x"]}, "window 0, step 1: expected a list of numbers, an object or null, got"),
        ({**GOOD, "values": [{"rma": 1}]}, "window 0, step 0: unknown metric 'rma' (did you mean 'ram'?)"),
        ({**GOOD, "values": [[1, "2"]]}, "window 0, step 0, 'ram': expected a number or null, got the string '2'"),
        ({**GOOD, "values": [[True, 2]]}, "window 0, step 0, 'cpu': expected a number or null, got true"),
        ({**GOOD, "values": [[1e39, 2]]}, "window 0, step 0, 'cpu': expected a number within the range of float32"),
        ({**GOOD, "values": [[-(10**400), 2]]}, "window 0, step 0, 'cpu': expected a number within the range of"),
        ({**GOOD, "values": [[float("inf"), 2]]}, "window 0, step 0, 'cpu': expected a number within the range of"),
        ({**GOOD, "values": [[None, None], {}]}, "window 0: 'values': expected at least one observed value, got none"),
    ],
)
def test_wrong_form_is_one_sentence_with_its_place(window: Any, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read(window)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "expected an object with 'windows', got a list of 0 without it"),
        ({"instances": []}, "expected an object with 'windows', got an object without it"),
        ({"windows": 3}, "'windows': expected a list of windows, got the number 3"),
        ({"windows": []}, "'windows': expected 1 to 3 windows, got 0"),
        ({"windows": [GOOD] * 4}, "'windows': expected 1 to 3 windows, got 4"),
    ],
)
def test_a_body_without_windows_is_refused(document: Any, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_windows(document, SHAPE, max_windows=3)
    assert said in str(caught.value)


Scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
Step = st.lists(Scalar, max_size=3) | st.dictionaries(st.sampled_from(["cpu", "ram", "x"]), Scalar) | Scalar
Window = st.fixed_dictionaries(
    {},
    optional={
        "server": st.just("a") | Scalar,
        "end_time": st.floats(0, 1e9) | st.just("2026-01-30T12:00:00Z") | Scalar,
        "values": st.lists(Step, max_size=4) | st.lists(st.lists(st.floats(-9, 9), min_size=2, max_size=2)) | Scalar,
        "x": Scalar,
    },
)  # fmt: skip
Document = st.fixed_dictionaries({"windows": st.lists(Window | Scalar, max_size=4) | Window | Scalar}) | Scalar


@given(Document)
def test_any_document_is_read_or_refused(document: Any) -> None:
    with contextlib.suppress(InvalidInputError):
        given = read_windows(document, SHAPE, max_windows=3)
        assert len(given.entities) == len(given.end_times_s) == len(given.windows) > 0
        assert given.windows.shape[1] <= SHAPE.max_encoder_length
        assert np.isfinite(given.end_times_s).all()
        assert not np.isinf(given.windows).any()
        assert np.isfinite(given.windows).any(axis=(1, 2)).all()
