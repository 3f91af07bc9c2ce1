import asyncio
from pathlib import Path
from typing import Any

import pytest

from serve_app.adapters.prediction_log import PredictionFiles
from serve_app.domain.errors import OverloadedError
from serve_app.domain.evidence import Measurement
from serve_app.domain.exposure import GatewayReport
from serve_app.domain.labels import Fate, GivenLabel, Label, Predicted, PredictionId
from serve_app.domain.statistics import Moments
from serve_app.usecases.join_labels import MAX_AT_ONCE, MAX_SALTS, ROWS_AT_A_TIME, Joined, JoinLabels, LossBook
from serve_app.usecases.label_ports import PredictionLog
from serve_app.usecases.remember_predictions import LabelSettings, PredictionMemory
from tests.fakes.clock import FakeClock
from tests.fakes.prediction_log import FakePredictionLog
from tests.labelled import LabelCounts, answer, target


class Gateway:
    """One gateway; several may share logs."""

    def __init__(self, clock: FakeClock, **logs: PredictionLog) -> None:
        self.counts = LabelCounts()
        self.memory = PredictionMemory(
            {family: (log, LabelSettings()) for family, log in logs.items()}, self.counts, now_s=clock.now_s
        )
        self.joiner = JoinLabels(self.memory, self.counts, clock=clock)
        self._number = 0

    def predict(self, *values: float, **facts: Any) -> PredictionId:
        self._number += 1
        self.memory.offer(self._number, target(**facts), answer(*values))
        return PredictionId(self.memory.prefix, self._number)

    async def label(self, one: PredictionId, label: Label | list[Label], **facts: Any) -> dict[str, int]:
        return told(await self.joiner.join([(0, GivenLabel(one, label, **facts))]))


def told(joined: Joined) -> dict[str, int]:
    return {fate.value: n for fate, n in joined.counts.items() if n}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_a_label_joins_the_prediction_that_was_just_made(clock: FakeClock) -> None:
    gateway = Gateway(clock, forecaster=FakePredictionLog())
    one = gateway.predict(3.5)
    clock.advance(90)
    assert await gateway.label(one, 3.0) == {"joined": 1}
    assert gateway.counts.losses == [("forecaster", "v1", "stable", "absolute_error", 0.5)]
    assert gateway.counts.labels == {("forecaster", "v1", Fate.JOINED): 1}
    assert gateway.counts.delays == [90.0]


async def test_a_second_label_is_a_duplicate_and_changes_nothing(clock: FakeClock) -> None:
    gateway = Gateway(clock, forecaster=FakePredictionLog())
    one = gateway.predict(3.5)
    assert await gateway.label(one, 3.0) == {"joined": 1}
    assert await gateway.label(one, 9.0) == {"duplicate": 1}
    both = await gateway.joiner.join([(0, GivenLabel(gateway.predict(1.0), 1.0))] * 2)
    assert told(both) == {"joined": 1, "duplicate": 1}
    assert [loss[-1] for loss in gateway.counts.losses] == [0.5, 0.0]


async def test_a_large_batch_lets_others_have_their_turn(clock: FakeClock) -> None:
    gateway = Gateway(clock, forecaster=FakePredictionLog())
    one = gateway.predict(*range(10 * ROWS_AT_A_TIME))
    zeros: list[Label] = [0.0 for _ in range(10 * ROWS_AT_A_TIME)]
    joining = asyncio.create_task(gateway.label(one, zeros))
    seen = set()
    while not joining.done():
        await asyncio.sleep(0)
        seen.add(len(gateway.counts.losses))
    assert await joining == {"joined": 10 * ROWS_AT_A_TIME}
    assert len(seen) > 10


async def test_rows_are_labelled_each_or_together(clock: FakeClock) -> None:
    gateway = Gateway(clock, forecaster=FakePredictionLog())
    one = gateway.predict(1.0, 2.0, 3.0)
    assert await gateway.label(one, 2.5, row=1) == {"joined": 1}
    assert await gateway.label(one, [1.0, 2.0, 5.0]) == {"joined": 2, "duplicate": 1}
    assert [loss[-1] for loss in gateway.counts.losses] == [0.5, 0.0, 2.0]


async def test_a_label_that_does_not_fit_is_refused_and_may_come_again(clock: FakeClock) -> None:
    gateway = Gateway(clock, forecaster=FakePredictionLog())
    one, two = gateway.predict(1.0), gateway.predict(1.0, 2.0)
    assert await gateway.label(one, "high") == {"refused": 1}
    assert await gateway.label(one, 1.0) == {"joined": 1}
    joined = await gateway.joiner.join([(3, GivenLabel(two, [1.0])), (4, GivenLabel(two, [1.0, "high"]))])
    assert told(joined) == {"joined": 1, "refused": 2}
    assert [(problem.place, problem.reason) for problem in joined.problems] == [
        (3, "expected 2 labels, one for each row, got 1"),
        (4, "row 1: expected a number, as predictions are, got the string 'high'"),
    ]


