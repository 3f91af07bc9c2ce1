import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.unit.training.recordings import HEADER, START_S, Row, csv_of, rows_at, write_recording
from training.datasets import MAX_GAP_S, DatasetError, app, read_recording
from training.record_node import modelled_watts, samples


def _written(path: Path, rows: list[Row]) -> Path:
    path.write_text(csv_of(rows))
    return path


def test_plain_and_compressed_file_give_the_same_series(tmp_path: Path) -> None:
    plain = read_recording(write_recording(tmp_path / "node.csv", 30))
    packed = read_recording(write_recording(tmp_path / "node.csv.gz", 30))
    np.testing.assert_array_equal(plain.segments[0].values, packed.segments[0].values)
    assert plain.segments[0].columns == packed.segments[0].columns


def test_facts_of_a_recording_without_a_gap(tmp_path: Path) -> None:
    recording = read_recording(write_recording(tmp_path / "node.csv", 30))
    assert (recording.n_rows, recording.n_seconds, len(recording.segments)) == (30, 30, 1)
    assert (recording.first_s, recording.last_s) == (START_S, START_S + 29)
    assert recording.power_source == "model"
    assert recording.segments[0].column("cpu_percent")[0] == float(rows_at([START_S])[0]["cpu_percent"])


def test_what_the_recorder_writes_can_be_read(tmp_path: Path) -> None:
    rows = [{name: str(value) for name, value in row.items()} for row, _ in zip(samples(0.02), range(3), strict=False)]
    recording = read_recording(_written(tmp_path / "node.csv", rows))
    assert recording.n_rows == 3
    if recording.power_source == "model":
        cores = recording.segments[0].core_columns
        watts = recording.segments[0].column("power_watts")
        assert modelled_watts(0, len(cores)) <= watts[0] <= modelled_watts(100, len(cores))


@pytest.mark.parametrize("n_cores", [1, 4, 12])
def test_number_of_cores_may_differ(tmp_path: Path, n_cores: int) -> None:
    rows = rows_at([START_S])
    for row in rows:
        del row["cpu_0_percent"], row["cpu_1_percent"]
        row |= {f"cpu_{i}_percent": str(i) for i in range(n_cores)}
    segment = read_recording(_written(tmp_path / "node.csv", rows)).segments[0]
    assert segment.core_columns == tuple(f"cpu_{i}_percent" for i in range(n_cores))
    assert [segment.column(name)[0] for name in segment.core_columns] == list(range(n_cores))


def test_column_nobody_knows_is_left_out(tmp_path: Path) -> None:
    rows = [row | {"fan_rpm": "many"} for row in rows_at([START_S])]
    assert "fan_rpm" not in read_recording(_written(tmp_path / "node.csv", rows)).segments[0].columns


def test_order_of_columns_does_not_matter(tmp_path: Path) -> None:
    rows = rows_at([START_S, START_S + 1])
    turned = [dict(reversed(row.items())) for row in rows]
    one, other = (
        read_recording(_written(tmp_path / f"{i}.csv", table)).segments[0] for i, table in enumerate((rows, turned))
    )
    for name in one.columns:
        np.testing.assert_array_equal(one.column(name), other.column(name))


def test_short_gap_is_bridged_with_the_last_value_known(tmp_path: Path) -> None:
    rows = rows_at([START_S, START_S + 1, START_S + 1 + MAX_GAP_S])
    recording = read_recording(_written(tmp_path / "node.csv", rows))
    cpu = [float(row["cpu_percent"]) for row in rows]
    assert len(recording.segments) == 1
    assert recording.segments[0].column("cpu_percent").tolist() == [cpu[0], *[cpu[1]] * int(MAX_GAP_S), cpu[2]]


def test_long_gap_splits_the_series(tmp_path: Path) -> None:
    rows = rows_at([START_S, START_S + 1, START_S + 1.1 + MAX_GAP_S, START_S + 2 + MAX_GAP_S])
    recording = read_recording(_written(tmp_path / "node.csv", rows))
    assert [len(segment) for segment in recording.segments] == [2, 2]
    assert recording.segments[1].start_s == pytest.approx(START_S + 1.1 + MAX_GAP_S)


@given(jitters=st.lists(st.floats(-0.4, 0.4), min_size=2, max_size=40))
def test_early_and_late_rows_keep_their_second(tmp_path_factory: pytest.TempPathFactory, jitters: list[float]) -> None:
    rows = rows_at([START_S, *(START_S + k + jitter for k, jitter in enumerate(jitters, start=1))])
    segment = read_recording(_written(tmp_path_factory.mktemp("node") / "node.csv", rows)).segments[0]
    assert segment.column("cpu_percent").tolist() == [float(row["cpu_percent"]) for row in rows]


