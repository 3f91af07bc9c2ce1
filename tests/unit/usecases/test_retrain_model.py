import pytest

from serve_app.domain.errors import UnavailableError
from serve_app.domain.retraining import RetrainOutcome, RetrainRules, RetrainState
from serve_app.domain.windows import Fate, Metric, WindowRules
from serve_app.usecases.retrain_model import JobState, ModelRetrainer, new_records
from tests.fakes.clock import FakeClock
from tests.fakes.jobs import FakeJobs, FakeRetrainMemory, FakeRetrainMeter
from tests.fakes.window_reader import FakeWindowReader

RULES = RetrainRules(after_records=3, min_interval_s=10, timeout_s=1000)


class Loop:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = FakeWindowReader(WindowRules((Metric("cpu"),)), now_s=self.clock.now_s())
        self.jobs, self.memory, self.meter = FakeJobs(), FakeRetrainMemory(), FakeRetrainMeter()
        self.step = 0
        self.retrainer = self.started()

    def started(self) -> ModelRetrainer:
        """Return what a process that has just started would have."""
        return ModelRetrainer(
            "tft", RULES, store=self.store, jobs=self.jobs, memory=self.memory, clock=self.clock, meter=self.meter
        )

    async def feed(self, n: int) -> None:
        for _ in range(n):
            self.step += 1
            at_s = self.clock.now_s() - 100_000 + self.step * 300
            await self.store.observe(f'{{"server": "a", "time": {at_s}, "cpu": 1}}'.encode(), b"application/json")

    async def pass_time(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        await self.retrainer.tick()

    @property
    def state(self) -> RetrainState:
        assert self.memory.text is not None
        return RetrainState.model_validate_json(self.memory.text)


@pytest.fixture
def loop() -> Loop:
    return Loop()


async def test_a_training_starts_once_and_its_end_begins_a_new_count(loop: Loop) -> None:
    await loop.feed(2)
    await loop.pass_time()
    assert not loop.jobs.jobs
    await loop.feed(1)
    await loop.pass_time()
    await loop.feed(5)
    await loop.pass_time(20)
    assert len(loop.jobs.jobs) == 1
    loop.jobs.end(JobState.SUCCEEDED)
    await loop.pass_time()
    assert loop.meter.outcomes == {RetrainOutcome.SUCCEEDED: 1}
    assert loop.state.records == 5
    await loop.pass_time(1)
    assert len(loop.jobs.jobs) == 2


async def test_a_failure_is_told_and_waited_after(loop: Loop) -> None:
    await loop.feed(3)
    await loop.pass_time()
    loop.jobs.end(JobState.FAILED, "no data")
    await loop.pass_time()
    status = loop.retrainer.status
    assert status is not None
    assert (status.outcome, status.error, status.job, status.records) == (RetrainOutcome.FAILED, "no data", None, 3)
    await loop.pass_time(59)
    assert len(loop.jobs.jobs) == 1
    await loop.pass_time(1)
    assert len(loop.jobs.jobs) == 2


async def test_a_training_that_takes_too_long_is_stopped(loop: Loop) -> None:
    await loop.feed(3)
    await loop.pass_time()
    await loop.pass_time(1001)
    assert loop.jobs.stopped == list(loop.jobs.jobs)
    assert loop.meter.outcomes == {RetrainOutcome.TIMED_OUT: 1}
    assert loop.state.error == "expected the training to end within 1000 s"


async def test_a_restart_watches_the_training_that_runs_and_starts_no_other(loop: Loop) -> None:
    await loop.feed(3)
    await loop.pass_time()
    loop.retrainer = loop.started()
    await loop.pass_time(5)
    assert len(loop.jobs.jobs) == 1
    loop.jobs.end(JobState.SUCCEEDED)
    await loop.pass_time()
    assert (loop.state.records, loop.state.outcome) == (0, RetrainOutcome.SUCCEEDED)


async def test_a_training_that_went_down_with_its_cluster_counts_as_failed(loop: Loop) -> None:
    await loop.feed(3)
    await loop.pass_time()
    loop.jobs.jobs.clear()
    await loop.pass_time()
    assert loop.state.error == "the training was cut off: its job is not known any more"


async def test_a_start_without_an_answer_is_looked_for_and_not_repeated(loop: Loop) -> None:
    await loop.feed(3)
    loop.jobs.answer_is_lost = True
    await loop.pass_time()
    await loop.pass_time(5)
    assert loop.state.job in loop.jobs.jobs
    loop.jobs.end(JobState.SUCCEEDED)
    await loop.pass_time()
    assert loop.meter.outcomes == {RetrainOutcome.SUCCEEDED: 1}


async def test_a_start_that_nobody_took_fails_with_its_reason(loop: Loop) -> None:
    await loop.feed(3)
    loop.jobs.is_away = True
    await loop.pass_time()
    await loop.pass_time()
    assert loop.state.job is not None
    loop.jobs.is_away = False
    await loop.pass_time()
    assert loop.state.error == "the training could not be started: nobody answers"


async def test_while_the_store_is_away_nothing_is_counted_and_a_training_goes_on(loop: Loop) -> None:
    await loop.feed(3)
    await loop.pass_time()
    loop.store.error = UnavailableError("away")
    loop.jobs.end(JobState.SUCCEEDED)
    await loop.pass_time()
    assert loop.state.records == 0
    assert loop.meter.new_records == 3  # as of the last tick, before the training ended


def test_only_records_that_say_something_new_count() -> None:
    assert new_records({Fate.TAKEN: 1, Fate.OUT_OF_ORDER: 2, Fate.REPLACED: 4, Fate.DUPLICATE: 8, Fate.LATE: 16}) == 7
