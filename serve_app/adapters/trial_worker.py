"""The process in which bundles are tried: `python -m serve_app.adapters.trial_worker`, started by `SubprocessTrial`.

It imports once what loaders need, then forks a process for each job it reads from its standard input, so that a trial
starts in milliseconds and costs no second import. The fork runs the bundle's code; this process never does. It watches,
kills what goes too far, and answers only once nothing of the job is left. When its input ends, so do all of them.

This guards against accidents, not against malice: the code of a bundle runs as the same user.
"""

import contextlib
import faulthandler
import gc
import math
import os
import re
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from serve_app.adapters.trial_confinement import (
    MAX_PROCESSES,
    Watch,
    adopt_orphans,
    confine,
    end_all,
    has_idle_time,
    hasten,
    lower_priority,
)
from serve_app.adapters.trial_messages import READY_LINE, ReplayTask, TrialAnswer, TrialJob, Verdict
from serve_app.domain.errors import ServeAppError, SourceError
from serve_app.domain.recording import NothingRecordedError, ReplayError, ReplayReport
from serve_app.domain.reload import VersionRef

if TYPE_CHECKING:
    from serve_app.config import MlflowModelsConfig
    from serve_app.usecases.load_model import LoadedModel
    from serve_app.usecases.ports import Loader

    MakeLoaders = Callable[[MlflowModelsConfig], Mapping[str, Loader]]

BUSY_FACTOR = 4
"""Time that a job spends waiting for a processor does not count, up to this many times its deadline in all."""

NICENESS = 5
"""Of the worker itself: its imports stand back behind requests, and still it wakes in time to stop a job."""

_INPUT, _OUTPUT, _ERRORS, _RESULT = 0, 1, 2, 3
_TICK_MS, _IDLE_TICK_MS, _ENDING_TICK_MS = 50, 1000, 5
_TREE_PERIOD_S = 0.5
_IDLE_LOOK_S = 0.05
_PATIENCE_S = 1.0
"""How long a job may wait for a processor that nobody else wants, before it is let compete for one."""
_READ_OUTPUT_BYTES, _KEPT_OUTPUT_CHARACTERS = 16_384, 4096
_MAX_MESSAGE = 16_384
_CHUNK_BYTES = 1 << 16


class _ParentGoneError(Exception):
    """Nobody waits for an answer any more."""


class _StoppedError(Exception):
    """The job went too far; the message says how. `blames_bundle` is False where the machine was too busy."""

    def __init__(self, message: str, *, blames_bundle: bool = True) -> None:
        self.blames_bundle = blames_bundle
        super().__init__(message)


class _Ends:
    """The end of one pipe that the job writes to; `is_open` until its last writer is gone."""

    def __init__(self, descriptor: int, keep_bytes: int | None = None) -> None:
        self.descriptor = descriptor
        self.is_open = True
        self.content = b""
        self._keep_bytes = keep_bytes
        os.set_blocking(descriptor, False)

    def read(self) -> None:
        """Take one chunk, if there is one: a job that floods the pipe has to wait for the next look."""
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self.descriptor, _CHUNK_BYTES)
            self.is_open = bool(chunk)
            self.content += chunk
            if self._keep_bytes is not None:
                self.content = self.content[-self._keep_bytes :]


def main() -> None:
    """Serve jobs until the standard input ends."""
    # Ray blocks and ignores some signals in its workers, and a new program inherits that.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    answers = os.dup(_OUTPUT)
    os.dup2(_ERRORS, _OUTPUT)
    parent_pid = os.getppid()
    lower_priority(NICENESS)
    adopt_orphans()
    with _temporary_directory():
        make_loaders = _loaders()
        gc.collect()
        gc.freeze()  # the forks share what is imported for as long as nobody writes to it
        try:
            _say(answers, READY_LINE)
            for line in _lines(parent_pid):
                with _temporary_directory():
                    answer = _hold(TrialJob.model_validate_json(line), make_loaders, parent_pid)
                _say(answers, answer.model_dump_json().encode() + b"\n")
        except (_ParentGoneError, BrokenPipeError):
            return


@contextlib.contextmanager
def _temporary_directory() -> Iterator[None]:
    """Have all temporary files of this process, and of those it starts, where they can be removed with them."""
    before = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix="trial-", ignore_cleanup_errors=True) as directory:
        tempfile.tempdir = os.environ["TMPDIR"] = directory
        try:
            yield
        finally:
            tempfile.tempdir = os.environ["TMPDIR"] = before


def _loaders() -> "MakeLoaders":
    # Imported here, after the priority is lowered: it takes seconds of processor time.
    import serve_app.adapters.loaders.mlflow_model
    import serve_app.adapters.loaders.sklearn_targets
    import serve_app.adapters.sources
    import serve_app.usecases.load_model  # noqa: F401  # imported for the forks
    from serve_app.adapters.loaders import make_loaders
    from serve_app.adapters.loaders.skops_import import skops_functions

    skops_functions()  # half a second that each trial of a skops file would take
    return make_loaders