@given(steps=st.lists(st.floats(0.05, 12), min_size=1, max_size=40))
def test_no_second_knows_a_row_that_comes_after_its_middle(
    tmp_path_factory: pytest.TempPathFactory, steps: list[float]
) -> None:
    rows = rows_at([START_S, *(START_S + np.cumsum(steps)).round(2).tolist()])
    for k, row in enumerate(rows):
        row["processes"] = str(k)
    times = [float(row["timestamp"]) for row in rows]
    recording = read_recording(_written(tmp_path_factory.mktemp("node") / "node.csv", rows))
    for segment in recording.segments:
        for second, source in enumerate(segment.column("processes").astype(int)):
            moment = segment.start_s + second + 0.5
            assert times[source] <= moment
            assert source + 1 == len(times) or times[source + 1] > moment
            assert moment - times[source] <= MAX_GAP_S + 1


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("cpu_percent", "many", r"line 3: expected cpu_percent to be a number from 0 to 100, got 'many'"),
        ("cpu_1_percent", "100.5", r"line 3: expected cpu_1_percent to be a number from 0 to 100, got '100.5'"),
        ("load_1m", "nan", r"line 3: expected load_1m to be a finite number of at least 0, got 'nan'"),
        ("power_watts", "inf", r"line 3: expected power_watts to be a finite number of at least 0, got 'inf'"),
        ("disk_read_bytes_per_s", "-1", r"line 3: expected disk_read_bytes_per_s to be .* at least 0, got '-1'"),
        ("processes", "", r"line 3: expected processes to be .*, got ''"),
        ("power_source", "guess", r"line 3: expected power_source to be rapl or model, got 'guess'"),
        ("timestamp", f"{START_S:.2f}", r"line 3: expected a timestamp after 1795260000.00, got 1795260000.00"),
    ],
)
def test_wrong_value_is_named_with_its_line(tmp_path: Path, column: str, value: str, expected: str) -> None:
    rows = rows_at([START_S, START_S + 1])
    rows[1][column] = value
    with pytest.raises(DatasetError, match=f"node.csv: {expected}"):
        read_recording(_written(tmp_path / "node.csv", rows))


def test_missing_columns_are_all_named_with_the_nearest(tmp_path: Path) -> None:
    rows = rows_at([START_S])
    del rows[0]["processes"]
    rows[0]["cpu_pct"] = rows[0].pop("cpu_percent")
    with pytest.raises(DatasetError, match=r"without 'cpu_percent' \(did you mean 'cpu_pct'\?\), 'processes'$"):
        read_recording(_written(tmp_path / "node.csv", rows))


def test_hole_in_the_cores_is_refused(tmp_path: Path) -> None:
    rows = rows_at([START_S])
    del rows[0]["cpu_0_percent"]
    with pytest.raises(DatasetError, match="without a hole, got cpu_1_percent"):
        read_recording(_written(tmp_path / "node.csv", rows))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a header line and rows, got an empty file"),
        ((",".join(HEADER) + "\n").encode(), "expected at least one row under the header, got none"),
        ((",".join(HEADER) + "\n1,2\n").encode(), r"line 2: expected 20 values, got 2"),
        ((",".join((*HEADER, "cpu_percent")) + "\n").encode(), "expected each column once, got twice: cpu_percent"),
        (gzip.compress(b"x" * 1000)[:-9], "expected a whole gzip file, got a damaged one"),
        (b"\x1f\x8bnonsense", "expected a whole gzip file, got a damaged one"),
        (b"\xff\xfe", "expected a CSV file in UTF-8, got other bytes at offset 0"),
        (b'"open quote', "unexpected end of data"),
    ],
)
def test_file_that_is_no_recording_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "node.csv"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=expected):
        read_recording(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected a recording at .*absent.csv, got: No such file or directory"):
        read_recording(tmp_path / "absent.csv")


def test_change_of_the_power_source_is_told(tmp_path: Path) -> None:
    rows = rows_at([START_S, START_S + 1, START_S + 2])
    rows[2]["power_source"] = "rapl"
    assert read_recording(_written(tmp_path / "node.csv", rows)).power_source == "model (2 rows), rapl (1 rows)"


def test_describe_prints_rows_gaps_and_every_column(tmp_path: Path) -> None:
    rows = rows_at([START_S, START_S + 1, START_S + 61])
    result = CliRunner().invoke(app, ["describe", "--csv", str(_written(tmp_path / "node.csv", rows))])
    assert result.exit_code == 0, result.output
    assert "rows      3 from 2026-11-21 11:20:00 to 2026-11-21 11:21:01 UTC" in result.output
    assert "segments  2 (split at silences of more than 5 s)" in result.output
    assert all(name in result.output for name in HEADER if name not in ("timestamp", "power_source"))


def test_describe_of_a_bad_file_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["describe", "--csv", str(tmp_path / "absent.csv")])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
