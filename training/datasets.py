"""Recordings of a node: read, checked, put on a grid of one second, split where the recorder was away.

    python -m training.datasets describe [--csv PATH]

A recording is a CSV file, plain or gzip, with the columns that `record_node` writes. The number of cores may differ.
"""

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from serve_app.domain.errors import ServeAppError, nearest

RECORDING = Path(__file__).parent / "data" / "node_metrics.csv.gz"
MAX_GAP_S = 5.0
"""Longest silence, in seconds, that is bridged by holding the last value; a busy node may miss a second, not five."""

UNITS: Mapping[str, str] = {
    "cpu_percent": "percent",
    "load_1m": "runnable processes",
    "load_5m": "runnable processes",
    "load_15m": "runnable processes",
    "memory_percent": "percent",
    "memory_used_bytes": "bytes",
    "memory_cached_bytes": "bytes",
    "swap_percent": "percent",
    "context_switches_per_s": "1/s",
    "interrupts_per_s": "1/s",
    "disk_read_bytes_per_s": "bytes/s",
    "disk_write_bytes_per_s": "bytes/s",
    "net_sent_bytes_per_s": "bytes/s",
    "net_received_bytes_per_s": "bytes/s",
    "processes": "processes",
    "power_watts": "watts",
}
"""The numeric columns every recording has, with their units; `cpu_<i>_percent` comes beside them, one for each core."""

POWER_SOURCES = ("rapl", "model")
_CORE = re.compile(r"cpu_(\d+)_percent")
_GZIP_MAGIC = b"\x1f\x8b"


class DatasetError(ServeAppError):
    """A recording cannot be used; the message says in one sentence what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Series:
    """Consecutive seconds without a gap.

    `values` is float64 (n_seconds, n_columns), its columns are named by `columns`; row k belongs to `start_s + k`,
    seconds since the epoch.
    """

    start_s: float
    columns: tuple[str, ...]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def column(self, name: str) -> NDArray[np.float64]:
        """Return one column, float64 (n_seconds,)."""
        return self.values[:, self.columns.index(name)]

    @property
    def core_columns(self) -> tuple[str, ...]:
        """Names of the columns that hold one core each."""
        return tuple(name for name in self.columns if _CORE.fullmatch(name))


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole recording: its segments in order of time, and the facts that training writes down about it."""

    name: str
    sha256: str
    n_rows: int
    first_s: float
    last_s: float
    power_sources: Mapping[str, int]
    segments: tuple[Series, ...]

    @property
    def n_seconds(self) -> int:
        """Seconds on the grid, all segments together."""
        return sum(len(segment) for segment in self.segments)

    @property
    def power_source(self) -> str:
        """`rapl`, `model`, or both with the rows of each when the recorder had to change between them."""
        if len(self.power_sources) == 1:
            return next(iter(self.power_sources))
        return ", ".join(f"{source} ({n} rows)" for source, n in sorted(self.power_sources.items()))


def read_recording(path: Path = RECORDING, *, max_gap_s: float = MAX_GAP_S) -> Recording:
    """Read and check a recording and put it on a grid of one second.

    Raises:
        DatasetError: The file cannot be read, lacks a column, or holds a row that no recorder writes.
    """
    raw = _read(path)
    try:
        lines = csv.reader(io.StringIO(_text(raw), newline=""), strict=True)
        header = next(lines, None)
        if header is None:
            raise DatasetError("expected a header line and rows, got an empty file")
        columns = _numeric_columns(header)
        timestamps, values, sources = _parse(lines, header, columns)
    except (DatasetError, csv.Error) as error:
        raise DatasetError(f"{path.name}: {error}") from error
    return Recording(
        name=path.name,
        sha256=hashlib.sha256(raw).hexdigest(),
        n_rows=len(timestamps),
        first_s=float(timestamps[0]),
        last_s=float(timestamps[-1]),
        power_sources=sources,
        segments=tuple(_segments(timestamps, values, columns, max_gap_s)),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"expected a recording at {path}, got: {error.strerror}") from error


def _text(raw: bytes) -> str:
    try:
        return (gzip.decompress(raw) if raw.startswith(_GZIP_MAGIC) else raw).decode()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"expected a whole gzip file, got a damaged one ({error})") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"expected a CSV file in UTF-8, got other bytes at offset {error.start}") from error


