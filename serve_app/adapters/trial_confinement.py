"""Keeps what a trial runs within bounds, and ends all of it, whatever it has started.

Some of this exists on Linux only. Elsewhere a trial still has its deadline and its memory limit, but processes that a
bundle detaches from its own are not found again.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

MAX_PROCESSES = 64
"""More than any library starts to load a model; a bundle that goes on forking is ended here."""

_DATA_SLACK_BYTES = 128 << 20
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


def lower_priority(niceness: int) -> None:
    """Let this process and those it starts stand back behind the ones that serve.

    Where the kernel groups sessions, niceness counts within a session only: so it must be one with them.
    """
    os.nice(max(0, niceness - os.nice(0)))
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with contextlib.suppress(OSError, psutil.Error):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def use_idle_time_only() -> None:
    """Run only while nobody else wants the processor.

    A low niceness is not enough. The kernel lets whoever has a processor keep it for some milliseconds, and a request
    that wakes a serving process waits for that; from a task of the class IDLE it is taken at once.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def hasten(pid: int) -> None:
    """Take a process out of the class IDLE again, where this user may: without a privilege the kernel refuses it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))


def has_idle_time(within_s: float) -> bool:
    """Look for `within_s` seconds whether any processor is idle for some of that time."""
    before = psutil.cpu_times().idle
    time.sleep(within_s)
    return bool(psutil.cpu_times().idle > before)


def adopt_orphans() -> None:
    """Become the parent of every process that loses its own below this one, so that none is ever out of reach."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def confine(*, parent_pid: int, niceness: int, only_idle_time: bool, memory_bytes: int, cpu_seconds: int) -> None:
    """Bound this process, a fresh fork that is about to run the code of a bundle, and those that it starts.

    The memory that counts is watched from outside (`Watch`). The limit here only stops an allocation that is
    so quick or so big that nobody could watch it. It is on data, not on address space: libraries reserve far more
    addresses than they use.
    """
    os.setpgid(0, 0)
    lower_priority(niceness)
    if only_idle_time:
        use_idle_time_only()
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, cpu_seconds)
    _limit(resource.RLIMIT_DATA, _bytes_in(os.getpid(), "status", "VmData") + memory_bytes + _DATA_SLACK_BYTES)


def end_all(job_pid: int) -> int:
    """Kill the process of the job, its group and all other descendants, and wait until they are gone.

    Returns:
        The wait status of `job_pid`.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(job_pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # it may not have come to make its group yet
        os.kill(job_pid, signal.SIGKILL)
    status = 0
    while True:
        try:
            pid, found = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                # Every descendant is either killed here or becomes a child of this process once its parent is gone.
                for process in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                pid, found = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if pid == job_pid:
            status = found


class Watch:
    """Measures what a job uses beyond what its parent, the empty worker, uses."""

    def __init__(self, job_pid: int) -> None:
        self._job_pid = job_pid
        self._job = psutil.Process(job_pid)
        self._empty_bytes = _used_bytes(os.getpid())
        self._empty_wait_s = _processor_wait_s(job_pid)

    def has_ended(self) -> bool:
        """Whether the job's own process is over. It is not waited for, so that its pid and group stay taken."""
        return self._job.status() == psutil.STATUS_ZOMBIE

    def job_bytes(self) -> int:
        """Memory of the job's own process; some 50 microseconds."""
        return max(0, _used_bytes(self._job_pid) - self._empty_bytes)

    def tree_bytes(self) -> tuple[int, int]:
        """Memory and number of all its processes. It looks at every process of the machine: 10 ms or more.

        Pages that a fork shares with others are counted once, as a share of each, the worker's own included.
        """
        pids = [process.pid for process in psutil.Process().children(recursive=True)]
        shares = sum(_bytes_in(pid, "smaps_rollup", "Pss_Anon", "Pss_Shmem", "SwapPss") for pid in (os.getpid(), *pids))
        return max(0, shares - self._empty_bytes), len(pids)

    def processor_wait_s(self) -> float:
        """Seconds that the job was ready to run while others had the processors."""
        return max(0.0, _processor_wait_s(self._job_pid) - self._empty_wait_s)


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    with contextlib.suppress(ValueError, OSError):  # a platform that has the limit but not this value
        resource.setrlimit(what, (value, value))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _used_bytes(pid: int) -> int:
    """Memory that a process has written to, swapped or shared parts included; pages of files can be dropped."""
    if sys.platform == "linux":
        return _bytes_in(pid, "status", "RssAnon", "RssShmem", "VmSwap")
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def _bytes_in(pid: int, file: str, *names: str) -> int:
    return sum(kib * 1024 for name, kib in _lines(pid, file) if name in names)


def _lines(pid: int, file: str) -> Iterator[tuple[str, int]]:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                yield name, int(value.removesuffix(" kB"))


def _processor_wait_s(pid: int) -> float:
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0
