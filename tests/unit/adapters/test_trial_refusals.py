"""Bundles that misbehave, tried by one worker after the other: refused with the reason, and nothing of them left."""

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from serve_app.adapters.trial import SubprocessTrial
from serve_app.domain.errors import TrialError
from serve_app.usecases.ports import TrialLimits
from tests.bad_bundles import Kind, write_iris
from tests.unit.adapters.trials import LIMITS, children, settings, until, with_argument

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT = TrialLimits(timeout_s=1.5, memory_bytes=300 << 20)
MODEL = "models/species/classification/model.joblib"

WRONG: dict[Kind, tuple[TrialLimits, str]] = {
    Kind.RAISING: (LIMITS, "RuntimeError: this model raises"),
    Kind.EXITING_POLITELY: (LIMITS, "SystemExit: this model exits"),
    Kind.EXITING_HARD: (LIMITS, "the process ended by itself with exit code 3"),
    Kind.HANGING: (SHORT, r"it did not finish loading within 1\.5 s"),
    Kind.HANGING_IN_C: (SHORT, r"it did not finish loading within 1\.5 s"),
    Kind.CLOSING_FILES: (SHORT, r"it did not finish loading within 1\.5 s"),
    Kind.SEGFAULTING: (LIMITS, "the process was killed by SIGSEGV"),
    Kind.ABORTING: (LIMITS, "the process was killed by SIGABRT"),
    Kind.HUNGRY: (LIMITS, "it used more than 300 MiB"),
    Kind.HUNGRY_AT_ONCE: (LIMITS, "it used more than 300 MiB: (?s:.*)MemoryError"),
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


@dataclass
class Stage:
    """A trial whose worker serves all tests here, and a root of their own for each."""

    trial: SubprocessTrial
    root: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[SubprocessTrial, Path]]:
    """One trial with its worker ready, at the tests' own priority so that a busy machine decides nothing."""
    link = tmp_path_factory.mktemp("trial") / "root"
    trial = SubprocessTrial({"iris": settings(link)}, niceness=0)
    await trial.warm()
    yield trial, link
    await trial.close()
    assert children() == []


@pytest.fixture
def stage(shared: tuple[SubprocessTrial, Path], tmp_path: Path) -> Stage:
    trial, link = shared
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path)
    return Stage(trial, tmp_path)


@pytest.mark.parametrize("kind", WRONG)
async def test_bad_bundle_is_refused_with_its_reason_and_the_next_one_passes(stage: Stage, kind: Kind) -> None:
    limits, reason = WRONG[kind]
    write_iris(stage.root, "v7", kind)
    write_iris(stage.root, "v8")
    with pytest.raises(TrialError, match=rf"^version 'v7' failed its trial: (?s:.*){reason}") as caught:
        await stage.trial.run("iris", "v7", limits)
    assert caught.value.blames_bundle
    assert (await stage.trial.run("iris", "v8", LIMITS)).version == "v8"
    assert len(children()) == 1


async def test_bundle_that_only_spins_is_stopped(stage: Stage) -> None:
    write_iris(stage.root, "v7", Kind.SPINNING)
    # On a machine that gives it no processor at all the time does not count, and nobody is blamed.
    with pytest.raises(TrialError, match=r"did not finish loading within 1\.5 s|the machine is too busy"):
        await stage.trial.run("iris", "v7", SHORT)


async def test_slow_bundle_passes(stage: Stage) -> None:
    write_iris(stage.root, "v7", Kind.SLOW)
    started_s = time.monotonic()
    assert (await stage.trial.run("iris", "v7", LIMITS)).version == "v7"
    assert time.monotonic() - started_s >= 5.0


async def test_processes_that_outlive_the_job_are_ended_even_when_they_hide(stage: Stage) -> None:
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    write_iris(stage.root, "v7", Kind.SPAWNING, mark=mark)
    running = asyncio.create_task(stage.trial.run("iris", "v7", LIMITS))
    await until(lambda: len(with_argument(mark)) == 3)
    assert (await running).version == "v7"
    assert with_argument(mark) == []


async def test_idle_worker_is_quiet_single_threaded_and_without_torch(stage: Stage) -> None:
    """It is forked for every job, which is safe only while no thread of Python's holds a lock."""
    (worker,) = children()
    libraries = {Path(region.path).name for region in worker.memory_maps()}
    assert not any("torch" in name for name in libraries)
    names = [Path(f"/proc/{worker.pid}/task/{thread.id}/comm").read_text().strip() for thread in worker.threads()]
    assert [name for name in names if name != "jemalloc_bg_thd"] == [worker.name()]
    assert worker.num_fds() == 4


async def test_twenty_trials_leave_nothing_behind(stage: Stage) -> None:
    for kind in (Kind.GOOD, Kind.RAISING, Kind.SEGFAULTING, Kind.EXITING_HARD):
        write_iris(stage.root, kind.value, kind)

    async def round_of_four() -> None:
        await stage.trial.run("iris", "good", LIMITS)
        for kind in (Kind.RAISING, Kind.SEGFAULTING, Kind.EXITING_HARD):
            with pytest.raises(TrialError):
                await stage.trial.run("iris", kind.value, LIMITS)

    def left() -> tuple[int, int, int, list[str]]:
        gc.collect()
        files = sorted(str(path) for path in stage.root.rglob("*"))
        return psutil.Process().num_fds(), worker.num_fds(), len(children()), files

    (worker,) = children()
    await round_of_four()
    before, memory_bytes = left(), worker.memory_full_info().uss
    for _ in range(5):
        await round_of_four()
    assert left() == before
    assert worker.memory_full_info().uss < memory_bytes + (2 << 20)
