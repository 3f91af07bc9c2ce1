"""The trial with real workers and bundles that misbehave; after each, nothing of it may be left."""

import asyncio
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from serve_app.adapters import trial as trial_module
from serve_app.adapters.trial import SubprocessTrial, TrialSettings
from serve_app.domain.errors import TrialError
from serve_app.usecases.load_model import LoadPolicy
from serve_app.usecases.ports import TrialLimits
from tests.bad_bundles import Kind, write_iris

LIMITS = TrialLimits(timeout_s=60.0, memory_bytes=300 << 20)
SHORT = TrialLimits(timeout_s=1.5, memory_bytes=300 << 20)
MODEL = "models/species/classification/model.joblib"

WRONG: dict[Kind, tuple[TrialLimits, str]] = {
    Kind.RAISING: (LIMITS, "RuntimeError: this model raises"),
    Kind.EXITING_POLITELY: (LIMITS, "SystemExit: this model exits"),
    Kind.EXITING_HARD: (LIMITS, "the process ended by itself with exit code 3"),
    Kind.HANGING: (SHORT, r"it did not finish loading within 1.5 s"),
    Kind.HANGING_IN_C: (SHORT, r"it did not finish loading within 1.5 s"),
    Kind.CLOSING_FILES: (SHORT, r"it did not finish loading within 1.5 s"),
    Kind.SEGFAULTING: (LIMITS, "the process was killed by SIGSEGV"),
    Kind.ABORTING: (LIMITS, "the process was killed by SIGABRT"),
    Kind.HUNGRY: (LIMITS, "it used more than 300 MiB"),
    Kind.HUNGRY_AT_ONCE: (LIMITS, r"MemoryError: +\(the limit is 300 MiB\)"),
    Kind.HUNGRY_CHILD: (LIMITS, "it used more than 300 MiB"),
    Kind.FORKING: (LIMITS, "it started more than 64 processes"),
    Kind.CHATTY: (LIMITS, "RuntimeError: enough"),
    Kind.GARBAGE: (LIMITS, f"{MODEL}: expected a joblib file, found one that fails"),
    Kind.WRONG_ANSWERS: (LIMITS, "does not reproduce 1 of its 32 golden outputs"),
    Kind.CORRUPT: (LIMITS, f"{MODEL}: expected sha256"),
    Kind.TRUNCATED: (LIMITS, f"{MODEL}: expected sha256"),
    Kind.WRONG_DIGEST: (LIMITS, f"{MODEL}: expected sha256 0000"),
    Kind.MISSING_FILE: (LIMITS, f"{MODEL}: expected a file, found none"),
    Kind.BROKEN_MANIFEST: (LIMITS, "expected a JSON document"),
}


def settings(root: Path, family: str = "iris", **changes: str) -> TrialSettings:
    policy = LoadPolicy(family, "classification", "sklearn_targets", ("sklearn_targets",))
    return TrialSettings(
        **{"source_kind": "local_directory", "root": str(root), "manifest_name": "manifest.json"} | changes,
        policy=policy,
    )


@pytest.fixture
async def trial(tmp_path: Path) -> AsyncIterator[SubprocessTrial]:
    """A trial with one worker ready, at the tests' own priority so that a busy machine decides nothing."""
    made = SubprocessTrial({"iris": settings(tmp_path)}, niceness=0)
    await made.warm()
    yield made
    await made.close()
    assert children() == []


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30.0):
        while not condition():
            await asyncio.sleep(0.01)


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if mark in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("kind", WRONG)
async def test_bad_bundle_is_refused_with_its_reason_and_the_next_one_passes(
    trial: SubprocessTrial, tmp_path: Path, kind: Kind
) -> None:
    limits, reason = WRONG[kind]
    write_iris(tmp_path, "v7", kind)
    write_iris(tmp_path, "v8")
    with pytest.raises(TrialError, match=rf"^version 'v7' failed its trial: (?s:.*){reason}") as caught:
        await trial.run("iris", "v7", limits)
    assert caught.value.blames_bundle
    (worker,) = children()
    assert (await trial.run("iris", "v8", LIMITS)).version == "v8"
    assert children() == [worker]


async def test_bundle_that_only_spins_is_stopped(trial: SubprocessTrial, tmp_path: Path) -> None:
    write_iris(tmp_path, "v7", Kind.SPINNING)
    # On a machine that gives it no processor at all the time does not count, and nobody is blamed.
    with pytest.raises(TrialError, match="did not finish loading within 1.5 s|the machine is too busy"):
        await trial.run("iris", "v7", SHORT)


async def test_slow_bundle_passes(trial: SubprocessTrial, tmp_path: Path) -> None:
    write_iris(tmp_path, "v7", Kind.SLOW)
    started_s = time.monotonic()
    assert (await trial.run("iris", "v7", LIMITS)).version == "v7"
    assert time.monotonic() - started_s >= 5.0


async def test_processes_that_outlive_the_job_are_ended_even_when_they_hide(
    trial: SubprocessTrial, tmp_path: Path
) -> None:
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    write_iris(tmp_path, "v7", Kind.SPAWNING, mark=mark)
    running = asyncio.create_task(trial.run("iris", "v7", LIMITS))
    await until(lambda: len(marked(mark)) == 3 or running.done())
    assert (await running).version == "v7"
    assert marked(mark) == []