def _numeric_columns(header: Sequence[str]) -> tuple[str, ...]:
    """Return the numeric columns to read, in the order of the header; columns that nobody knows are left out."""
    if doubles := sorted(name for name, n in Counter(header).items() if n > 1):
        raise DatasetError(f"expected each column once, got twice: {', '.join(doubles)}")
    expected = ("timestamp", *UNITS, "power_source")
    if missing := [name for name in expected if name not in header]:
        strangers = [name for name in header if name not in expected and not _CORE.fullmatch(name)]
        listed = ", ".join(f"{name!r}{nearest(name, strangers)}" for name in missing)
        raise DatasetError(f"expected the columns of record_node, got a header without {listed}")
    cores = sorted(int(match[1]) for name in header if (match := _CORE.fullmatch(name)))
    if not cores or cores != list(range(len(cores))):
        found = ", ".join(f"cpu_{i}_percent" for i in cores) or "none"
        raise DatasetError(f"expected the cores as cpu_0_percent, cpu_1_percent, … without a hole, got {found}")
    return tuple(name for name in header if name in UNITS or _CORE.fullmatch(name))


def _parse(
    lines: Iterator[list[str]], header: Sequence[str], columns: tuple[str, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64], Counter[str]]:
    places = [(name, header.index(name)) for name in ("timestamp", *columns)]
    source_place = header.index("power_source")
    sources: Counter[str] = Counter()
    rows: list[list[float]] = []
    for line_number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            raise DatasetError(f"line {line_number}: expected {len(header)} values, got {len(cells)}")
        row = [_number(cells[place], name, line_number) for name, place in places]
        if rows and row[0] <= rows[-1][0]:
            raise DatasetError(f"line {line_number}: expected a timestamp after {rows[-1][0]:.2f}, got {row[0]:.2f}")
        source = cells[source_place]
        if source not in POWER_SOURCES:
            raise DatasetError(
                f"line {line_number}: expected power_source to be {' or '.join(POWER_SOURCES)}, got {source!r}"
            )
        sources[source] += 1
        rows.append(row)
    if not rows:
        raise DatasetError("expected at least one row under the header, got none")
    table = np.array(rows, dtype=np.float64)
    return table[:, 0], table[:, 1:], sources


def _number(cell: str, name: str, line_number: int) -> float:
    highest = 100.0 if name.endswith("_percent") else float("inf")
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= highest or value == float("inf"):
        limits = "a number from 0 to 100" if highest == 100.0 else "a finite number of at least 0"
        raise DatasetError(f"line {line_number}: expected {name} to be {limits}, got {cell!r}")
    return value


def _segments(
    timestamps: NDArray[np.float64], values: NDArray[np.float64], columns: tuple[str, ...], max_gap_s: float
) -> Iterator[Series]:
    """Split at silences longer than `max_gap_s`; within a segment each second takes the latest row known by its middle.

    Holding the last value, unlike drawing a line to the next one, never lets a second know what comes after it. The
    middle of the second is asked because a row comes some milliseconds early or late.
    """
    cuts = np.flatnonzero(np.diff(timestamps) > max_gap_s) + 1
    for rows in np.split(np.arange(len(timestamps)), cuts):
        times = timestamps[rows]
        grid = times[0] + 0.5 + np.arange(round(times[-1] - times[0]) + 1)
        latest = np.searchsorted(times, grid, side="right") - 1
        yield Series(start_s=float(times[0]), columns=columns, values=values[rows[latest]])


app = typer.Typer(add_completion=False, help="Recordings of a node.")


@app.callback()
def _commands() -> None:
    """Keep `describe` a word of its own though it is the only command."""


@app.command()
def describe(
    csv_path: Annotated[Path, typer.Option("--csv", help="The recording, plain or gzip.")] = RECORDING,
) -> None:
    """Print rows, span, gaps and the range of every column."""
    try:
        recording = read_recording(csv_path)
    except DatasetError as error:
        raise typer.BadParameter(str(error), param_hint="--csv") from error
    # a fixed width, so that the same file prints the same text everywhere
    console = Console(width=100, highlight=False, markup=False)
    first, last = (datetime.fromtimestamp(s, UTC) for s in (recording.first_s, recording.last_s))
    console.print(f"file      {recording.name}", soft_wrap=True)
    console.print(f"sha256    {recording.sha256}")
    console.print(f"rows      {recording.n_rows} from {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC")
    minutes = (recording.last_s - recording.first_s) / 60
    console.print(f"span      {minutes:.1f} minutes, {recording.n_seconds} seconds on the grid")
    console.print(f"segments  {len(recording.segments)} (split at silences of more than {MAX_GAP_S:g} s)")
    console.print(f"power     {recording.power_source}")
    console.print(_ranges(recording))


def _ranges(recording: Recording) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("column", "unit"):
        table.add_column(heading, no_wrap=True)
    for heading in ("min", "mean", "max"):
        table.add_column(heading, justify="right", no_wrap=True)
    values = np.concatenate([segment.values for segment in recording.segments])
    for name, column in zip(recording.segments[0].columns, values.T, strict=True):
        numbers = (f"{value:,.2f}" for value in (column.min(), column.mean(), column.max()))
        table.add_row(name, UNITS.get(name, "percent"), *numbers)
    return table


if __name__ == "__main__":
    app()
