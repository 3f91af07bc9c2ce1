"""Keeps predictions on disk until their labels come: files of an hour, each written by one process and read by all.

    <directory>/1769774400-ab12cd34ef56-0000000000001.predictions   begun when, by which process, from which number on
    <directory>/1769774400-ab12cd34ef56-0000000000001.labels        rows of them that have a label: uint64 each
    <directory>/expired.json                                        the last number of each process that was deleted
    <directory>/lock                                                held to note labels and to delete

A file of predictions is a run of frames: uint32 length, uint32 crc32, uint64 first and last number, and JSON
`{"by": [[version, variant, reason, salt, [[output, type], …]], …], "of": [[number, time, by, rows], …]}`. Numbers only
grow, so a label reads the heads of one file and the body of one frame. What a kill has cut off ends a file; a frame
with a wrong sum is passed over. A file that failed to grow is left, and the next one begun.

Files older than `keep_days`, and the oldest above `max_bytes`, are deleted whole, with the notes of their labels: what
was in them is expired. Each further process that writes at that moment may put one file (1/32 of the bound) on top.

Nothing waits for the disk: a kill of the process loses the predictions of the last second, a power cut those that the
system had not written yet. The lock is one of the file system: a volume of several nodes must carry `flock`.
"""

import os
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
import structlog

from serve_app.adapters.sources.file_lock import locked
from serve_app.domain.errors import SourceError, StoreError
from serve_app.domain.labels import Predicted, PredictionId, PredictionRecord

PREDICTIONS: Final = ".predictions"
LABELS: Final = ".labels"
FILE_SECONDS: Final = 3600.0
PATIENCE_S: Final = 5.0
TIDY_S: Final = 60.0
FRAME_PREDICTIONS: Final = 1000
"""Most in a frame: a label reads all of one, which so takes a few milliseconds."""
MAX_EXPIRED: Final = 1000
"""Processes whose deleted predictions are told from those that never were."""
MAX_ROWS_EACH: Final = 1 << 20
_KEY_BYTES: Final = 8
_HEAD: Final = struct.Struct("<IIQQ")
_NAME: Final = re.compile(r"([0-9]{10,})-([0-9a-f]{12})-([0-9]{13})")
log = structlog.get_logger(__name__)


class _Segment(NamedTuple):
    """A file of predictions, without its ending."""

    begun_at_s: float
    prefix: str
    first: int
    stem: Path

    def file(self, ending: str) -> Path:
        return self.stem.with_name(self.stem.name + ending)


