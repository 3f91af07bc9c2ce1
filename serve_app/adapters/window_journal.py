"""Keeps windows on disk: each record in a journal before it is acknowledged, and now and then all of them as one image.

    <directory>/journal-00000003.log          frames: uint32 length, uint32 crc32, JSON [[entity, time, {…}], …]
    <directory>/image-00000003.safetensors    all windows as they were when journal 3 was begun, or a little later

A start reads the newest image and every journal from its number on. What an image holds may come again from a journal:
putting a record twice changes nothing. A frame that was cut off by a crash ends its journal; it was never acknowledged.
"""

import json
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import structlog
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from serve_app.adapters.durable_files import sync_directory, write_durably
from serve_app.domain.errors import StoreError
from serve_app.domain.windows import Record, WindowRules
from serve_app.usecases.keep_windows import TableImage, WindowTable

_HEAD = struct.Struct("<II")
_JOURNAL = re.compile(r"journal-([0-9]{8})\.log")
_IMAGE = re.compile(r"image-([0-9]{8})\.safetensors")
MAX_FRAME_BYTES = 64 << 20
log = structlog.get_logger(__name__)


class WindowJournal:
    """The files of one table of windows. For one process and one thread at a time.

    Args:
        directory: Made if it is missing; only this journal writes there.
        rules: Those of the table; another length or other metrics start anew, and the old files are kept aside.
        syncs: Wait for the disk at every append, so that a power cut loses nothing either. Without it a kill of the
            process loses nothing, for the system has the bytes.
    """

    def __init__(self, directory: Path, rules: WindowRules, *, syncs: bool = True) -> None:
        self._directory = directory
        self._rules = rules
        self._syncs = syncs
        self._number = 0
        self._file: int | None = None
        self.journal_bytes = 0

    def open(self) -> WindowTable:
        """Read what was kept and begin to append.

        Raises:
            StoreError: The directory cannot be used.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            table, first = self._newest_image()
            for number in sorted(self._numbers(_JOURNAL)):
                if number >= first:
                    for record in self._records(self._journal(number)):
                        table.put(record)
                self._number = max(self._number, number)
            self._number = max(self._number, first)
            self._append_to(self._number)
        except OSError as error:
            raise StoreError(f"windows cannot be read from {self._directory}: {error.strerror or error}") from error
        return table

    def append(self, records: Sequence[Record]) -> None:
        """Write records that are about to be acknowledged; all of them are kept, or none and this raises.

        Raises:
            StoreError: The disk is full or gone; the journal is as it was before.
        """
        assert self._file is not None, "open() comes first"
        body = orjson.dumps([[record.entity, record.at_s, dict(record.values)] for record in records])
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
        try:
            self._append_to(number)
            staged = self._image(number).with_suffix(".staged")
            write_durably(staged, _packed(image, self._rules))
            staged.replace(self._image(number))
            sync_directory(self._directory)
        except OSError as error:
            log.error("image of windows not written", reason=str(error), directory=str(self._directory))
            raise StoreError(f"an image cannot be written to {self._directory}: {error.strerror}") from error
        for pattern, path_of in ((_JOURNAL, self._journal), (_IMAGE, self._image)):
            for old in self._numbers(pattern):
                if old < number:
                    path_of(old).unlink(missing_ok=True)

    def close(self) -> None:
        """Stop appending."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _newest_image(self) -> tuple[WindowTable, int]:
        for number in sorted(self._numbers(_IMAGE), reverse=True):
            try:
                return WindowTable.of_image(_unpacked(self._image(number), self._rules), self._rules), number
            except (SafetensorError, ValueError, KeyError) as error:
                log.error("image of windows not readable", file=str(self._image(number)), reason=str(error))
                self._image(number).rename(self._image(number).with_suffix(".unreadable"))
        return WindowTable(self._rules), 0

    def _records(self, path: Path) -> Iterator[Record]:
        """Read a journal up to its end or to a frame that was cut off, and cut that off for good."""
        names = set(self._rules.names)
        content = path.read_bytes()
        start = 0
        while (end := _frame_end(content, start)) is not None:
            for entity, at_s, values in orjson.loads(content[start + _HEAD.size : end]):
                yield Record(entity, at_s, {name: value for name, value in values.items() if name in names})
            start = end
        if start < len(content):
            log.warning("end of a journal cut off", file=str(path), dropped_bytes=len(content) - start)
            os.truncate(path, start)

    def _append_to(self, number: int) -> None:
        descriptor = os.open(self._journal(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.close()
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


def _packed(image: TableImage, rules: WindowRules) -> bytes:
    facts = {"entities": json.dumps(image.entities), "metrics": json.dumps(rules.names), "step_s": str(rules.step_s)}
    arrays: dict[str, NDArray[Any]] = {"values": image.values, "times": image.times, "newest_step": image.newest_step}
    return save(arrays, metadata=facts)


def _unpacked(path: Path, rules: WindowRules) -> TableImage:
    with safe_open(path, framework="numpy") as file:
        facts: dict[str, Any] = file.metadata() or {}
        if (json.loads(facts["metrics"]), int(facts["step_s"])) != (list(rules.names), rules.step_s):
            raise ValueError(
                f"expected the metrics {list(rules.names)} in steps of {rules.step_s} s, "
                f"found {facts['metrics']} in steps of {facts['step_s']} s"
            )
        return TableImage(
            entities=tuple(json.loads(facts["entities"])),
            values=np.asarray(file.get_tensor("values"), np.float32),
            times=np.asarray(file.get_tensor("times"), np.float64),
            newest_step=np.asarray(file.get_tensor("newest_step"), np.int64),
        )
