"""Trains a family anew when enough was observed: a job elsewhere does it, one at a time, and nothing waits for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import structlog

from serve_app.domain.errors import ServeAppError, UnavailableError
from serve_app.domain.retraining import (
    RetrainAction,
    RetrainOutcome,
    RetrainRules,
    RetrainState,
    RetrainStatus,
    Seen,
    begun,
    counted,
    decide,
    ended,
)
from serve_app.domain.windows import Fate
from serve_app.usecases.ports import Clock
from serve_app.usecases.take_observations import ARCHIVED
from serve_app.usecases.window_ports import WindowReader

log = structlog.get_logger(__name__)


class JobState(StrEnum):
    """Where a job is. `UNKNOWN`: nobody knows it, so it was never started, or whoever ran it is gone."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class JobReport:
    """Where a job is, and the last that it said."""

    state: JobState
    said: str | None = None


class Jobs(Protocol):
    """Runs the training of one family, somewhere else. Calls end within seconds; all raise UnavailableError."""

    async def start(self, job_id: str) -> None:
        """Begin a job under a name of ours; after an error it may have begun nevertheless."""
        ...

    async def report(self, job_id: str) -> JobReport:
        """Return where a job is."""
        ...

    async def stop(self, job_id: str) -> None:
        """End a job and what it started; one that has ended already, or is not known, changes nothing."""
        ...


class RetrainMemory(Protocol):
    """Keeps a document where a restart finds it."""

    async def read(self) -> RetrainState | None:
        """Return the document, or None where there is none that can be read."""
        ...

    async def write(self, state: RetrainState) -> None:
        """Replace the document; where that fails it is logged, and no more."""
        ...


class RetrainMeter(Protocol):
    """Counts trainings."""

    def count_retraining(self, family: str, outcome: RetrainOutcome) -> None:
        """Count a training that ended."""
        ...

    def set_new_records(self, family: str, n: int) -> None:
        """Say how many records came since the last good training began."""
        ...


class ModelRetrainer:
    """Trainings of one family. Call `tick` every second or so; nothing else happens by itself."""

    def __init__(
        self,
        family: str,
        rules: RetrainRules,
        *,
        store: WindowReader,
        jobs: Jobs,
        memory: RetrainMemory,
        clock: Clock,
        meter: RetrainMeter,
    ) -> None:
        self._family = family
        self._rules = rules
        self._store = store
        self._jobs = jobs
        self._memory = memory
        self._clock = clock
        self._meter = meter
        self._state: RetrainState | None = None
        self._start_error: str | None = None

    @property
    def status(self) -> RetrainStatus | None:
        """What is told of the trainings; None before the first `tick`."""
        return None if self._state is None else RetrainStatus.of(self._state, self._rules)

    async def tick(self) -> None:
        """Count what came in, and start, watch or stop a training."""
        state = self._state
        if state is None:
            state = self._state = await self._memory.read() or RetrainState()
        seen = await self._look()
        if seen is not None:
            await self._save(counted(state, seen))
        self._meter.set_new_records(self._family, self._known.records)
        match decide(self._known, None, self._rules, now_s=self._clock.now_s()):
            case RetrainAction.START:
                await self._start()
            case RetrainAction.LOOK:
                await self._watch()
            case RetrainAction.STOP:
                await self._stop()
            case RetrainAction.WAIT:
                pass

    @property
    def _known(self) -> RetrainState:
        assert self._state is not None, "tick() reads it first"
        return self._state

    async def _look(self) -> Seen | None:
        try:
            status = await self._store.status()
        except ServeAppError:  # the store says so itself
            return None
        return Seen(status.started_at_s, new_records(status.counts))

    async def _save(self, state: RetrainState) -> None:
        if state != self._state:
            self._state = state
            await self._memory.write(state)

    async def _start(self) -> None:
        """Note the job first: after a kill in between it is found to be unknown, and tried again."""
        now_s = self._clock.now_s()
        job = f"retrain-{self._family}-{int(now_s * 1000)}"
        await self._save(begun(self._known, job, now_s=now_s))
        log.info("retraining started", family=self._family, job=job, records=self._known.records)
        try:
            await self._jobs.start(job)
        except UnavailableError as error:  # it may have begun; the next look tells
            self._start_error = f"the training could not be started: {error}"
            log.warning("retraining perhaps not started", family=self._family, job=job, reason=str(error))

    async def _watch(self) -> None:
        assert self._known.job is not None
        try:
            report = await self._jobs.report(self._known.job)
        except UnavailableError as error:
            log.warning("retraining not looked at", family=self._family, reason=str(error))
            return
        match report.state:
            case JobState.RUNNING:
                pass
            case JobState.SUCCEEDED:
                await self._end(RetrainOutcome.SUCCEEDED, None)
            case JobState.FAILED:
                await self._end(RetrainOutcome.FAILED, report.said or "the training failed and did not say why")
            case JobState.UNKNOWN:
                why = self._start_error or "the training was cut off: its job is not known any more"
                await self._end(RetrainOutcome.FAILED, why)

    async def _stop(self) -> None:
        assert self._known.job is not None
        try:
            await self._jobs.stop(self._known.job)
        except UnavailableError as error:
            log.warning("retraining not stopped", family=self._family, reason=str(error))
            return
        await self._end(RetrainOutcome.TIMED_OUT, f"expected the training to end within {self._rules.timeout_s:g} s")

    async def _end(self, outcome: RetrainOutcome, error: str | None) -> None:
        before, self._start_error = self._known, None
        now_s = self._clock.now_s()
        await self._save(ended(before, outcome, error, now_s=now_s))
        self._meter.count_retraining(self._family, outcome)
        seconds = round(now_s - (before.began_at_s or now_s), 1)
        if outcome is RetrainOutcome.SUCCEEDED:
            log.info("retraining ended", family=self._family, job=before.job, outcome=outcome.value, seconds=seconds)
        else:
            log.error(
                "retraining ended", family=self._family, job=before.job, outcome=outcome.value, seconds=seconds,
                reason=error, next_try_s=round((RetrainStatus.of(self._known, self._rules).next_start_s or 0) - now_s),
            )  # fmt: skip


def new_records(counts: Mapping[Fate, int]) -> int:
    """Return how many of these records a training has not seen."""
    return sum(counts.get(fate, 0) for fate in ARCHIVED)
