"""What the tests of the trial share."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from serve_app.adapters.trial import TrialSettings
from serve_app.config_sources import DirectoryConfig
from serve_app.usecases.load_model import LoadPolicy
from serve_app.usecases.ports import TrialLimits

LIMITS = TrialLimits(timeout_s=60.0, memory_bytes=300 << 20)


def settings(root: Path, *, allowed: tuple[str, ...] = ("sklearn_targets",)) -> TrialSettings:
    """Return settings for the bundles of `tests.bad_bundles` in `root`."""
    policy = LoadPolicy("iris", "classification", "sklearn_targets", allowed)
    return TrialSettings(DirectoryConfig(root=str(root)), policy)


def children() -> list[psutil.Process]:
    """Return all descendants of this process, zombies included, but for the helpers of other tests.

    A test that trained a model before leaves joblib's and Python's; they live as long as this process, as do the
    MLflow server and the process for explanations that tests share.
    """
    return [process for process in psutil.Process().children(recursive=True) if not _is_helper(process)]


def _is_helper(process: psutil.Process) -> bool:
    words = ("resource_tracker", "loky", "forkserver", "mlflow", "explain_worker")
    try:
        return any(word in " ".join(process.cmdline()) for word in words)
    except psutil.Error:
        return False


def is_over(process: psutil.Process) -> bool:
    """Tell whether a process has ended, waited for or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def with_argument(argument: str) -> list[psutil.Process]:
    """Find the processes of this machine that were started with an argument."""
    found = []
    for process in psutil.process_iter():
        try:
            if argument in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something outside this process is so, at most two minutes."""
    deadline_s = time.monotonic() + 120.0
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)
