import csv
from pathlib import Path

import orjson
import pytest

from serve_app.adapters.observation_archive import ObservationArchive
from serve_app.domain.windows import Metric, Record

METRICS = (Metric("cpu", "percent", 0, 100), Metric("load"))
DAY_S = 1_769_731_200.0
"""2026-01-30 00:00 UTC."""


def archive(directory: Path, *, metrics: tuple[Metric, ...] = METRICS, keep_days: int = 60) -> ObservationArchive:
    return ObservationArchive(directory, metrics, keep_days=keep_days)


def record(after_s: float, server: str = "web-1", **values: float) -> Record:
    return Record(server, DAY_S + after_s, values)


def test_records_come_into_the_file_of_their_day_under_one_header(tmp_path: Path) -> None:
    made = archive(tmp_path / "archive")
    made.append([record(-0.5, cpu=1), record(0.25, cpu=2, load=0.1)])
    made.append([record(300, 'a,"b"', load=3)])
    files = {path.name: path.read_text() for path in (tmp_path / "archive").glob("*.csv")}
    assert files == {
        "2026-01-29.csv": f"server,timestamp,cpu,load\nweb-1,{DAY_S - 0.5},1.0,\n",
        "2026-01-30.csv": f'server,timestamp,cpu,load\nweb-1,{DAY_S + 0.25},2.0,0.1\n"a,""b""",{DAY_S + 300},,3.0\n',
    }
    described = orjson.loads((tmp_path / "archive" / "metrics.json").read_bytes())
    assert described == [
        {"name": "cpu", "unit": "percent", "minimum": 0, "maximum": 100},
        {"name": "load", "unit": "", "minimum": None, "maximum": None},
    ]


def test_a_restart_goes_on_after_the_part_of_a_line_that_a_crash_left(tmp_path: Path) -> None:
    archive(tmp_path).append([record(1, cpu=1)])
    path = tmp_path / "2026-01-30.csv"
    with path.open("a") as file:
        file.write("web-1,17697")
    archive(tmp_path).append([record(2, cpu=2)])
    with path.open(newline="") as file:
        assert [row["cpu"] for row in csv.DictReader(file)] == ["1.0", "2.0"]


def test_a_crash_amid_the_header_leaves_no_second_file(tmp_path: Path) -> None:
    (tmp_path / "2026-01-30.csv").write_text("server,timest")
    archive(tmp_path).append([record(2, cpu=2)])
    assert len((tmp_path / "2026-01-30.csv").read_text().splitlines()) == 2
    assert len(list(tmp_path.glob("*.csv"))) == 1


def test_other_metrics_get_a_file_of_their_own(tmp_path: Path) -> None:
    archive(tmp_path).append([record(1, cpu=1)])
    for _ in range(2):
        archive(tmp_path, metrics=(Metric("cpu"), Metric("disk"))).append([record(2, cpu=2, disk=3)])
    assert (tmp_path / "2026-01-30.csv").read_text().splitlines()[1:] == [f"web-1,{DAY_S + 1},1.0,"]
    assert len((tmp_path / "2026-01-30.2.csv").read_text().splitlines()) == 3


def test_days_that_are_too_old_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    made = archive(tmp_path, keep_days=2)
    for day in range(-3, 3):
        made.append([record(day * 86_400, cpu=day)])
    made.append([record(-9 * 86_400, cpu=0)])  # older than all that is kept
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"2026-01-30.csv", "2026-01-31.csv", "2026-02-01.csv", "notes.txt", "metrics.json"}


def test_a_directory_that_was_tidied_up_is_made_again(tmp_path: Path) -> None:
    made = archive(tmp_path / "archive")
    made.append([record(1, cpu=1)])
    for path in (tmp_path / "archive").iterdir():
        path.unlink()
    (tmp_path / "archive").rmdir()
    made.append([record(2, cpu=2)])
    assert (tmp_path / "archive" / "2026-01-30.csv").read_text().splitlines()[1] == f"web-1,{DAY_S + 2},2.0,"
    assert made.lost == 0


def test_what_cannot_be_written_is_counted_logged_once_and_never_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "archive"
    directory.write_text("a file where the directory should be")
    made = archive(directory)
    made.append([record(1, cpu=1), record(86_400, cpu=1)])
    made.append([record(2, cpu=2)])
    assert made.lost == 3
    directory.unlink()
    made.append([record(3, cpu=3)])
    assert made.lost == 3
    assert (directory / "2026-01-30.csv").exists()
    told = capsys.readouterr()
    assert (told.out + told.err).count("observations not archived") == 1
