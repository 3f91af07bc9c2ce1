"""Trainings that a test ends by hand, and what is needed around them."""

from collections import Counter

from serve_app.domain.errors import UnavailableError
from serve_app.domain.retraining import RetrainOutcome, RetrainState
from serve_app.usecases.retrain_model import JobReport, JobState


class FakeJobs:
    """Keeps jobs by their names. While `is_away` every call fails;
    with `answer_is_lost` a start has its effect and fails nevertheless."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobReport] = {}
        self.stopped: list[str] = []
        self.is_away = False
        self.answer_is_lost = False

    async def start(self, job_id: str) -> None:
        self._answer()
        assert job_id not in self.jobs
        self.jobs[job_id] = JobReport(JobState.RUNNING)
        if self.answer_is_lost:
            raise UnavailableError("the answer was lost")

    async def report(self, job_id: str) -> JobReport:
        self._answer()
        return self.jobs.get(job_id, JobReport(JobState.UNKNOWN))

    async def stop(self, job_id: str) -> None:
        self._answer()
        self.stopped.append(job_id)

    def end(self, state: JobState, said: str | None = None) -> None:
        """End the only job that runs."""
        (job,) = [job for job, report in self.jobs.items() if report.state is JobState.RUNNING]
        self.jobs[job] = JobReport(state, said)

    def _answer(self) -> None:
        if self.is_away:
            raise UnavailableError("nobody answers")


class FakeRetrainMemory:
    """Keeps the state in memory, as JSON."""

    def __init__(self) -> None:
        self.text: str | None = None

    async def read(self) -> RetrainState | None:
        return None if self.text is None else RetrainState.model_validate_json(self.text)

    async def write(self, state: RetrainState) -> None:
        self.text = state.model_dump_json()


class FakeRetrainMeter:
    """Counts."""

    def __init__(self) -> None:
        self.outcomes: Counter[RetrainOutcome] = Counter()
        self.new_records = 0

    def count_retraining(self, family: str, outcome: RetrainOutcome) -> None:
        self.outcomes[outcome] += 1

    def set_new_records(self, family: str, n: int) -> None:
        self.new_records = n
