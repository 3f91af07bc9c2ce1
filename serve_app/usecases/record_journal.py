"""The ports of what keeps records.

`RecordJournal` is what windows are made of again: `adapters/window_journal.py` on a disk, `adapters/window_redis.py` in
Redis. `RecordArchive` keeps them for longer, to train on: `adapters/observation_archive.py`.
"""

from collections.abc import Sequence
from typing import Protocol

from serve_app.domain.windows import Record
from serve_app.usecases.keep_windows import TableImage, WindowTable


class RecordJournal(Protocol):
    """Keeps the records of one table of windows where no kill reaches them. Blocking; does not retry.

    One writes at a time, whichever process or machine it is in. For one thread at a time, but for `renew`, which may be
    called from another.
    """

    @property
    def journal_bytes(self) -> int:
        """Size of what a restart would have to read beside the last image."""
        ...

    def open(self, *, wait_s: float = 0.0) -> WindowTable:
        """Become the only writer, and return what was kept; wait up to `wait_s` for another writer to end.

        Windows kept by other rules (length, step or metrics) are put aside, and these begin anew.

        Raises:
            NotTheWriterError: Another writes for longer than that; the message says who.
            StoreError: What is kept cannot be read now.
        """
        ...

    def append(self, records: Sequence[Record]) -> None:
        """Write records that are about to be acknowledged: all of them, or none that counts.

        After a StoreError a restart may find some of them nevertheless; sending them again changes nothing then.

        Raises:
            NotTheWriterError: Another has become the writer; nothing is written until `open` is called again.
            StoreError: They cannot be written now.
        """
        ...

    def compact(self, image: TableImage) -> None:
        """Replace all that was appended by an image that holds it, at once or not at all.

        Raises:
            NotTheWriterError: Another has become the writer.
            StoreError: It cannot be written; everything that was there still is.
        """
        ...

    def renew(self) -> None:
        """Stay the writer. `append` and `compact` do so too; call this every second or so when there is nothing else.

        Raises:
            NotTheWriterError: Another has become the writer.
            StoreError: What is kept cannot be reached now; call it again.
        """
        ...

    def close(self) -> None:
        """Stop writing, and let another begin at once; `open` may be called again."""
        ...


class RecordArchive(Protocol):
    """Keeps records for weeks. Blocking; for one thread at a time."""

    def append(self, records: Sequence[Record]) -> None:
        """Write records that windows have taken. What cannot be written is counted and logged, and never raised."""
        ...
