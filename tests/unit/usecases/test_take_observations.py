import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from serve_app.domain.errors import StoreError
from serve_app.domain.windows import Fate, Metric, Record, WindowRules
from serve_app.usecases.keep_windows import TableImage, WindowTable
from serve_app.usecases.take_observations import MAX_TOLD_REFUSALS, ObservationTaker
from tests.fakes.clock import FakeClock

RULES = WindowRules((Metric("cpu", "percent", 0, 100),), length=6)
STEP_S = 300


@dataclass
class FakeRecordJournal:
    """Keeps what was appended; waits at the gate before it does, and raises `error` where there is one."""

    appended: list[list[Record]] = field(default_factory=list)
    images: list[TableImage] = field(default_factory=list)
    error: Exception | None = None
    image_error: Exception | None = None
    n_compactions: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    journal_bytes: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def open(self, *, wait_s: float = 0.0) -> WindowTable:
        return WindowTable(RULES)

    def renew(self) -> None: ...

    def close(self) -> None: ...

    def append(self, records: Sequence[Record]) -> None:
        assert self.gate.wait(5)
        if self.error is not None:
            raise self.error
        self.appended.append(list(records))
        self.journal_bytes += len(records)

    def compact(self, image: TableImage) -> None:
        self.n_compactions += 1
        if self.image_error is not None:
            raise self.image_error
        self.images.append(image)
        self.journal_bytes = 0


