import gzip
from pathlib import Path

import numpy as np
import pytest

from training.datasets import DatasetError
from training.fleet_data import read_fleet

START_S = 1_767_571_200


def _write(path: Path, *lines: str, header: str = "server,timestamp,cpu_percent,requests") -> Path:
    text = "\n".join([header, *lines]).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["long.csv", "long.csv.gz"])
def test_records_come_onto_the_grid_of_their_server(tmp_path: Path, name: str) -> None:
    path = _write(
        tmp_path / name,
        f"b,{START_S + 601},40,7",
        f"a,{START_S},10,1",
        f"a,{START_S + 299},20,3",
        "a,2026-01-05T00:10:00Z,50,9",
        "b,2026-01-05T01:00:00+01:00,30,",
    )
    fleet = read_fleet(path)
    assert (fleet.servers, fleet.start_s, fleet.step_s) == (("a", "b"), START_S, 300)
    nan = np.nan
    expected = [[[15, 2], [nan, nan], [50, 9]], [[30, nan], [nan, nan], [40, 7]]]
    np.testing.assert_array_equal(fleet.values, np.array(expected, dtype=np.float32))
    assert fleet.facts["records"] == 5


def test_metrics_are_described_by_name_and_range(tmp_path: Path) -> None:
    path = _write(tmp_path / "long.csv", f"a,{START_S},10,1,-4", header="server,timestamp,cpu_percent,requests,celsius")
    share, rate, other = read_fleet(path).metrics
    assert (share.unit, share.minimum, share.maximum, share.transform) == ("percent", 0, 100, "none")
    assert (rate.transform, rate.minimum, rate.maximum) == ("log1p", 0, None)
    assert (other.transform, other.minimum, other.maximum) == ("none", None, None)


@pytest.mark.parametrize(
    ("header", "line", "said"),
    [
        ("server,timestamp", "a,1", "expected the columns server, timestamp and at least one metric"),
        ("host,timestamp,cpu", "a,1,2", "got host, timestamp, cpu"),
        ("server,timestamp,cpu,cpu", "a,1,2,3", "each once"),
        ("server,timestamp,cpu", "a,1", "line 2: expected 3 values, got 2"),
        ("server,timestamp,cpu", "a,yesterday,2", "line 2: expected a time, got 'yesterday'"),
        ("server,timestamp,cpu", "a,nan,2", "line 2: expected a time, got 'nan'"),
        ("server,timestamp,cpu", "a,1,much", "line 2: expected cpu to be a number or empty, got 'much'"),
        ("server,timestamp,cpu", "a,1,inf", "expected cpu to be a number or empty"),
        ("server,timestamp,cpu", "a,1,", "expected at least one value of cpu"),
        ("server,timestamp,cpu", "a,1,2\na,1767571200000,3", "expected at most 500000 steps"),
    ],
)
def test_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, header: str, line: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        read_fleet(_write(tmp_path / "long.csv", line, header=header))


def test_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least one record"):
        read_fleet(_write(tmp_path / "long.csv"))
    with pytest.raises(DatasetError, match="expected a CSV file at"):
        read_fleet(tmp_path / "absent.csv")
