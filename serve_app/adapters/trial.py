"""Tries bundles in worker processes that may be killed, so that no serving process is the first to load one."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO

import structlog

from serve_app.adapters import trial_worker
from serve_app.adapters.child_environment import child_environment
from serve_app.adapters.trial_messages import READY_LINE, ReplayTask, TrialAnswer, TrialJob, Verdict
from serve_app.config import MlflowModelsConfig
from serve_app.config_sources import SourceConfig
from serve_app.domain.errors import SourceError, TrialError, UnknownFamilyError
from serve_app.domain.recording import NothingRecordedError, ReplayReport
from serve_app.domain.reload import VersionRef
from serve_app.usecases.load_model import LoadPolicy
from serve_app.usecases.ports import TrialLimits

MAX_AT_ONCE = 2
"""Trials of different families at the same time; one family has one at a time."""

NICENESS = 10
"""Of the code of a bundle on trial. With 19 a model that loads in 0.2 s takes a quarter of a minute beside busy
processes; with 0 it takes as much of the processors as they do."""

_START_TIMEOUT_S = 120.0
_ENDING_TIMEOUT_S = 5.0
_GRACE_S = 10.0
_MAX_LINE_BYTES = 16 << 20
"""A replay tells of up to 20 inputs of up to 2,000 values."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """Where the bundles of a family lie, what the operator asks of them, and what models of MLflow may be made of."""

    source: SourceConfig
    policy: LoadPolicy
    mlflow: MlflowModelsConfig = field(default_factory=MlflowModelsConfig)


class SubprocessTrial:
    """A `Trial` over worker processes of this machine. Lives on one event loop; nothing is started before it is needed.

    One worker is kept with all imports done, and used again: each job runs in a fork of it. A second one lives
    only while two families are tried at once.
    """

    def __init__(self, settings: Mapping[str, TrialSettings], *, niceness: int = NICENESS) -> None:
        self._settings = dict(settings)
        self._niceness = niceness
        self._turns = {family: asyncio.Lock() for family in settings}
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._starting = asyncio.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def warm(self) -> None:
        """Start a worker ahead, unless there is one.

        Raises:
            TrialError: It could not be started; `run` will try again.
        """
        if not self._idle and not self._busy:
            self._put_back(await self._take())

    async def run(self, family: str, version: str, limits: TrialLimits) -> VersionRef:
        """Fetch, verify, load, warm up and check a version in a worker, and return what was tried.

        Cancelling it kills the trial.

        Raises:
            TrialError: The bundle was refused, hung, crashed or took too much; the message says which.
            SourceError: The source cannot be read now, or has no such version.
            UnknownFamilyError: No such family.
        """
        job = self._job(family, version, limits)
        answer, seconds = await self._held(family, job)
        return _outcome(job, answer, seconds=seconds)

    async def replay(self, family: str, version: str, limits: TrialLimits, task: ReplayTask) -> ReplayReport:
        """Try a version and run it on recorded requests; `limits` are of both together. Cancelling it kills it.

        Raises:
            NothingRecordedError: There are no recorded requests; nothing was loaded.
            TrialError, SourceError, UnknownFamilyError: As `run`.
        """
        job = self._job(family, version, limits, task)
        answer, seconds = await self._held(family, job)
        if answer.verdict is Verdict.NOTHING_RECORDED:
            raise NothingRecordedError(answer.message)
        _outcome(job, answer, seconds=seconds)
        if answer.replayed is None:
            raise TrialError(f"version {version!r} answered nothing", blames_bundle=False)
        return answer.replayed

    def _job(self, family: str, version: str, limits: TrialLimits, task: ReplayTask | None = None) -> TrialJob:
        if family not in self._settings:
            raise UnknownFamilyError(family, list(self._settings))
        return _job(version, self._settings[family], limits, self._niceness, task)

    async def _held(self, family: str, job: TrialJob) -> tuple[TrialAnswer, float]:
        """Have a job done when it is its turn; return the answer, and the seconds that it took."""
        async with self._turns[family], self._slots:
            worker = await self._take()
            started_s = time.monotonic()
            self._busy.add(worker)
            try:
                answer = await worker.hold(job)
            except BaseException:
                await asyncio.shield(self._retire(worker))
                raise
            self._put_back(worker)
        return answer, time.monotonic() - started_s

    async def close(self) -> None:
        """End all workers; a trial that is under way fails."""
        self._is_closed = True
        for worker in [*self._idle, *self._busy]:
            self._retire(worker)
        async with self._starting:
            while self._retiring:
                await asyncio.gather(*self._retiring)

    async def _take(self) -> "_Worker":
        async with self._starting:
            while True:
                if self._is_closed:
                    raise TrialError("the trial is closed", blames_bundle=False)
                if not self._idle:
                    self._idle.append(await _Worker.start())
                worker = self._idle.pop()
                if worker.is_alive and not self._is_closed:
                    return worker
                await asyncio.shield(self._retire(worker))

    def _put_back(self, worker: "_Worker") -> None:
        self._busy.discard(worker)
        if self._idle or self._is_closed:
            self._retire(worker)
        else:
            self._idle.append(worker)

    def _retire(self, worker: "_Worker") -> asyncio.Task[None]:
        self._busy.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        task = asyncio.create_task(worker.end())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task


class _Worker:
    """One worker process and the two pipes to it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
        self._transport: asyncio.ReadTransport | None = None
        self._is_ready = False

    @classmethod
    async def start(cls) -> "_Worker":
        """Start a worker and wait until it has imported everything."""
        try:
            # Not through asyncio: its ways to learn that a child ended depend on the event loop and on the thread.
            worker = cls(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", trial_worker.__name__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                    process_group=0,
                    env=child_environment(),
                )
            )
        except OSError as error:
            raise TrialError(f"the trial worker could not be started: {error}", blames_bundle=False) from error
        try:
            loop = asyncio.get_running_loop()
            worker._transport, _ = await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(worker._reader), worker._process.stdout
            )
            async with asyncio.timeout(_START_TIMEOUT_S):
                line = await worker._reader.readline()
        except TimeoutError as error:
            await asyncio.shield(worker.end())
            message = f"the trial worker could not be started: it was not ready within {_START_TIMEOUT_S:g} s"
            raise TrialError(message, blames_bundle=False) from error
        except BaseException:
            await asyncio.shield(worker.end())
            raise
        if line != READY_LINE:
            await asyncio.shield(worker.end())
            message = f"the trial worker could not be started: it ended with {worker._process.returncode}, see its log"
            raise TrialError(message, blames_bundle=False)
        worker._is_ready = True
        return worker

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None and not self._reader.at_eof()

    async def hold(self, job: TrialJob) -> TrialAnswer:
        """Have one job done.

        Raises:
            TrialError: The worker went away or does not answer.
        """
        patience_s = job.timeout_s * trial_worker.BUSY_FACTOR + _GRACE_S
        try:
            async with asyncio.timeout(patience_s):
                self._input.write(job.model_dump_json().encode() + b"\n")
                line = await self._reader.readline()
        except (TimeoutError, OSError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise TrialError(f"the trial worker does not answer: {reason}", blames_bundle=False) from error
        if not line:
            raise TrialError("the trial worker ended during the trial", blames_bundle=False)
        return TrialAnswer.model_validate_json(line)

    async def end(self) -> None:
        """End the process and all it has started, and let go of the pipes. It may be called again."""
        self._input.close()
        await asyncio.to_thread(self._wait_for_end)
        if self._transport is not None:
            self._transport.close()
        elif self._process.stdout is not None:
            self._process.stdout.close()

    def _wait_for_end(self) -> None:
        if self._is_ready:
            # It kills the job and what that has started as soon as its input ends, tidies up and ends itself.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDING_TIMEOUT_S)
        self._process.kill()
        self._process.wait()

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin


def _job(
    version: str, settings: TrialSettings, limits: TrialLimits, niceness: int, task: ReplayTask | None
) -> TrialJob:
    policy = settings.policy
    return TrialJob(
        family=policy.family,
        version=version,
        models_type=policy.models_type,
        default_loader=policy.default_loader,
        allowed_pickle_loaders=policy.allowed_pickle_loaders,
        source=settings.source,
        mlflow=settings.mlflow,
        windows=policy.windows,
        timeout_s=limits.timeout_s,
        memory_bytes=limits.memory_bytes,
        niceness=niceness,
        replay=task,
    )


def _outcome(job: TrialJob, answer: TrialAnswer, *, seconds: float) -> VersionRef:
    facts = {"family": job.family, "version": job.version, "seconds": round(seconds, 3)}
    if answer.verdict is Verdict.PASSED and answer.tried is not None:
        log.info("trial passed", load_seconds=round(answer.load_seconds, 3), bytes=answer.artifact_bytes, **facts)
        return answer.tried
    log.warning("trial not passed", verdict=answer.verdict, reason=answer.message, output=answer.output, **facts)
    if answer.verdict is Verdict.SOURCE_ERROR:
        raise SourceError(answer.message)
    if answer.verdict is Verdict.NOT_HELD:
        raise TrialError(f"version {job.version!r} could not be tried: {answer.message}", blames_bundle=False)
    raise TrialError(f"version {job.version!r} failed its trial: {answer.message}")
