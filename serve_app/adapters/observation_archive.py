"""Keeps observations for weeks: one CSV a day, in the form that a training reads.

    <directory>/2026-11-21.csv    server,timestamp,<metrics…>; one record a line, seconds since the epoch (UTC days)
    <directory>/metrics.json      what the metrics are: [{"name": …, "unit": …, "minimum": …, "maximum": …}, …]

A record lies in the file of the day it was measured on. Where two records are of one step, the one with the later time
counts, and of the same time the later line; a cell without a value says nothing. After a change of metrics a day has a
second file (`2026-11-21.2.csv`).

Only records that windows have taken come here, once each, after their sender was told. So a kill may keep the last
batch out; a power cut also what the system had not yet written. The windows themselves lose neither.
"""

import csv
import io
import math
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Final

import orjson
import structlog

from serve_app.adapters.durable_files import write_durably
from serve_app.domain.windows import Metric, Record

METRICS_FILE: Final = "metrics.json"
DAY_FILE: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(\.[0-9]+)?\.csv")
_TAIL_BYTES = 1 << 16
log = structlog.get_logger(__name__)


class ObservationArchive:
    """The files of one family; implements `RecordArchive`.

    Args:
        directory: Made with the first record; only this archive writes there.
        metrics: The columns.
        keep_days: Days that are kept beside the newest one, whatever the clock says.
    """

    def __init__(self, directory: Path, metrics: Sequence[Metric], *, keep_days: int) -> None:
        self._directory = directory
        self._metrics = tuple(metrics)
        self._keep_days = keep_days
        self._open: dict[str, Path] = {}
        """Files that end with a whole line under our header, by day."""
        self._is_described = False
        self._failing: str | None = None
        self.lost = 0

    def append(self, records: Sequence[Record]) -> None:
        """See `RecordArchive.append`."""
        written = 0
        try:
            for day, of_day in _by_day(records).items():
                self._append(day, of_day)
                written += len(of_day)
        except OSError as error:
            self.lost += len(records) - written
            self._open.clear()
            reason = f"{error.strerror or type(error).__name__}"
            if self._failing != reason:
                log.error("observations not archived", directory=str(self._directory), reason=reason)
            self._failing = reason
        else:
            if self._failing is not None:
                log.info("observations archived again", directory=str(self._directory), lost=self.lost)
            self._failing = None

    def _append(self, day: str, records: Sequence[Record]) -> None:
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        names = [metric.name for metric in self._metrics]
        for record in records:
            writer.writerow([record.entity, repr(record.at_s), *(_cell(record.values.get(name)) for name in names)])
        content = lines.getvalue().encode()
        if day in self._open:
            try:
                _write_all(self._open[day], content)
            except FileNotFoundError:  # somebody has tidied up
                self._open.clear()
                self._is_described = False
            else:
                return
        self._describe()
        path = self._open[day] = self._ready_file(day)
        self._drop_old()
        if day in self._open:
            _write_all(path, content)

    def _describe(self) -> None:
        if self._is_described:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        described = [
            {
                "name": metric.name,
                "unit": metric.unit,
                "minimum": metric.lowest if math.isfinite(metric.lowest) else None,
                "maximum": metric.highest if math.isfinite(metric.highest) else None,
            }
            for metric in self._metrics
        ]
        staged = self._directory / f".{METRICS_FILE}"
        write_durably(staged, orjson.dumps(described, option=orjson.OPT_INDENT_2))
        staged.replace(self._directory / METRICS_FILE)
        self._is_described = True

    def _ready_file(self, day: str) -> Path:
        """Return the file of a day, with our header and without the part of a line that a crash has left."""
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerow(["server", "timestamp", *(m.name for m in self._metrics)])
        header = lines.getvalue().encode()
        for number in count(1):
            path = self._directory / (f"{day}.csv" if number == 1 else f"{day}.{number}.csv")
            try:
                _cut_off_part(path)
                with path.open("rb") as file:
                    found = file.read(len(header))
            except FileNotFoundError:
                found = b""
            if not found:
                path.touch(mode=0o600)
                _write_all(path, header)
                return path
            if found == header:
                return path
        raise AssertionError("there is no last number")

    def _drop_old(self) -> None:
        """Delete the files of days that are too old, seen from the newest."""
        days = {path: match[1] for path in self._directory.iterdir() if (match := DAY_FILE.fullmatch(path.name))}
        oldest = (datetime.fromisoformat(max(days.values())) - timedelta(days=self._keep_days)).strftime("%Y-%m-%d")
        for path, day in days.items():
            if day < oldest:
                path.unlink(missing_ok=True)
                self._open.pop(day, None)


def _by_day(records: Sequence[Record]) -> dict[str, list[Record]]:
    days: dict[str, list[Record]] = {}
    names: dict[int, str] = {}
    for record in records:
        number = int(record.at_s // 86_400)
        if number not in names:
            names[number] = datetime.fromtimestamp(number * 86_400, UTC).strftime("%Y-%m-%d")
        days.setdefault(names[number], []).append(record)
    return days


def _cell(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def _write_all(path: Path, content: bytes) -> None:
    """Append bytes: all of them, or, where the disk is full, none."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(content):
                written += os.write(descriptor, content[written:])
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def _cut_off_part(path: Path) -> None:
    """Drop what stands after the last end of a line; one line is far shorter than what is looked at."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - _TAIL_BYTES))
        whole = file.read().rfind(b"\n") + 1
        if start + whole < size:
            file.truncate(start + whole)