def _lines(parent_pid: int) -> Iterator[bytes]:
    """Yield the lines of the standard input until it ends or the parent is gone."""
    poller = select.poll()
    poller.register(_INPUT, select.POLLIN)
    pending = b""
    while os.getppid() == parent_pid:
        if not poller.poll(_IDLE_TICK_MS):
            continue
        chunk = os.read(_INPUT, _CHUNK_BYTES)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        yield from lines


def _say(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]


def _hold(job: TrialJob, make_loaders: "MakeLoaders", parent_pid: int) -> TrialAnswer:
    """Run a job in a fork and return what came of it, when all its processes are gone.

    Raises:
        _ParentGoneError: The trial was given up meanwhile.
    """
    result_read, result_write = os.pipe()
    output_read, output_write = os.pipe()
    sys.stdout.flush()
    worker_pid = os.getpid()
    job_pid = os.fork()
    if job_pid == 0:
        _be_the_job(job, make_loaders, worker_pid=worker_pid, result=result_write, output=output_write)
    os.close(result_write)
    os.close(output_write)
    result, output = _Ends(result_read), _Ends(output_read, _READ_OUTPUT_BYTES)
    stopped: _StoppedError | None = None
    try:
        _watch(job, job_pid, result, output, parent_pid)
    except _StoppedError as error:
        stopped = error
    finally:
        status = end_all(job_pid)
        output.read()
        os.close(result_read)
        os.close(output_read)
    answer = _answer(job, result.content, status, stopped)
    return answer.model_copy(update={"output": _readable(output.content)})


def _readable(output: bytes) -> str:
    """Return the end of what was printed, without the list of modules that a crash report closes with."""
    text = re.sub(r"\nExtension modules: .*", "", output.decode(errors="replace"))
    return text[-_KEPT_OUTPUT_CHARACTERS:]


def _answer(job: TrialJob, result: bytes, status: int, stopped: _StoppedError | None) -> TrialAnswer:
    if stopped is not None:
        verdict = Verdict.REFUSED if stopped.blames_bundle else Verdict.NOT_HELD
        return TrialAnswer(verdict=verdict, message=str(stopped))
    if not result.endswith(b"\n"):
        return TrialAnswer(verdict=Verdict.REFUSED, message=_end_of(status))
    answer = TrialAnswer.model_validate_json(result)
    if answer.verdict is Verdict.REFUSED and "MemoryError" in answer.message:
        return answer.model_copy(update={"message": f"it used more than {_mib(job)}: {answer.message}"})
    return answer


