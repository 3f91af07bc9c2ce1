"""Takes observations into windows: what is right goes to disk first, then into the table, and then it is acknowledged.

Whoever calls while a write is under way waits for the next one, which carries all of them: one wait for the disk for
hundreds of senders.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from serve_app.domain.errors import StoreError
from serve_app.domain.windows import Fate, Record, Refusal, WindowRules, check_record
from serve_app.usecases.keep_windows import WindowTable
from serve_app.usecases.ports import Clock
from serve_app.usecases.record_journal import RecordArchive, RecordJournal

MAX_TOLD_REFUSALS = 20
ARCHIVED = frozenset({Fate.TAKEN, Fate.OUT_OF_ORDER, Fate.REPLACED})
"""Fates of records that say something new."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that was not taken: its place in the batch, and why."""

    place: int
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch: how many records by fate, and the first of those that were refused."""

    counts: dict[Fate, int]
    refused: tuple[Refused, ...] = ()


@dataclass(slots=True, eq=False)
class _Batch:
    """Records of one call that are to be written, and what is known of the others."""

    records: list[Record]
    counts: Counter[Fate]
    refused: list[Refused]
    new_entities: set[str]
    done: asyncio.Future[Taken] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ObservationTaker:
    """The one writer of a table and its journal. Lives on one event loop; the journal is written in a thread.

    Args:
        table: What the journal held at the start.
        journal: Open already.
        rules: Those of both.
        clock: Time, to know what comes from the future.
        compact_bytes: Size of the journal at which all windows are written as one image.
        count: Called with each fate and how often it came.
        archive: Given what was taken, after it was acknowledged: a kill may keep the last batch out of it.
    """

    def __init__(
        self,
        table: WindowTable,
        journal: RecordJournal,
        rules: WindowRules,
        *,
        clock: Clock,
        compact_bytes: int,
        count: Callable[[Fate, int], None] = lambda _fate, _n: None,
        archive: RecordArchive | None = None,
    ) -> None:
        self.table = table
        self._journal = journal
        self._rules = rules
        self._clock = clock
        self._compact_bytes = self._compact_at_bytes = compact_bytes
        self._count = count
        self._archive = archive
        self._waiting: list[_Batch] = []
        self._coming: set[str] = set()
        """Entities that are in no window yet, and whose first records are about to be written."""
        self._writing: asyncio.Task[None] | None = None

    async def take(self, records: Sequence[Record]) -> Taken:
        """Take a batch and return what became of each record, once no kill can lose those that were taken.

        Raises:
            StoreError: The journal cannot be written now; nothing of the batch is taken, and it may be sent again.
        """
        batch = self._checked(records)
        self._waiting.append(batch)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return await batch.done

    def _checked(self, records: Sequence[Record]) -> _Batch:
        now_s = self._clock.now_s()
        batch = _Batch([], Counter(), [], set())
        for place, record in enumerate(records):
            others = 0 if record.entity in self._coming else len(self._coming)
            refusal = check_record(record, self._rules, now_s=now_s)
            refusal = refusal or self.table.check_room(record.entity, others=others)
            if refusal is None:
                batch.records.append(record)
                if record.entity not in self.table:
                    batch.new_entities.add(record.entity)
                    self._coming.add(record.entity)
                continue
            batch.counts[refusal.fate] += 1
            if len(batch.refused) < MAX_TOLD_REFUSALS:
                batch.refused.append(Refused(place, refusal))
        return batch

    async def _write(self) -> None:
        try:
            while self._waiting:
                batches, self._waiting = self._waiting, []
                await self._write_all(batches)
                self._coming = {entity for batch in self._waiting for entity in batch.new_entities}
                if self._journal.journal_bytes >= self._compact_at_bytes:
                    await self._compact()
        finally:
            self._writing = None

    async def _write_all(self, batches: Sequence[_Batch]) -> None:
        records = [record for batch in batches for record in batch.records]
        try:
            if records:
                await asyncio.to_thread(self._journal.append, records)
        except Exception as error:  # whatever it is, nobody may wait for ever
            for batch in batches:
                if not batch.done.done():
                    batch.done.set_exception(error)
            return
        fresh = []
        for batch in batches:
            for record in batch.records:
                fate = self.table.put(record)
                batch.counts[fate] += 1
                if fate in ARCHIVED:
                    fresh.append(record)
            for fate, n in batch.counts.items():
                self._count(fate, n)
            if not batch.done.done():
                batch.done.set_result(Taken(dict(batch.counts), tuple(batch.refused)))
        if fresh and self._archive is not None:
            await asyncio.to_thread(self._archive.append, fresh)

    async def _compact(self) -> None:
        stale = self.table.stale()
        image = self.table.image(without=stale)
        try:
            await asyncio.to_thread(self._journal.compact, image)
        except StoreError:  # told where it happened; the journal goes on, and this is tried when it is as long again
            self._compact_at_bytes = self._journal.journal_bytes + self._compact_bytes
            return
        self._compact_at_bytes = self._compact_bytes
        self.table.forget(stale)
