"""Keeps windows on disk: each record in a journal before it is acknowledged, and now and then all of them as one image.

    <directory>/journal-00000003.log          frames: uint32 length, uint32 crc32, JSON [[entity, time, {…}], …]
    <directory>/image-00000003.safetensors    all windows as they were when journal 3 was begun, or a little later
    <directory>/writer.lock                   locked by the only process that writes here; says its number

A start reads the newest image and every journal from its number on. What an image holds may come again from a journal:
putting a record twice changes nothing. A frame that was cut off by a crash ends its journal; it was never acknowledged.

The system frees the lock when its holder dies, in whatever way; the directory must be on a disk of this machine.
"""

import os
import re
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from serve_app.adapters.durable_files import sync_directory, write_durably
from serve_app.adapters.sources.file_lock import FileLock, try_lock
from serve_app.adapters.window_image import image_as_bytes, records_as_json, records_of_json, table_of_bytes
from serve_app.domain.errors import NotTheWriterError, StoreError
from serve_app.domain.windows import Record, WindowRules
from serve_app.usecases.keep_windows import TableImage, WindowTable

_HEAD = struct.Struct("<II")
_JOURNAL = re.compile(r"journal-([0-9]{8})\.log")
_IMAGE = re.compile(r"image-([0-9]{8})\.safetensors")
_LOOK_S = 0.05
MAX_FRAME_BYTES = 64 << 20
log = structlog.get_logger(__name__)