async def test_cancelling_kills_the_job_and_its_worker(trial: SubprocessTrial, tmp_path: Path) -> None:
    write_iris(tmp_path, "v7", Kind.HANGING_IN_C)
    running = asyncio.create_task(trial.run("iris", "v7", LIMITS))
    await until(lambda: len(children()) == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert children() == []


async def test_closing_fails_the_trial_under_way_without_blame(trial: SubprocessTrial, tmp_path: Path) -> None:
    write_iris(tmp_path, "v7", Kind.HANGING)
    running = asyncio.create_task(trial.run("iris", "v7", LIMITS))
    await until(lambda: len(children()) == 2)
    await trial.close()
    with pytest.raises(TrialError, match="the trial worker ended") as caught:
        await running
    assert not caught.value.blames_bundle
    assert children() == []
    with pytest.raises(TrialError, match="the trial is closed"):
        await trial.run("iris", "v7", LIMITS)


async def test_killed_worker_takes_its_job_along_and_is_replaced(trial: SubprocessTrial, tmp_path: Path) -> None:
    write_iris(tmp_path, "v7", Kind.HANGING_IN_C)
    write_iris(tmp_path, "v8")
    running = asyncio.create_task(trial.run("iris", "v7", LIMITS))
    await until(lambda: len(children()) == 2)
    worker, job = children()
    worker.send_signal(signal.SIGKILL)
    with pytest.raises(TrialError, match="ended during the trial") as caught:
        await running
    assert not caught.value.blames_bundle
    await until(lambda: not job.is_running() or job.status() == psutil.STATUS_ZOMBIE)
    assert (await trial.run("iris", "v8", LIMITS)).version == "v8"


async def test_worker_that_died_while_idle_is_replaced(trial: SubprocessTrial, tmp_path: Path) -> None:
    write_iris(tmp_path, "v8")
    (worker,) = children()
    worker.kill()
    assert (await trial.run("iris", "v8", LIMITS)).version == "v8"


async def test_two_families_are_tried_at_once_and_one_family_in_turn(tmp_path: Path) -> None:
    write_iris(tmp_path, "v7", Kind.HANGING)
    write_iris(tmp_path, "v8")
    trial = SubprocessTrial({"iris": settings(tmp_path), "other": settings(tmp_path)}, niceness=0)
    hanging = asyncio.create_task(trial.run("iris", "v7", LIMITS))
    await until(lambda: len(children()) == 2)
    assert (await trial.run("other", "v8", LIMITS)).version == "v8"
    waiting = asyncio.create_task(trial.run("iris", "v8", LIMITS))
    assert (await trial.run("other", "v8", LIMITS)).version == "v8"
    assert not waiting.done()
    hanging.cancel()
    assert (await waiting).version == "v8"
    await trial.close()
    assert children() == []


async def test_worker_that_cannot_start_blames_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_iris(tmp_path, "v8")
    trial = SubprocessTrial({"iris": settings(tmp_path)})
    monkeypatch.setattr(trial_module.sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(TrialError, match="could not be started") as caught:
        await trial.run("iris", "v8", LIMITS)
    assert not caught.value.blames_bundle
    monkeypatch.setattr(trial_module.sys, "executable", "/bin/false")
    with pytest.raises(TrialError, match="could not be started: it ended with 1"):
        await trial.warm()
    await trial.close()


async def test_loader_that_the_operator_does_not_allow_is_refused(tmp_path: Path) -> None:
    write_iris(tmp_path, "v8")
    policy = LoadPolicy("iris", "classification", "sklearn_targets", ())
    trial = SubprocessTrial({"iris": TrialSettings("local_directory", str(tmp_path), "manifest.json", policy)})
    with pytest.raises(TrialError, match="pickle"):
        await trial.run("iris", "v8", LIMITS)
    await trial.close()


async def test_idle_worker_is_quiet_single_threaded_and_without_torch(trial: SubprocessTrial) -> None:
    """It is forked for every job, which is safe only while no thread of Python's holds a lock."""
    (worker,) = children()
    libraries = {Path(region.path).name for region in worker.memory_maps()}
    assert not any("torch" in name for name in libraries)
    names = [Path(f"/proc/{worker.pid}/task/{thread.id}/comm").read_text().strip() for thread in worker.threads()]
    assert [name for name in names if name != "jemalloc_bg_thd"] == [worker.name()]
    assert worker.num_fds() == 4


async def test_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """Its input ends when the parent is gone, however that came."""
    write_iris(tmp_path, "v7", Kind.HANGING_IN_C)
    code = (
        "import asyncio\n"
        "from pathlib import Path\n"
        "from tests.unit.adapters.test_trial import LIMITS, SubprocessTrial, settings\n"
        f"trial = SubprocessTrial({{'iris': settings(Path({str(tmp_path)!r}))}})\n"
        "asyncio.run(trial.run('iris', 'v7', LIMITS))\n"
    )
    parent = await asyncio.create_subprocess_exec(
        "python", "-c", code, executable=trial_module.sys.executable, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    await until(lambda: len(psutil.Process(parent.pid).children(recursive=True)) == 2)
    below = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    await parent.wait()
    await until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below))


async def test_twenty_trials_leave_nothing_behind(trial: SubprocessTrial, tmp_path: Path) -> None:
    for kind in (Kind.GOOD, Kind.RAISING, Kind.SEGFAULTING, Kind.EXITING_HARD):
        write_iris(tmp_path, kind.value, kind)

    async def round_of_four() -> None:
        await trial.run("iris", "good", LIMITS)
        for kind in (Kind.RAISING, Kind.SEGFAULTING, Kind.EXITING_HARD):
            with pytest.raises(TrialError):
                await trial.run("iris", kind.value, LIMITS)

    def left() -> tuple[int, int, int, list[str]]:
        gc.collect()
        files = sorted(str(path) for path in tmp_path.rglob("*"))
        return psutil.Process().num_fds(), worker.num_fds(), len(children()), files

    (worker,) = children()
    await round_of_four()
    before, memory_bytes = left(), worker.memory_full_info().uss
    for _ in range(5):
        await round_of_four()
    assert left() == before
    assert worker.memory_full_info().uss < memory_bytes + (2 << 20)
