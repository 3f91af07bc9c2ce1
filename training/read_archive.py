"""The archive of a server (`serve_app/adapters/observation_archive.py`) as a fleet to train on: all its days."""

import csv
import hashlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from serve_app.adapters.loaders.tft.tft_config import Metric
from serve_app.adapters.observation_archive import DAY_FILE, METRICS_FILE
from training.datasets import DatasetError
from training.fleet_data import STEP_S, Fleet, metric_of, on_grid, records_of


def read_archive(directory: Path, *, step_s: int = STEP_S) -> Fleet:
    """Read all days. Of several records in a step the one with the later time counts, then the later line.

    Columns are those of `metrics.json`, in its order: what was measured only in the past is left out.

    Raises:
        DatasetError: There is no archive, or nothing in it, or a file is none.
    """
    paths = sorted(path for path in _listed(directory) if DAY_FILE.fullmatch(path.name))
    described = _described(directory)
    servers: list[str] = []
    times: list[NDArray[np.float64]] = []
    tables: list[NDArray[np.float64]] = []
    digest = hashlib.sha256()
    for path in paths:
        raw = path.read_bytes()
        digest.update(raw)
        whole = raw[: raw.rfind(b"\n") + 1]  # the server may be writing
        if whole.count(b"\n") < 2:
            continue
        try:
            names, of_day, times_s, table = records_of(csv.reader(io.StringIO(whole.decode(), newline=""), strict=True))
        except (DatasetError, csv.Error, UnicodeDecodeError) as error:
            raise DatasetError(f"{path.name}: {error}") from error
        servers += map(sys.intern, of_day)  # one name, not one for each record
        times.append(times_s)
        tables.append(_columns(table, names, list(described)))
    if not servers:
        raise DatasetError(f"expected observations in {directory}, found none")
    times_s, table = np.concatenate(times), np.concatenate(tables)
    known, start_s, cells, shape = on_grid(servers, times_s, len(described), step_s, where=str(directory))
    values = np.full(shape, np.nan, dtype=np.float32)
    order = np.argsort(times_s, kind="stable")  # of equal places the last assignment stays
    for column in range(len(described)):
        said = order[~np.isnan(table[order, column])]
        values[cells[0][said], cells[1][said], column] = table[said, column]
    return Fleet(
        servers=known,
        metrics=tuple(metric or metric_of(name, table[:, i]) for i, (name, metric) in enumerate(described.items())),
        step_s=step_s,
        start_s=start_s,
        values=values,
        facts={"kind": "archive", "days": len(paths), "sha256": digest.hexdigest(), "records": len(servers)},
    )


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError as error:
        raise DatasetError(f"expected an archive of observations at {directory}, got: {error.strerror}") from error


def _described(directory: Path) -> Mapping[str, Metric | None]:
    """Return the metrics by name; one whose bounds say nothing is described by its values."""
    try:
        listed = orjson.loads((directory / METRICS_FILE).read_bytes())
        return {item["name"]: _metric(**item) for item in listed}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"expected what the metrics are in {directory / METRICS_FILE}, got: {error}") from error


def _metric(*, name: str, unit: str, minimum: float | None, maximum: float | None) -> Metric | None:
    if minimum is None and maximum is None and not unit:
        return None
    is_rate = minimum is not None and minimum >= 0 and maximum is None
    return Metric(name=name, unit=unit, minimum=minimum, maximum=maximum, transform="log1p" if is_rate else "none")


def _columns(table: NDArray[np.float64], names: list[str], wanted: list[str]) -> NDArray[np.float64]:
    """Return the wanted columns; NaN for those that a file has not."""
    made = np.full((len(table), len(wanted)), np.nan)
    for place, name in enumerate(wanted):
        if name in names:
            made[:, place] = table[:, names.index(name)]
    return made