class WindowJournal:
    """The files of one table of windows. For one process and one thread at a time.

    Args:
        directory: Made if it is missing; only this journal writes there.
        rules: Those of the table. An image of another length, step or metrics is kept aside with its journals, and
            what the journals say of metrics that are still kept is taken over.
        syncs: Wait for the disk at every append, so that a power cut loses nothing either. Without it a kill of the
            process loses nothing, for the system has the bytes.
    """

    def __init__(self, directory: Path, rules: WindowRules, *, syncs: bool = True) -> None:
        self._directory = directory
        self._rules = rules
        self._syncs = syncs
        self._number = 0
        self._file: int | None = None
        self._lock: FileLock | None = None
        self.journal_bytes = 0

    def open(self, *, wait_s: float = 0.0) -> WindowTable:
        """Become the only writer, read what was kept and begin to append.

        Raises:
            NotTheWriterError: Another process still writes there after `wait_s`.
            StoreError: The directory cannot be used.
        """
        assert self._lock is None, "close() comes before the next open()"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = self._taken_lock(wait_s)
            try:
                return self._read()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise StoreError(f"windows cannot be read from {self._directory}: {error.strerror or error}") from error

    def append(self, records: Sequence[Record]) -> None:
        """Write records that are about to be acknowledged; all of them are kept, or none and this raises.

        Raises:
            StoreError: The disk is full or gone, or they are too many; the journal is as it was before.
        """
        assert self._file is not None, "open() comes first"
        body = records_as_json(records)
        if len(body) > MAX_FRAME_BYTES:
            raise StoreError(f"expected at most {MAX_FRAME_BYTES} bytes of records at once, got {len(body)}")
        frame = _HEAD.pack(len(body), zlib.crc32(body)) + body
        try:
            written = 0
            while written < len(frame):
                written += os.write(self._file, frame[written:])
            if self._syncs:
                os.fdatasync(self._file)
        except OSError as error:
            self._undo(error)
            raise StoreError(f"records cannot be written to {self._directory}: {error.strerror}") from error
        self.journal_bytes += len(frame)

    def compact(self, image: TableImage) -> None:
        """Write an image that holds all that was appended, and drop what it replaces.

        Raises:
            StoreError: It cannot be written; everything that was there still is.
        """
        number = self._number + 1
        staged = self._image(number).with_suffix(".staged")
        try:
            self._append_to(number)
            write_durably(staged, image_as_bytes(image, self._rules))
            staged.replace(self._image(number))
            sync_directory(self._directory)
        except OSError as error:
            log.error("image of windows not written", reason=str(error), directory=str(self._directory))
            with suppress(OSError):  # a full disk is in need of its bytes
                staged.unlink(missing_ok=True)
            raise StoreError(f"an image cannot be written to {self._directory}: {error.strerror}") from error
        for pattern, path_of in ((_JOURNAL, self._journal), (_IMAGE, self._image)):
            for old in self._numbers(pattern):
                if old < number:
                    with suppress(OSError):  # it is not read any more, and goes with the next image
                        path_of(old).unlink(missing_ok=True)

    def renew(self) -> None:
        """Do nothing: a lock on a file lasts until its process ends."""

    def close(self) -> None:
        """Stop appending, and let another process begin."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._lock is not None:
            self._lock.__exit__()
            self._lock = None

    def _taken_lock(self, wait_s: float) -> FileLock:
        path = self._directory / "writer.lock"
        give_up_s = time.monotonic() + wait_s
        while (lock := try_lock(path)) is None:
            if time.monotonic() >= give_up_s:
                holder = path.read_text().strip()
                raise NotTheWriterError(
                    f"expected to be the only writer of {self._directory}, "
                    f"found process {holder or '(number not known)'} at work"
                )
            time.sleep(_LOOK_S)  # flock itself cannot wait with a limit
        path.write_text(f"{os.getpid()}\n")
        return lock

    def _read(self) -> WindowTable:
        for staged in self._directory.glob("image-*.staged"):
            staged.unlink()
        table, first = self._newest_image()
        self._number = first
        for number in sorted(self._numbers(_JOURNAL)):
            if number >= first:
                for record in self._records(self._journal(number)):
                    table.put(record)
            self._number = max(self._number, number)
        self._append_to(self._number)
        return table

    def _newest_image(self) -> tuple[WindowTable, int]:
        for number in sorted(self._numbers(_IMAGE), reverse=True):
            image = self._image(number)
            try:
                return table_of_bytes(image.read_bytes(), self._rules), number
            except ValueError as error:
                log.error("windows put aside", file=str(image), reason=str(error))
                image.rename(image.with_suffix(".unreadable"))
                for journal in map(self._journal, self._numbers(_JOURNAL)):
                    with suppress(FileExistsError):
                        os.link(journal, journal.with_suffix(".aside"))
        return WindowTable(self._rules), 0

    def _records(self, path: Path) -> Iterator[Record]:
        """Read a journal up to its end or to a frame that was cut off, and cut that off for good."""
        content = path.read_bytes()
        start = 0
        while (end := _frame_end(content, start)) is not None:
            yield from records_of_json(content[start + _HEAD.size : end], self._rules)
            start = end
        if start < len(content):
            log.warning("end of a journal cut off", file=str(path), dropped_bytes=len(content) - start)
            os.truncate(path, start)

    def _append_to(self, number: int) -> None:
        descriptor = os.open(self._journal(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._file is not None:
            os.close(self._file)
        self._file, self._number = descriptor, number
        self.journal_bytes = os.fstat(descriptor).st_size
        sync_directory(self._directory)

    def _undo(self, error: OSError) -> None:
        assert self._file is not None
        log.error("records not written", reason=str(error), directory=str(self._directory))
        os.ftruncate(self._file, self.journal_bytes)

    def _numbers(self, pattern: re.Pattern[str]) -> list[int]:
        return [int(match[1]) for path in self._directory.iterdir() if (match := pattern.fullmatch(path.name))]

    def _journal(self, number: int) -> Path:
        return self._directory / f"journal-{number:08d}.log"

    def _image(self, number: int) -> Path:
        return self._directory / f"image-{number:08d}.safetensors"


def _frame_end(content: bytes, start: int) -> int | None:
    """Return where a whole and sound frame ends that begins at `start`, or None."""
    if start + _HEAD.size > len(content):
        return None
    length, checksum = _HEAD.unpack_from(content, start)
    end: int = start + _HEAD.size + length
    if length > MAX_FRAME_BYTES or end > len(content) or zlib.crc32(content[start + _HEAD.size : end]) != checksum:
        return None
    return end