class Taking:
    def __init__(self, *, compact_bytes: int = 1000, rules: WindowRules = RULES) -> None:
        self.clock = FakeClock()
        self.journal = FakeRecordJournal()
        self.counted: Counter[Fate] = Counter()
        self.taker = ObservationTaker(
            WindowTable(rules), self.journal, rules, clock=self.clock, compact_bytes=compact_bytes, count=self.count,
        )  # fmt: skip
        self.first_step = int(self.clock.now_s() // STEP_S) - 20

    def count(self, fate: Fate, n: int) -> None:
        self.counted[fate] += n

    def record(self, step: int, cpu: float = 1.0, *, entity: str = "web-1") -> Record:
        return Record(entity, (self.first_step + step) * STEP_S, {"cpu": cpu})

    async def compacted(self, times: int) -> None:
        """Wait until so many images were begun, and nothing is under way."""
        async with asyncio.timeout(5):
            while self.journal.n_compactions < times or self.taker._writing is not None:
                await asyncio.sleep(0.001)

    @property
    def series(self) -> list[float]:
        return [float(v) for v in self.taker.table.windows(["web-1"]).values[0, :, 0] if v == v]


async def test_right_records_of_a_batch_are_taken_and_the_wrong_ones_named_by_their_place() -> None:
    taking = Taking()
    taken = await taking.taker.take(
        [taking.record(0, 5), taking.record(1, 500), taking.record(1, 6), taking.record(1, 6)]
    )
    assert taken.counts == {Fate.TAKEN: 2, Fate.OUT_OF_RANGE: 1, Fate.DUPLICATE: 1}
    (refused,) = taken.refused
    assert (refused.place, refused.refusal.reason) == (1, "cpu: expected 0 to 100 percent, got 500")
    assert taking.series == [5, 6]
    assert taking.counted == taken.counts


async def test_nothing_is_in_the_window_before_it_is_on_disk() -> None:
    taking = Taking()
    taking.journal.gate.clear()
    waiting = asyncio.create_task(taking.taker.take([taking.record(0)]))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not taking.taker.table.entities
    assert not waiting.done()
    taking.journal.gate.set()
    assert (await waiting).counts == {Fate.TAKEN: 1}
    assert taking.taker.table.entities == ("web-1",)


async def test_senders_that_come_during_a_write_share_the_next_one() -> None:
    taking = Taking()
    taking.journal.gate.clear()
    first = asyncio.create_task(taking.taker.take([taking.record(0)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(taking.taker.take([taking.record(i)])) for i in range(1, 6)]
    await asyncio.sleep(0)
    taking.journal.gate.set()
    assert all(taken.counts == {Fate.TAKEN: 1} for taken in await asyncio.gather(first, *others))
    assert [len(records) for records in taking.journal.appended] == [1, 5]
    assert len(taking.series) == 6


@pytest.mark.parametrize("error", [StoreError("the disk is full"), RuntimeError("a defect")])
async def test_failed_write_takes_nothing_and_the_next_batch_goes_on(error: Exception) -> None:
    taking = Taking()
    taking.journal.error = error
    with pytest.raises(type(error), match=str(error)):
        await taking.taker.take([taking.record(0)])
    assert taking.taker.table.entities == ()
    assert not taking.counted
    taking.journal.error = None
    assert (await taking.taker.take([taking.record(0)])).counts == {Fate.TAKEN: 1}


async def test_batch_without_a_right_record_is_answered_without_a_write() -> None:
    taking = Taking()
    taken = await taking.taker.take([taking.record(0, 101)] * (MAX_TOLD_REFUSALS + 5))
    assert taken.counts == {Fate.OUT_OF_RANGE: MAX_TOLD_REFUSALS + 5}
    assert len(taken.refused) == MAX_TOLD_REFUSALS
    assert taking.journal.appended == []


async def test_large_journal_becomes_an_image_of_all_that_was_taken() -> None:
    taking = Taking(compact_bytes=3)
    for step in range(4):
        await taking.taker.take([taking.record(step)])
    await taking.compacted(1)
    (image,) = taking.journal.images
    assert image.newest_step.tolist() == [taking.first_step + 2]


async def test_sender_that_goes_away_leaves_the_others_their_answers() -> None:
    taking = Taking()
    taking.journal.gate.clear()
    gone, stays = (asyncio.create_task(taking.taker.take([taking.record(i)])) for i in (0, 1))
    await asyncio.sleep(0)
    gone.cancel()
    taking.journal.gate.set()
    assert (await stays).counts == {Fate.TAKEN: 1}
    assert len(taking.series) == 2


async def test_new_entities_that_wait_for_the_same_write_count_too() -> None:
    taking = Taking(rules=WindowRules(RULES.metrics, length=6, max_entities=2))
    taking.journal.gate.clear()
    batches = [
        asyncio.create_task(
            taking.taker.take([taking.record(0, entity=f"web-{n}"), taking.record(1, entity=f"web-{n}")])
        )
        for n in range(3)
    ]
    await asyncio.sleep(0)
    taking.journal.gate.set()
    first, second, third = [(await batch).counts for batch in batches]
    assert first == second == {Fate.TAKEN: 2}
    assert third == {Fate.TOO_MANY_ENTITIES: 2}
    assert taking.taker.table.entities == ("web-0", "web-1")


async def test_room_that_a_failed_write_did_not_take_is_free_again() -> None:
    taking = Taking(rules=WindowRules(RULES.metrics, length=6, max_entities=1))
    taking.journal.error = StoreError("full")
    with pytest.raises(StoreError):
        await taking.taker.take([taking.record(0, entity="web-1")])
    taking.journal.error = None
    assert (await taking.taker.take([taking.record(0, entity="web-2")])).counts == {Fate.TAKEN: 1}


async def test_stale_entities_go_with_the_image_that_lacks_them() -> None:
    taking = Taking(compact_bytes=2, rules=WindowRules(RULES.metrics, length=6, forget_after_s=5 * STEP_S))
    await taking.taker.take([taking.record(0, entity="old"), taking.record(10, entity="new")])
    await taking.compacted(1)
    assert taking.journal.images[0].entities == ("new",)
    assert taking.taker.table.entities == ("new",)


async def test_stale_entities_stay_when_the_image_cannot_be_written_and_it_is_not_tried_at_once_again() -> None:
    taking = Taking(compact_bytes=2, rules=WindowRules(RULES.metrics, length=6, forget_after_s=5 * STEP_S))
    taking.journal.image_error = StoreError("full")
    await taking.taker.take([taking.record(0, entity="old"), taking.record(10, entity="new")])
    await taking.compacted(1)
    assert "old" in taking.taker.table
    taking.journal.image_error = None
    await taking.taker.take([taking.record(11, entity="new")])
    assert taking.journal.n_compactions == 1
    await taking.taker.take([taking.record(12, entity="new")])
    await taking.compacted(2)
    assert taking.taker.table.entities == ("new",)


class FakeArchive:
    def __init__(self, taking: Taking) -> None:
        self.taking = taking
        self.cpus: list[float] = []
        self.journalled: list[int] = []

    def append(self, records: Sequence[Record]) -> None:
        self.journalled.append(sum(map(len, self.taking.journal.appended)))
        self.cpus += [record.values["cpu"] for record in records]


async def test_what_says_something_new_is_archived_after_it_was_journalled() -> None:
    taking = Taking()
    archive = FakeArchive(taking)
    taking.taker = ObservationTaker(
        WindowTable(RULES), taking.journal, RULES, clock=taking.clock, compact_bytes=1000, archive=archive
    )
    newest, older = taking.record(9, 9), taking.record(8, 8)
    await taking.taker.take([newest, newest, older, taking.record(9, 7), taking.record(0, 1), taking.record(9, 500)])
    async with asyncio.timeout(5):
        while taking.taker._writing is not None:
            await asyncio.sleep(0.001)
    assert archive.cpus == [9, 8, 7]  # neither the duplicate, nor what came too late, nor what was refused
    assert archive.journalled == [5]


async def test_what_the_journal_did_not_take_is_not_archived() -> None:
    taking = Taking()
    archive = FakeArchive(taking)
    taking.journal.error = StoreError("disk full")
    taking.taker = ObservationTaker(
        WindowTable(RULES), taking.journal, RULES, clock=taking.clock, compact_bytes=1000, archive=archive
    )
    with pytest.raises(StoreError):
        await taking.taker.take([taking.record(0)])
    assert archive.cpus == []