class PredictionFiles:
    """The files of one family; implements `PredictionLog`. `append` is for one thread at a time.

    Args:
        directory: Made with the first prediction.
        keep_days: Age at which a prediction is expired.
        max_bytes: Of all files together.
        now_s: Seconds since the epoch.
    """

    def __init__(self, directory: Path, *, keep_days: float, max_bytes: int, now_s: Callable[[], float]) -> None:
        self._directory = directory
        self._keep_s = keep_days * 86_400.0
        self._max_bytes = max_bytes
        self._file_bytes = max_bytes // 32
        self._now_s = now_s
        self._own: _Segment | None = None
        self._tidied_at_s = float("-inf")
        self._kept_bytes = 0

    def append(self, prefix: str, predictions: Sequence[tuple[int, PredictionRecord]]) -> None:
        """See `PredictionLog.append`."""
        with self._usable("written"):
            for part in _parts(predictions, self._file_bytes):
                self._append(prefix, part, numbers=(part[0][0], part[-1][0]))

    def _append(
        self, prefix: str, predictions: Sequence[tuple[int, PredictionRecord]], *, numbers: tuple[int, int]
    ) -> None:
        body = _as_json(predictions)
        frame = _HEAD.pack(len(body), zlib.crc32(body), *numbers) + body
        now_s = self._now_s()
        self._tidy(now_s, room=len(frame))
        own = self._own
        if own is not None and own.prefix == prefix and now_s < own.begun_at_s + FILE_SECONDS:
            size = _size(own.file(PREDICTIONS))  # 0 where somebody has tidied up
            if size > 0 and size + len(frame) <= self._file_bytes:
                self._write(own, frame)
                return
        self._directory.mkdir(parents=True, exist_ok=True)
        stem = self._directory / f"{int(now_s):010d}-{prefix}-{numbers[0]:013d}"
        self._own = _Segment(now_s, prefix, numbers[0], stem)
        self._write(self._own, frame)

    def _write(self, segment: _Segment, frame: bytes) -> None:
        descriptor = os.open(
            segment.file(PREDICTIONS), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )  # fmt: skip
        try:
            written = 0
            while written < len(frame):
                written += os.write(descriptor, frame[written:])
        except OSError:
            self._own = None  # whatever follows a part of a frame could not be read
            raise
        finally:
            os.close(descriptor)
        self._kept_bytes += len(frame)

    def find(self, wanted: Collection[PredictionId]) -> Mapping[PredictionId, PredictionRecord | None]:
        """See `PredictionLog.find`."""
        with self._usable("read"):
            by_prefix = self._segments_by_prefix()
            expired = self._expired()
            found: dict[PredictionId, PredictionRecord | None] = {}
            by_segment: dict[_Segment, list[int]] = {}
            for one in wanted:
                if one.number <= expired.get(one.prefix, 0):
                    found[one] = None
                segment = _holder(by_prefix.get(one.prefix, ()), one.number)
                if segment is not None:
                    by_segment.setdefault(segment, []).append(one.number)
            oldest_s = self._now_s() - self._keep_s
            for segment, numbers in by_segment.items():
                for number, record in _read(segment.file(PREDICTIONS), sorted(numbers)):
                    found[PredictionId(segment.prefix, number)] = record if record.at_s >= oldest_s else None
            return found

    def claim(self, rows: Sequence[tuple[PredictionId, int]]) -> list[bool | None]:
        """See `PredictionLog.claim`."""
        with self._usable("noted"):
            self._directory.mkdir(parents=True, exist_ok=True)
            with locked(self._directory / "lock", exclusive=True, patience_s=PATIENCE_S):
                by_prefix = self._segments_by_prefix()
                places: dict[_Segment, list[int]] = {}
                for place, (one, _) in enumerate(rows):
                    if (segment := _holder(by_prefix.get(one.prefix, ()), one.number)) is not None:
                        places.setdefault(segment, []).append(place)
                is_new: list[bool | None] = [None] * len(rows)
                for segment, those in places.items():
                    keys = [rows[place][0].number * MAX_ROWS_EACH + rows[place][1] for place in those]
                    for place, new in zip(those, _noted(segment.file(LABELS), keys), strict=True):
                        is_new[place] = new
                        self._kept_bytes += _KEY_BYTES * new
                return is_new

    def kept_bytes(self) -> int:
        """See `PredictionLog.kept_bytes`."""
        return self._kept_bytes

    def _segments_by_prefix(self) -> dict[str, list[_Segment]]:
        """Return the files of all processes, by process and in the order of their numbers."""
        found: dict[str, list[_Segment]] = {}
        for segment in self._segments():
            found.setdefault(segment.prefix, []).append(segment)
        for segments in found.values():
            segments.sort(key=lambda one: one.first)
        return found

    def _segments(self, ending: str = PREDICTIONS) -> list[_Segment]:
        try:
            names = os.listdir(self._directory)  # noqa: PTH208  # there may be thousands, and a Path costs 2 µs
        except FileNotFoundError:
            return []
        stems = (name.removesuffix(ending) for name in names if name.endswith(ending))
        matches = (match for stem in stems if (match := _NAME.fullmatch(stem)))
        return [_Segment(float(m[1]), m[2], int(m[3]), self._directory / m[0]) for m in matches]

    def _tidy(self, now_s: float, *, room: int) -> None:
        """Delete what is too old or too much; now and then, and whenever there is no room."""
        is_full = self._kept_bytes + room > self._max_bytes
        if not is_full and now_s < self._tidied_at_s + TIDY_S:
            return
        self._tidied_at_s = now_s
        files = sorted({*self._segments(), *self._segments(LABELS)})
        sizes = [_size(one.file(PREDICTIONS)) + _size(one.file(LABELS)) for one in files]
        total = sum(sizes)
        # A file lasts as long as the youngest prediction in it, which was made up to an hour after it was begun.
        oldest_s = now_s - self._keep_s - FILE_SECONDS
        dropped = []
        for segment, size in zip(files, sizes, strict=True):
            if segment.begun_at_s >= oldest_s and total + room <= self._max_bytes - self._file_bytes * is_full:
                break
            dropped.append(segment)
            total -= size
        if dropped:
            self._delete(dropped)
        self._kept_bytes = total

    def _delete(self, segments: Sequence[_Segment]) -> None:
        with locked(self._directory / "lock", exclusive=True, patience_s=PATIENCE_S):
            expired = self._expired()
            for segment in segments:
                last = max((last for _, last, _ in _heads(segment.file(PREDICTIONS))), default=0)
                expired[segment.prefix] = max(last, expired.pop(segment.prefix, 0))
            staged = self._directory / ".expired.json"
            staged.write_bytes(orjson.dumps(dict(list(expired.items())[-MAX_EXPIRED:])))
            staged.replace(self._directory / "expired.json")
            for segment in segments:
                for ending in (PREDICTIONS, LABELS):
                    segment.file(ending).unlink(missing_ok=True)

    def _expired(self) -> dict[str, int]:
        try:
            found = orjson.loads((self._directory / "expired.json").read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return {}
        return dict(found) if isinstance(found, dict) else {}

    @contextmanager
    def _usable(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"predictions cannot be {done} in {self._directory}: {error.strerror or error}") from error
        except SourceError as error:
            raise StoreError(f"predictions cannot be {done}: {error}") from error


def _parts(
    predictions: Sequence[tuple[int, PredictionRecord]], most_bytes: int
) -> Iterable[Sequence[tuple[int, PredictionRecord]]]:
    """Cut predictions into frames of which none is larger than a file, by a generous guess: 24 bytes a value."""
    part: list[tuple[int, PredictionRecord]] = []
    size = 0
    for one in predictions:
        own = 64 + 24 * len(one[1].rows) * len(one[1].by.columns)
        if part and (size + own > most_bytes // 2 or len(part) == FRAME_PREDICTIONS):
            yield part
            part, size = [], 0
        part.append(one)
        size += own
    if part:
        yield part


def _as_json(predictions: Sequence[tuple[int, PredictionRecord]]) -> bytes:
    by: dict[Predicted, int] = {}
    listed = [
        (number, round(record.at_s, 3), by.setdefault(record.by, len(by)), record.rows)
        for number, record in predictions
    ]
    told = [(one.version, one.variant, one.reason, one.salt, one.columns) for one in by]
    return orjson.dumps({"by": told, "of": listed}, option=orjson.OPT_SERIALIZE_NUMPY)


def _holder(segments: Sequence[_Segment], number: int) -> _Segment | None:
    place = bisect_right(segments, number, key=lambda one: one.first)
    return segments[place - 1] if place else None


def _heads(path: Path) -> Iterator[tuple[int, int, tuple[int, int, int]]]:
    """Yield first and last number of each whole frame, and place, length and sum of its body."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            at = 0
            while at + _HEAD.size <= size:
                file.seek(at)
                length, checksum, first, last = _HEAD.unpack(file.read(_HEAD.size))
                at += _HEAD.size
                if at + length > size:
                    return
                yield first, last, (at, length, checksum)
                at += length
    except FileNotFoundError:  # deleted since the directory was listed
        return


def _read(path: Path, numbers: Sequence[int]) -> Iterator[tuple[int, PredictionRecord]]:
    """Yield those of these numbers, which are in order, that a file has."""
    wanted = set(numbers)
    frames = [
        body for first, last, body in _heads(path) if bisect_right(numbers, last) > bisect_right(numbers, first - 1)
    ]
    with suppress(FileNotFoundError), path.open("rb") as file:
        for at, length, checksum in frames:
            file.seek(at)
            content = file.read(length)
            if zlib.crc32(content) != checksum:
                log.error("predictions passed over", file=str(path), at=at, reason="the sum of a frame is wrong")
                continue
            document: dict[str, Any] = orjson.loads(content)
            by = [
                Predicted(version, variant, reason, salt, tuple((name, dtype) for name, dtype in columns))
                for version, variant, reason, salt, columns in document["by"]
            ]
            for number, at_s, place, rows in document["of"]:
                if number in wanted:
                    yield number, PredictionRecord(at_s, by[place], rows)


def _noted(path: Path, keys: Sequence[int]) -> list[bool]:
    """Append those keys to a file that it does not have, and say which they are; for the holder of the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+b") as file:  # noqa: PTH123  # of a descriptor
        content = file.read()
        whole = len(content) // _KEY_BYTES * _KEY_BYTES
        known = np.frombuffer(content[:whole], dtype="<u8")
        seen = set(known[np.isin(known, np.asarray(keys, dtype="<u8"))].tolist())
        is_new = []
        for key in keys:
            is_new.append(key not in seen)
            seen.add(key)
        new = np.asarray([key for key, one in zip(keys, is_new, strict=True) if one], dtype="<u8")
        file.seek(whole)
        file.truncate()
        file.write(new.tobytes())
    return is_new


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
