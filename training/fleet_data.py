"""Observations of a fleet: several metrics of many servers on one grid of steps, simulated or read from a long CSV.

A long CSV, plain or gzip, has the columns `server`, `timestamp` (seconds since the epoch, or ISO 8601; UTC unless it
says otherwise) and one for each metric. Records may come in any order; those of one step are averaged; an empty cell,
like a step without a record, is a value that was not observed.
"""

import csv
import gzip
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.adapters.loaders.tft.tft_config import Metric
from training.datasets import DatasetError

STEP_S = 300
MAX_STEPS = 500_000
"""Nearly five years of five minutes: a timestamp in milliseconds is noticed here, not in the machine's memory."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """`values` is float32 (n_servers, n_steps, n_metrics), NaN for what was not observed.

    Step k covers `step_s` seconds from `start_s + k * step_s` on, seconds since the epoch. `facts` say where it all
    comes from; they go into the manifest.
    """

    servers: tuple[str, ...]
    metrics: tuple[Metric, ...]
    step_s: int
    start_s: float
    values: NDArray[np.float32]
    facts: Mapping[str, Any]

    @property
    def n_steps(self) -> int:
        """Steps on the grid."""
        return int(self.values.shape[1])

    def digest(self) -> str:
        """Return the sha256 (hex) of the values: two fleets with the same train the same model."""
        return hashlib.sha256(np.ascontiguousarray(self.values).tobytes()).hexdigest()

    def only(self, servers: Sequence[str]) -> "Fleet":
        """Return the same fleet with these servers alone, in this order."""
        places = [self.servers.index(server) for server in servers]
        return Fleet(tuple(servers), self.metrics, self.step_s, self.start_s, self.values[places], self.facts)


def read_fleet(path: Path, *, step_s: int = STEP_S) -> Fleet:
    """Read a long CSV.

    Raises:
        DatasetError: The file cannot be read, lacks a column, or holds a cell that is neither a number nor empty.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()
    except (OSError, EOFError, ValueError) as error:
        raise DatasetError(f"expected a CSV file at {path}, got: {error}") from error
    try:
        names, servers, times_s, table = records_of(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (DatasetError, csv.Error) as error:
        raise DatasetError(f"{path.name}: {error}") from error
    known, start_s, cells, shape = on_grid(servers, times_s, len(names), step_s, where=path.name)
    values = _averaged(cells, table, shape)
    return Fleet(
        servers=known,
        metrics=tuple(metric_of(name, table[:, column]) for column, name in enumerate(names)),
        step_s=step_s,
        start_s=start_s,
        values=values,
        facts={"kind": "csv", "file": path.name, "sha256": hashlib.sha256(raw).hexdigest(), "records": len(table)},
    )


def on_grid(
    servers: Sequence[str], times_s: NDArray[np.float64], n_metrics: int, step_s: int, *, where: str
) -> tuple[tuple[str, ...], float, tuple[NDArray[np.int64], NDArray[np.int64]], tuple[int, int, int]]:
    """Lay records on the grid of a fleet: its servers, its first time, the cell of each record, and its shape.

    Raises:
        DatasetError: Their times are too far apart; the message begins with `where` they were found.
    """
    steps = np.floor(times_s / step_s).astype(np.int64)
    first, n_steps = int(steps.min()), int(steps.max() - steps.min()) + 1
    if n_steps > MAX_STEPS:
        raise DatasetError(f"{where}: expected at most {MAX_STEPS} steps of {step_s} s, got a span of {n_steps}")
    known = tuple(sorted(set(servers)))
    numbers = {server: number for number, server in enumerate(known)}
    cells = (np.array([numbers[server] for server in servers]), steps - first)
    return known, float(first * step_s), cells, (len(known), n_steps, n_metrics)


def records_of(lines: Any) -> tuple[list[str], list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Read the lines of a long CSV: names of its metrics, and of each record server, time and values (n, n_metrics).

    Raises:
        DatasetError: With the line that is wrong.
    """
    header: list[str] = next(lines, [])
    names = [name for name in header if name not in ("server", "timestamp")]
    if len(set(header)) < len(header) or len(header) - len(names) != 2 or not names:
        raise DatasetError(
            f"expected the columns server, timestamp and at least one metric, each once, got {', '.join(header)}"
        )
    places = [header.index(name) for name in names]
    server_place, time_place = header.index("server"), header.index("timestamp")
    servers, times_s, rows = [], [], []
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            raise DatasetError(f"line {number}: expected {len(header)} values, got {len(cells)}")
        servers.append(cells[server_place])
        times_s.append(_seconds(cells[time_place], number))
        rows.append([_number(cells[place], header[place], number) for place in places])
    if not rows:
        raise DatasetError("expected at least one record under the header, got none")
    return names, servers, np.array(times_s), np.array(rows)


def _seconds(cell: str, line: int) -> float:
    try:
        seconds = float(cell)
    except ValueError:
        try:
            moment = datetime.fromisoformat(cell)
        except ValueError:
            raise DatasetError(f"line {line}: expected a time, got {cell!r}") from None
        seconds = (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()
    if not math.isfinite(seconds):
        raise DatasetError(f"line {line}: expected a time, got {cell!r}")
    return seconds


def _number(cell: str, name: str, line: int) -> float:
    if not cell:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise DatasetError(f"line {line}: expected {name} to be a number or empty, got {cell!r}")
    return value


def _averaged(
    cells: tuple[NDArray[np.int64], NDArray[np.int64]], table: NDArray[np.float64], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return the mean of the records in each cell, NaN where there is none."""
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, cells, np.nan_to_num(table))
    np.add.at(counts, cells, ~np.isnan(table))
    means = np.full(shape, np.nan, dtype=np.float32)
    np.divide(sums, counts, out=means, where=counts > 0, casting="unsafe")
    return means


def metric_of(name: str, values: NDArray[np.float64]) -> Metric:
    """Describe a column by its name and its range: shares end in `_percent`, rates are never negative."""
    if np.isnan(values).all():
        raise DatasetError(f"expected at least one value of {name}, got none")
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if name.endswith("_percent") and low >= 0 and high <= 100:
        return Metric(name=name, unit="percent", minimum=0.0, maximum=100.0)
    if low >= 0:
        return Metric(name=name, transform="log1p", minimum=0.0)
    return Metric(name=name)
