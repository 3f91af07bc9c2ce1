"""Keeps recorded requests on disk: a ring of files, each written by one process and read by all.

    <directory>/1769774400123-ab12cd34ef56.requests   begun when (milliseconds), by which process
    <directory>/lock                                  held to begin a file, and to delete

A file is lines of JSON: its `RecordHead`, then `[time, version, rows, outputs, seconds]` for each request. What a kill
has cut off ends a file and is left out.

The bounds hold at every moment, over all processes that share the directory: a file takes an eighth of them, and one is
begun only when what the others may still grow to leaves room for it; the oldest are deleted until it does. So a full
record has between seven and eight eighths of what it may have. Files in which more can be read than may be kept now,
because `redact` was shorter then, are deleted first. Nothing waits for the disk: a power cut loses what the system had
not written yet. The lock is one of the file system: a volume of several nodes must carry `flock`.
"""

import heapq
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import structlog
from pydantic import ValidationError

from serve_app.adapters.sources.file_lock import locked
from serve_app.domain.errors import SourceError, StoreError
from serve_app.domain.recording import RecordedRequest, RecordHead

ENDING: Final = ".requests"
FILES: Final = 8
PATIENCE_S: Final = 5.0
MAX_HEAD_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"[0-9]{13,}-[0-9a-f]{12}\.requests")
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Open:
    """A file that this process writes, and what is in it."""

    path: Path
    requests: int
    size: int


class RequestFiles:
    """The record of one family, for one thread that writes; implements `RequestLog`.

    Args:
        directory: Made with the first request.
        max_requests: Of all files together.
        max_bytes: Of all files together.
        now_s: Seconds since the epoch.
    """

    def __init__(self, directory: Path, *, max_requests: int, max_bytes: int, now_s: Callable[[], float]) -> None:
        self._directory = directory
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._now_s = now_s
        self._process = os.urandom(6).hex()
        self._open: dict[RecordHead, _Open] = {}
        self._begun_ms = 0

    def append(self, head: RecordHead, requests: Sequence[RecordedRequest]) -> int:
        """See `RequestLog.append`."""
        head = head.model_copy(
            update={"most_requests": self._max_requests // FILES, "most_bytes": self._max_bytes // FILES}
        )
        kept = 0
        batch: list[bytes] = []
        with _usable(self._directory, "written"):
            own = self._open.get(head)
            if own is not None and not own.path.exists():
                own = None
            for request in requests:
                line = _line([round(request.at_s, 3), request.version, request.rows, request.outputs, request.seconds])
                if own is None or own.requests >= head.most_requests or own.size + len(line) > head.most_bytes:
                    kept += self._flush(head, batch)
                    begun = self._begin(head, line)
                    if begun is None:
                        continue
                    own = begun
                batch.append(line)
                own.requests += 1
                own.size += len(line)
            return kept + self._flush(head, batch)

    def _flush(self, head: RecordHead, batch: list[bytes]) -> int:
        """Write what was gathered for the open file, and return how much it was."""
        n = len(batch)
        if n:
            own = self._open.pop(head)  # whatever follows a part of a line could not be read
            _write(own.path, b"".join(batch))
            self._open[head] = own
            batch.clear()
        return n

    def _begin(self, head: RecordHead, line: bytes) -> _Open | None:
        """Begin a file and make room for it; None where even an empty one could not take the line."""
        first = _line(head.model_dump(mode="json"))
        if len(first) + len(line) > head.most_bytes:
            return None
        self._directory.mkdir(parents=True, exist_ok=True)
        with locked(self._directory / "lock", exclusive=True, patience_s=PATIENCE_S):
            self._make_room(head)
            self._begun_ms = max(int(self._now_s() * 1000), self._begun_ms + 1)
            path = self._directory / f"{self._begun_ms:013d}-{self._process}{ENDING}"
            with suppress(FileNotFoundError):
                path.unlink()
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            _write(path, first)
        self._open[head] = _Open(path, 0, len(first))
        return self._open[head]

    def _make_room(self, head: RecordHead) -> None:
        """Delete what may not be kept, and the oldest files until a further one has room."""
        found: list[tuple[Path, int, int]] = []
        for path in _files(self._directory):
            known = _head_of(path)
            if known is None or not set(head.redacted) <= set(known.redacted):
                path.unlink(missing_ok=True)
                continue
            found.append((path, known.most_requests, max(known.most_bytes, _size(path))))
        while found and (
            sum(most for _, most, _ in found) + head.most_requests > self._max_requests
            or sum(most for _, _, most in found) + head.most_bytes > self._max_bytes
        ):
            found.pop(0)[0].unlink(missing_ok=True)


class RecordedFiles:
    """The requests of a directory, or only the newest, in the order in which they came. They may be read again.

    Only lines are kept in memory: a request as objects takes many times as much.

    Raises:
        StoreError: They cannot be read now.
    """

    def __init__(self, directory: Path, *, newest: int | None = None) -> None:
        with _usable(directory, "read"):
            lines = heapq.merge(*(_lines(path) for path in _files(directory)), key=lambda one: one[0])
            self._lines = deque(lines, maxlen=newest)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._lines)

    def __iter__(self) -> Iterator[tuple[RecordHead, RecordedRequest]]:
        """Yield each with the head of its file."""
        for _, head, line in self._lines:
            at_s, version, rows, outputs, seconds = orjson.loads(line)
            yield head, RecordedRequest(at_s, version, rows, outputs, seconds)


def has_requests(directory: Path) -> bool:
    """Say whether any request is recorded there; reads one at most.

    Raises:
        StoreError: It cannot be told now.
    """
    with _usable(directory, "read"):
        return any(True for path in _files(directory) for _ in _lines(path))


@contextmanager
def _usable(directory: Path, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"the record in {directory} cannot be {done}: {error.strerror or error}") from error
    except SourceError as error:
        raise StoreError(f"the record cannot be {done}: {error}") from error


def _files(directory: Path) -> list[Path]:
    """Return the files, the oldest first."""
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208  # names are enough
    except FileNotFoundError:
        return []
    return [directory / name for name in names if _NAME.fullmatch(name)]


def _line(document: object) -> bytes:
    return orjson.dumps(document) + b"\n"


def _write(path: Path, line: bytes) -> None:
    """Append to a file that is there; one that was deleted is not made again."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        while line:
            line = line[os.write(descriptor, line) :]
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _head_of(path: Path) -> RecordHead | None:
    """Read the head of a file; None where it has none."""
    try:
        with path.open("rb") as file:
            return RecordHead.model_validate_json(file.readline(MAX_HEAD_BYTES))
    except (FileNotFoundError, ValidationError):
        return None


def _lines(path: Path) -> Iterator[tuple[float, RecordHead, bytes]]:
    """Yield the whole lines of a file with their times and head; nothing of one without a head."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            head = RecordHead.model_validate_json(file.readline(MAX_HEAD_BYTES))
        except ValidationError:
            log.warning("recorded requests passed over", file=str(path), reason="the file has no head")
            return
        for line in file:
            with suppress(orjson.JSONDecodeError):
                at_s, _, _, _, _ = orjson.loads(line)
                yield at_s, head, line
