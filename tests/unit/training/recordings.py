"""Builders of recordings for the tests of `training`."""

import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from training.datasets import UNITS, Series

START_S = 1_795_260_000.0
HEADER = ("timestamp", "cpu_percent", "cpu_0_percent", "cpu_1_percent", *list(UNITS)[1:], "power_source")

Row = dict[str, str]


def rows_at(timestamps: Sequence[float], *, seed: int = 0) -> list[Row]:
    """Return one valid row for each timestamp: a load that changes every minute or so, memory that follows it."""
    rng = np.random.default_rng(seed)
    rows, level, memory = [], 50.0, 20.0
    for timestamp in timestamps:
        if rng.random() < 1 / 60:
            level = rng.uniform(5, 95)
        memory += 0.05 * (0.3 * level + 10 - memory)
        cpu = float(np.clip(level + rng.normal(scale=3), 0, 100))
        row = dict.fromkeys(HEADER, "1.0")
        row |= dict.fromkeys(("cpu_percent", "cpu_0_percent", "cpu_1_percent"), f"{cpu:.2f}")
        row |= {
            "timestamp": f"{timestamp:.2f}",
            "memory_percent": f"{memory:.3f}",
            "power_watts": f"{2 + cpu / 20:.3f}",
        }
        row["net_sent_bytes_per_s"] = f"{rng.exponential(1e5):.1f}"
        row["power_source"] = "model"
        rows.append(row)
    return rows


def csv_of(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the rows as CSV text; the first row's keys are the header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_recording(path: Path, n_seconds: int, *, seed: int = 0) -> Path:
    """Write a recording of `n_seconds` without a gap, compressed if the name ends in `.gz`."""
    text = csv_of(rows_at([START_S + k for k in range(n_seconds)], seed=seed)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def series_of(n_seconds: int, *, seed: int = 0, n_cores: int = 2) -> Series:
    """Return a series of random values in the range of each column."""
    columns = ("cpu_percent", *(f"cpu_{i}_percent" for i in range(n_cores)), *list(UNITS)[1:])
    rng = np.random.default_rng(seed)
    highest = [100.0 if name.endswith("_percent") else 1e6 for name in columns]
    return Series(START_S, columns, rng.random((n_seconds, len(columns))) * highest)
