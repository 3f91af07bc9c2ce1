from pathlib import Path

import numpy as np
import pytest

from serve_app.adapters.observation_archive import ObservationArchive
from serve_app.domain.windows import Metric, Record
from training.datasets import DatasetError
from training.read_archive import read_archive

METRICS = (
    Metric("cpu_percent", "percent", 0, 100),
    Metric("disk_mb", "MB/s", 0),
    Metric("celsius"),
)
DAY_S = 1_769_731_200.0


def write(
    directory: Path, *records: tuple[str, float, dict[str, float]], metrics: tuple[Metric, ...] = METRICS
) -> None:
    archive = ObservationArchive(directory, metrics, keep_days=60)
    for server, after_s, values in records:
        archive.append([Record(server, DAY_S + after_s, values)])


def test_all_days_come_onto_one_grid(tmp_path: Path) -> None:
    write(
        tmp_path,
        ("b", 301, {"cpu_percent": 4, "celsius": -1}),
        ("a", -1, {"cpu_percent": 1, "disk_mb": 7, "celsius": 5}),
        ('"a", b', 0, {"cpu_percent": 2}),
    )
    fleet = read_archive(tmp_path)
    assert (fleet.servers, fleet.start_s, fleet.step_s) == (('"a", b', "a", "b"), DAY_S - 300, 300)
    nan = np.nan
    np.testing.assert_array_equal(fleet.values[1], np.array([[1, 7, 5], [nan] * 3, [nan] * 3], dtype=np.float32))
    np.testing.assert_array_equal(fleet.values[2, 2], np.array([4, nan, -1], dtype=np.float32))
    assert fleet.facts["records"] == 3
    share, rate, other = fleet.metrics
    assert (share.unit, share.minimum, share.maximum, share.transform) == ("percent", 0, 100, "none")
    assert (rate.unit, rate.minimum, rate.maximum, rate.transform) == ("MB/s", 0, None, "log1p")
    assert (other.minimum, other.maximum, other.transform) == (None, None, "none")


def test_of_a_step_the_later_time_counts_and_of_the_same_time_the_later_line(tmp_path: Path) -> None:
    write(
        tmp_path,
        ("a", 10, {"cpu_percent": 1, "disk_mb": 1, "celsius": 1}),
        ("a", 5, {"cpu_percent": 2}),
        ("a", 400, {"cpu_percent": 3}),
        ("a", 400, {"cpu_percent": 4}),
        ("a", 20, {"disk_mb": 5}),
    )
    values = read_archive(tmp_path).values[0]
    np.testing.assert_array_equal(values, np.array([[1, 5, 1], [4, np.nan, np.nan]], dtype=np.float32))


def test_columns_are_those_that_are_measured_now(tmp_path: Path) -> None:
    write(tmp_path, ("a", 0, {"cpu_percent": 1, "celsius": 9}))
    write(tmp_path, ("a", 300, {"disk_mb": 2, "cpu_percent": 3}), metrics=(METRICS[1], METRICS[0]))
    fleet = read_archive(tmp_path)
    assert [metric.name for metric in fleet.metrics] == ["disk_mb", "cpu_percent"]
    np.testing.assert_array_equal(fleet.values[0], np.array([[np.nan, 1], [2, 3]], dtype=np.float32))


def test_a_line_that_is_being_written_is_left_for_the_next_time(tmp_path: Path) -> None:
    write(tmp_path, ("a", 0, {"cpu_percent": 1, "disk_mb": 1, "celsius": 1}))
    with (tmp_path / "2026-01-30.csv").open("a") as file:
        file.write("a,176973")
    assert read_archive(tmp_path).facts["records"] == 1


def test_what_is_no_archive_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="expected an archive of observations at"):
        read_archive(tmp_path / "absent")
    with pytest.raises(DatasetError, match="expected what the metrics are in"):
        read_archive(tmp_path)
    (tmp_path / "metrics.json").write_text('[{"name": "cpu", "unit": "", "minimum": null, "maximum": null}]')
    with pytest.raises(DatasetError, match="expected observations in"):
        read_archive(tmp_path)
    (tmp_path / "2026-01-30.csv").write_text("server,timestamp,cpu\na,yesterday,1\n")
    with pytest.raises(DatasetError, match=r"2026-01-30\.csv: line 2: expected a time"):
        read_archive(tmp_path)
