"""The workers of the trial: started, shared, killed, replaced and ended; nothing of them may be left."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from serve_app.adapters.trial import SubprocessTrial
from serve_app.domain.errors import TrialError
from tests.bad_bundles import Kind, write_iris
from tests.unit.adapters.trials import LIMITS, children, is_over, settings, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[SubprocessTrial, Path]]:
    """One trial for all, whose workers take seconds to start; at the tests' own priority, whatever else is busy."""
    link = tmp_path_factory.mktemp("trial") / "root"
    families = {"iris": settings(link), "other": settings(link), "strict": settings(link, allowed=())}
    made = SubprocessTrial(families, niceness=0)
    yield made, link
    await made.close()
    assert children() == []


@pytest_asyncio.fixture(loop_scope="module")
async def trial(shared: tuple[SubprocessTrial, Path], tmp_path: Path) -> SubprocessTrial:
    """The trial with one worker ready, and with a root of the test's own."""
    made, link = shared
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path)
    await made.warm()
    await until(lambda: len(children()) == 1)
    return made


async def test_closing_fails_the_trial_under_way_without_blame(tmp_path: Path) -> None:
    write_iris(tmp_path, "v7", Kind.HANGING)
    trial = SubprocessTrial({"iris": settings(tmp_path)}, niceness=0)
    running = asyncio.create_task(trial.run("iris", "v7", LIMITS))
    await until(lambda: len(children()) == 2)
    await trial.close()
    with pytest.raises(TrialError, match="the trial worker ended") as caught:
        await running
    assert not caught.value.blames_bundle
    assert children() == []
    with pytest.raises(TrialError, match="the trial is closed"):
        await trial.run("iris", "v7", LIMITS)


async def test_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """Its input ends when the parent is gone, however that came."""
    write_iris(tmp_path, "v7", Kind.HANGING_IN_C)
    code = (
        "import asyncio\n"
        "from pathlib import Path\n"
        "from serve_app.adapters.trial import SubprocessTrial\n"
        "from tests.unit.adapters.trials import LIMITS, settings\n"
        f"trial = SubprocessTrial({{'iris': settings(Path({str(tmp_path)!r}))}})\n"
        "asyncio.run(trial.run('iris', 'v7', LIMITS))\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    await until(lambda: len(psutil.Process(parent.pid).children(recursive=True)) == 2)
    below = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    await parent.wait()
    await until(lambda: all(map(is_over, below)))


async def test_cancelling_kills_the_job_and_its_worker(trial: SubprocessTrial, tmp_path: Path) -> None:
    write_iris(tmp_path, "v7", Kind.HANGING_IN_C)
    running = asyncio.create_task(trial.run("iris", "v7", LIMITS))
    await until(lambda: len(children()) == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert children() == []


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
    await until(lambda: is_over(job))
    assert (await trial.run("iris", "v8", LIMITS)).version == "v8"


async def test_worker_that_died_while_idle_is_replaced(trial: SubprocessTrial, tmp_path: Path) -> None:
    write_iris(tmp_path, "v8")
    (worker,) = children()
    worker.kill()
    # A zombie with a thread that is still ending cannot be waited for yet.
    await until(lambda: os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    assert (await trial.run("iris", "v8", LIMITS)).version == "v8"


async def test_two_families_are_tried_at_once_and_one_family_in_turn(trial: SubprocessTrial, tmp_path: Path) -> None:
    write_iris(tmp_path, "v7", Kind.HANGING)
    write_iris(tmp_path, "v8")
    hanging = asyncio.create_task(trial.run("iris", "v7", LIMITS))
    await until(lambda: len(children()) == 2)
    assert (await trial.run("other", "v8", LIMITS)).version == "v8"
    waiting = asyncio.create_task(trial.run("iris", "v8", LIMITS))
    assert (await trial.run("other", "v8", LIMITS)).version == "v8"
    assert not waiting.done()
    hanging.cancel()
    assert (await waiting).version == "v8"


async def test_temporary_files_go_with_the_job_and_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_iris(tmp_path / "root", "v7", Kind.RAISING)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    trial = SubprocessTrial({"iris": settings(tmp_path / "root")})
    await trial.warm()
    (directory,) = temporary.iterdir()
    before = sorted(directory.rglob("*"))
    with pytest.raises(TrialError, match="this model raises"):
        await trial.run("iris", "v7", LIMITS)
    assert sorted(directory.rglob("*")) == before
    await trial.close()
    assert list(temporary.iterdir()) == []


async def test_worker_that_cannot_start_blames_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_iris(tmp_path, "v8")
    trial = SubprocessTrial({"iris": settings(tmp_path)})
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(TrialError, match="could not be started") as caught:
        await trial.run("iris", "v8", LIMITS)
    assert not caught.value.blames_bundle
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TrialError, match="could not be started: it ended with 1"):
        await trial.warm()
    await trial.close()


async def test_loader_that_the_operator_does_not_allow_is_refused(trial: SubprocessTrial, tmp_path: Path) -> None:
    write_iris(tmp_path, "v8")
    with pytest.raises(TrialError, match="pickle"):
        await trial.run("strict", "v8", LIMITS)
