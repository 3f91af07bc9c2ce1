import asyncio

import numpy as np
import pytest

from serve_app.domain.labels import PredictionId
from serve_app.usecases import remember_predictions, write_behind
from serve_app.usecases.remember_predictions import LabelSettings, PredictionMemory
from tests.fakes.clock import FakeClock
from tests.fakes.prediction_log import FakePredictionLog
from tests.labelled import LabelCounts, answer, target


class Kept:
    def __init__(self, **settings: float) -> None:
        self.log = FakePredictionLog()
        self.counts = LabelCounts()
        self.draw = 0.0
        self.clock = FakeClock()
        self.memory = PredictionMemory(
            {"forecaster": (self.log, LabelSettings(**settings))},  # type: ignore[arg-type]  # sample and remember
            self.counts, now_s=self.clock.now_s, draw=lambda: self.draw,
        )  # fmt: skip


async def test_an_answer_is_written_as_it_was_and_stays_in_memory() -> None:
    kept = Kept()
    kept.memory.offer(1, target(), answer(3.5))
    kept.memory.offer(4, target(version="v2", variant="canary"), answer(4.5, 5.5))
    assert kept.memory.is_waiting(4)
    assert not kept.memory.is_waiting(3)
    await kept.memory.write()
    assert [(str(one), record.rows, record.by.version) for one, record in kept.log.kept.items()] == [
        (f"{kept.memory.prefix}-1", [[3.5]], "v1"),
        (f"{kept.memory.prefix}-4", [[4.5], [5.5]], "v2"),
    ]
    found = kept.memory.recall(4)
    assert found is not None
    assert found[1] is kept.log.kept[PredictionId(kept.memory.prefix, 4)]
    assert found[1].by.columns == (("y", "float64"),)
    assert not kept.memory.is_waiting(4)
    assert (kept.counts.kept, kept.counts.dropped, kept.counts.kept_bytes) == (2, 0, 200)


async def test_memory_keeps_the_newest_rows_only() -> None:
    kept = Kept(remember=3)
    for number in range(1, 7):
        kept.memory.offer(number, target(), answer(1.0, 2.0))
        await kept.memory.write()
    assert [number for number in range(1, 9) if kept.memory.recall(number) is not None] == [6]
    assert len(kept.log.kept) == 6


async def test_what_does_not_fit_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remember_predictions, "MAX_WAITING", 3)
    kept = Kept()
    for number in range(1, 9):
        kept.memory.offer(number, target(), answer(1.0))
    await kept.memory.write()
    assert (kept.counts.kept, kept.counts.dropped) == (3, 5)
    kept.memory.offer(9, target(), answer(1.0))
    await kept.memory.write()
    assert (kept.counts.kept, kept.counts.dropped) == (4, 5)


async def test_large_answers_count_by_their_values() -> None:
    kept = Kept()
    for number in range(1, 5):
        kept.memory.offer(number, target(), np.zeros((600_000, 1)))
    await kept.memory.write()
    assert (kept.counts.kept, kept.counts.dropped) == (2, 2)


async def test_a_full_disk_drops_predictions_and_nothing_else() -> None:
    kept = Kept()
    kept.log.is_full = True
    kept.memory.offer(1, target(), answer(1.0))
    await kept.memory.write()
    assert (kept.counts.kept, kept.counts.dropped) == (0, 1)
    assert kept.memory.recall(1) is None
    kept.log.is_full = False
    kept.memory.offer(2, target(), answer(1.0))
    await kept.memory.write()
    assert kept.counts.kept == 1


async def test_only_what_is_sampled_and_of_our_families_is_kept() -> None:
    kept = Kept(sample=0.25)
    for number, kept.draw in enumerate((0.2, 0.25, 0.9), start=1):
        kept.memory.offer(number, target(), answer(1.0))
    kept.draw = 0.0
    kept.memory.offer(4, target("iris"), answer(1.0))
    kept.memory.offer(5, target(has_tensors=True), answer(1.0))
    await kept.memory.write()
    assert [one.number for one in kept.log.kept] == [1]


async def test_the_task_writes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_behind, "WRITE_EVERY_S", 0.001)
    kept = Kept()
    kept.memory.offer(1, target(), answer(1.0))
    running = asyncio.create_task(kept.memory.run())
    async with asyncio.timeout(30):
        while not kept.log.kept:
            await asyncio.sleep(0)
    running.cancel()