async def test_unknown_and_expired_labels_are_told_apart(clock: FakeClock) -> None:
    log = FakePredictionLog()
    gateway, other = Gateway(clock, forecaster=log), Gateway(clock, forecaster=log)
    one = gateway.predict(1.0)
    await gateway.memory.write()
    log.expire()
    assert await other.label(one, 1.0) == {"expired": 1}
    assert await gateway.label(one, 1.0) == {"expired": 1}
    assert await other.label(PredictionId("f" * 12, 1), [1.0, 2.0]) == {"unknown": 2}
    assert other.counts.labels == {("forecaster", "", Fate.EXPIRED): 1, ("", "", Fate.UNKNOWN): 2}


async def test_another_gateway_joins_weeks_later_after_a_restart(clock: FakeClock, tmp_path: Path) -> None:
    def gateway() -> Gateway:
        return Gateway(clock, forecaster=files("forecaster"), iris=files("iris"))

    def files(family: str) -> PredictionFiles:
        return PredictionFiles(tmp_path / family, keep_days=14, max_bytes=1 << 20, now_s=clock.now_s)

    first = gateway()
    one, iris = first.predict(3.5), first.predict(1.0, family="iris", dtype="int64", version="v9")
    await first.memory.write()
    clock.advance(13 * 86_400)
    second, third = gateway(), gateway()
    assert await second.label(one, 3.0) == {"joined": 1}
    assert await third.label(one, 3.0) == {"duplicate": 1}
    assert await third.label(iris, 2) == {"joined": 1}
    assert third.counts.losses == [("iris", "v9", "stable", "zero_one", 1.0)]
    clock.advance(2 * 86_400)
    assert await second.label(one, 3.0) == {"expired": 1}


async def test_what_is_in_memory_is_not_sought_on_the_disk(clock: FakeClock) -> None:
    log = FakePredictionLog()
    gateway = Gateway(clock, forecaster=log)
    assert await gateway.label(gateway.predict(1.0), 1.0) == {"joined": 1}
    assert log.n_finds == 0


async def test_losses_become_evidence_of_the_split_that_drew(clock: FakeClock) -> None:
    gateway = Gateway(clock, forecaster=FakePredictionLog())
    for value, facts in (
        (1.0, {"reason": "hash"}),
        (2.0, {"reason": "weight"}),
        (5.0, {"reason": "cookie", "variant": "canary", "version": "v2"}),
        (7.0, {"reason": "segment", "variant": "canary", "version": "v2"}),
        (8.0, {"reason": "forced", "variant": "canary", "version": "v2"}),
        (9.0, {"reason": "default", "salt": ""}),
    ):
        assert await gateway.label(gateway.predict(value, **facts), 0.0) == {"joined": 1}
    book = gateway.joiner.book
    assert book.losses() == {
        "forecaster": {
            "salt-1": {
                "stable": {"absolute_error": Moments.of([1.0, 2.0])},
                "canary": {"absolute_error": Moments.of([5.0])},
            }
        }
    }
    assert book.losses(named=True)["forecaster"]["salt-1"] == {"canary": {"absolute_error": Moments.of([7.0])}}
    assert len(gateway.counts.losses) == 6


async def test_losses_stand_beside_what_the_gateway_counted() -> None:
    book = LossBook()
    book.add("f", Predicted("v1", "stable", "hash", "now", ()), {"zero_one": 1.0})
    book.add("f", Predicted("v1", "stable", "hash", "over", ()), {"zero_one": 0.0})
    counted = Measurement(requests=5, latency_s=Moments.of([1.0]))
    report = GatewayReport(gateway="g", families={"f": {"now": {"stable": counted, "canary": counted}}})
    merged = book.merged_into(report)
    assert merged.families["f"]["now"] == {
        "stable": counted.model_copy(update={"means": {"zero_one": Moments.of([1.0])}}),
        "canary": counted,
    }
    assert merged.families["f"]["over"] == {"stable": Measurement(means={"zero_one": Moments.of([0.0])})}
    assert report.families["f"]["now"]["stable"].means == {}
    assert GatewayReport.model_validate_json(merged.model_dump_json()) == merged


def test_the_book_forgets_the_split_that_got_no_label_for_longest() -> None:
    book = LossBook()
    for i in range(MAX_SALTS + 5):
        for salt in ("kept", f"salt-{i}"):
            book.add("f", Predicted("v1", "stable", "hash", salt, ()), {"zero_one": 1.0})
    assert len(book.losses()["f"]) == MAX_SALTS
    assert book.losses()["f"]["kept"]["stable"]["zero_one"].count == MAX_SALTS + 5


async def test_too_many_batches_at_once_are_refused(clock: FakeClock) -> None:
    gateway = Gateway(clock, forecaster=FakePredictionLog())
    ones = [gateway.predict(1.0) for _ in range(MAX_AT_ONCE + 3)]
    answers = await asyncio.gather(*(gateway.label(one, 1.0) for one in ones), return_exceptions=True)
    assert sum(isinstance(one, OverloadedError) for one in answers) == 3
    assert await gateway.label(ones[-1], 1.0) == {"joined": 1}
