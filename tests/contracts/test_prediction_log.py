"""What holds for every log of predictions, the fake one included."""

from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.adapters.prediction_log import PredictionFiles
from serve_app.domain.labels import Predicted, PredictionId, PredictionRecord
from serve_app.usecases.label_ports import PredictionLog
from tests.fakes.clock import FakeClock
from tests.fakes.prediction_log import FakePredictionLog

US, THEM = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
BY = Predicted("v1", "stable", "hash", "salt-1", (("y", "float64"), ("colour", "string")))
CLOCK = FakeClock()
MakeLog = Callable[[], PredictionLog]


def record(value: float = 1.5, *, rows: int = 1, by: Predicted = BY) -> PredictionRecord:
    return PredictionRecord(CLOCK.now_s(), by, [[value + i, "grün"] for i in range(rows)])


@pytest.fixture(params=["fake", "files"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> PredictionLog:
    if request.param == "fake":
        return FakePredictionLog()
    return PredictionFiles(tmp_path / "log", keep_days=14, max_bytes=1 << 20, now_s=CLOCK.now_s)


def test_nothing_is_known_of_an_empty_log(log: PredictionLog) -> None:
    assert log.find([PredictionId(US, 1)]) == {}
    assert log.claim([(PredictionId(US, 1), 0)]) == [None]
    assert log.kept_bytes() == 0


def test_what_was_appended_is_found_as_it_was(log: PredictionLog) -> None:
    other = Predicted("v2", "canary", "segment", "", (("y", "float64"), ("colour", "string")))
    log.append(US, [(3, record()), (7, record(2.5, rows=2, by=other))])
    log.append(US, [(9, record(0.1))])
    log.append(THEM, [(3, record(4.0))])
    wanted = [PredictionId(US, n) for n in (1, 3, 5, 7, 9, 11)] + [PredictionId(THEM, 3)]
    assert log.find(wanted) == {
        PredictionId(US, 3): record(),
        PredictionId(US, 7): record(2.5, rows=2, by=other),
        PredictionId(US, 9): record(0.1),
        PredictionId(THEM, 3): record(4.0),
    }
    assert log.kept_bytes() > 0


def test_a_row_is_claimed_once(log: PredictionLog) -> None:
    log.append(US, [(3, record(rows=2)), (4, record())])
    first, second = PredictionId(US, 3), PredictionId(US, 4)
    assert log.claim([(first, 0), (first, 1), (first, 0)]) == [True, True, False]
    assert log.claim([(second, 0), (first, 1)]) == [True, False]