def _end_of(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"the process ended by itself with exit code {code}"
    hint = " (as the kernel does when memory runs out)" if -code == signal.SIGKILL else ""
    return f"the process was killed by {signal.Signals(-code).name}{hint}"


def _watch(job: TrialJob, job_pid: int, result: _Ends, output: _Ends, parent_pid: int) -> None:
    """Wait for the result or the end of the job.

    Raises:
        _StoppedError: It uses more than it may.
        _ParentGoneError: The trial was given up.
    """
    poller = select.poll()
    for descriptor in (_INPUT, result.descriptor, output.descriptor):
        poller.register(descriptor, select.POLLIN)
    watch = Watch(job_pid)
    is_patient = True
    started_s = looked_s = time.monotonic()
    while True:
        ready = {descriptor for descriptor, _ in poller.poll(_TICK_MS if result.is_open else _ENDING_TICK_MS)}
        if _INPUT in ready or os.getppid() != parent_pid:
            raise _ParentGoneError
        has_ended = watch.has_ended()  # asked before the last look into the pipe
        for ends in (result, output):
            if ends.is_open and (has_ended or ends.descriptor in ready):
                ends.read()
                if not ends.is_open:
                    poller.unregister(ends.descriptor)
        if result.content.endswith(b"\n") or has_ended:
            return
        now_s = time.monotonic()
        if is_patient and now_s - started_s > _PATIENCE_S and watch.processor_wait_s() > _PATIENCE_S:
            is_patient = False
            hasten(job_pid)
        _check_time(job, watch, now_s - started_s)
        _check_memory(job, watch.job_bytes())
        if now_s - looked_s > _TREE_PERIOD_S:
            tree_bytes, n_processes = watch.tree_bytes()
            _check_memory(job, tree_bytes)
            if n_processes > MAX_PROCESSES:
                raise _StoppedError(f"it started more than {MAX_PROCESSES} processes")
            looked_s = time.monotonic()


def _check_time(job: TrialJob, watch: Watch, passed_s: float) -> None:
    if passed_s < job.timeout_s:
        return
    waited_s = watch.processor_wait_s()
    if passed_s - waited_s >= job.timeout_s:
        waiting = f" (and {waited_s:.0f} s of waiting for a processor)" if waited_s >= 1 else ""
        what = "loading" if job.replay is None else "loading and answering"
        raise _StoppedError(f"it did not finish {what} within {job.timeout_s:g} s{waiting}")
    if passed_s >= BUSY_FACTOR * job.timeout_s:
        raise _StoppedError(
            f"the machine is too busy: {passed_s:.0f} s passed, of which it waited {waited_s:.0f} s for a processor",
            blames_bundle=False,
        )


def _check_memory(job: TrialJob, used_bytes: int) -> None:
    if used_bytes > job.memory_bytes:
        raise _StoppedError(f"it used more than {_mib(job)}")


def _mib(job: TrialJob) -> str:
    return f"{job.memory_bytes / (1 << 20):.0f} MiB"


def _be_the_job(job: TrialJob, make_loaders: "MakeLoaders", *, worker_pid: int, result: int, output: int) -> NoReturn:
    """Be the forked process: bound it, try the version, write the answer and end without any cleaning up."""
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, _INPUT)
        os.dup2(output, _OUTPUT)
        os.dup2(output, _ERRORS)
        os.dup2(result, _RESULT, inheritable=False)
        os.closerange(_RESULT + 1, os.sysconf("SC_OPEN_MAX"))
        cpu_seconds = math.ceil(job.timeout_s * BUSY_FACTOR * (os.cpu_count() or 1)) + 1
        confine(
            parent_pid=worker_pid,
            niceness=job.niceness,
            only_idle_time=job.niceness > 0 and has_idle_time(_IDLE_LOOK_S),
            memory_bytes=job.memory_bytes,
            cpu_seconds=cpu_seconds,
        )
        faulthandler.enable(file=_ERRORS)
        answer = _try_out(job, make_loaders)
        sys.stdout.flush()
        _say(_RESULT, answer.model_dump_json().encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def _try_out(job: TrialJob, make_loaders: "MakeLoaders") -> TrialAnswer:
    from serve_app.adapters.clock import SystemClock
    from serve_app.adapters.sources import make_source
    from serve_app.usecases.load_model import LoadPolicy, load_model

    policy = LoadPolicy(
        job.family, job.models_type, job.default_loader, job.allowed_pickle_loaders, windows=job.windows
    )
    try:
        source = make_source(job.source, family=job.family, models_type=job.models_type)
        loaders, clock = make_loaders(job.mlflow), SystemClock()

        def load(version: str) -> "LoadedModel":
            return load_model(source, version, policy=policy, loaders=loaders, clock=clock)

        replayed = None
        if job.replay is None:
            loaded = load(job.version)
        else:
            loaded, replayed = _replay(job.family, job.version, job.replay, load)
    except NothingRecordedError as error:
        return TrialAnswer(verdict=Verdict.NOTHING_RECORDED, message=str(error))
    except SourceError as error:
        return TrialAnswer(verdict=Verdict.SOURCE_ERROR, message=str(error)[:_MAX_MESSAGE])
    except ServeAppError as error:
        return TrialAnswer(verdict=Verdict.REFUSED, message=str(error)[:_MAX_MESSAGE])
    except BaseException as error:  # the code of a bundle may raise anything, SystemExit included
        sys.excepthook(*sys.exc_info())
        return TrialAnswer(verdict=Verdict.REFUSED, message=f"{type(error).__name__}: {error}"[:_MAX_MESSAGE])
    facts = loaded.facts
    return TrialAnswer(
        verdict=Verdict.PASSED,
        tried=VersionRef(version=facts.version, digest=facts.digest),
        load_seconds=facts.load_seconds,
        artifact_bytes=facts.artifact_bytes,
        replayed=replayed,
    )


def _replay(
    family: str, version: str, task: ReplayTask, load: "Callable[[str], LoadedModel]"
) -> "tuple[LoadedModel, ReplayReport]":
    """Load a version and run it on recorded requests.

    Raises:
        NothingRecordedError: There are none; then nothing is loaded.
        ReplayError: It does not take them, or who answered them cannot be loaded though that is needed.
    """
    from serve_app.adapters.request_files import RecordedFiles
    from serve_app.usecases.compare_answers import Comparison
    from serve_app.usecases.replay_requests import RequestReplay, facts_of

    recorded = RecordedFiles(Path(task.directory), newest=task.newest)
    facts = facts_of(recorded)
    if not facts.requests:
        raise NothingRecordedError(f"nothing is recorded of {family!r} yet")
    candidate, again = load(version), None
    if facts.redacted:
        answered = next(iter(facts.answered_by))
        try:
            again = load(answered)
        except ServeAppError as error:
            raise ReplayError(
                f"{', '.join(facts.redacted)}: redacted, so version {answered!r} has to answer again: {error}"
            ) from error
    comparison = Comparison(task.rtol, task.atol, task.keeps_inputs)
    replay = RequestReplay(family, candidate, again, comparison=comparison, max_s=task.max_s)
    return candidate, replay.run(recorded, facts)


if __name__ == "__main__":
    main()
