"""The processes of one local instance: finding all of them, ending exactly these.

`ray stop` is not used: it ends every Ray process of the user by name, other clusters included, and leaves HAProxy.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from serve_app.cli.profile import INSTANCE_VARIABLE
from serve_app.domain.errors import ServeAppError

# The raylet ends its workers and agents by itself and needs the GCS for a clean end, so the GCS goes last.
FIRST_TO_END, LAST_TO_END = "raylet", "gcs_server"
NEEDED = frozenset({FIRST_TO_END, LAST_TO_END})

# Nothing of an instance has to be saved by its processes: what must last is on disk before it is answered. So a
# process that does not end at once (Serve's controller would drain for half a minute) is killed.
GRACE_S = 3.0
KILL_WAIT_S = 10.0


class ProcessRecord(BaseModel):
    """A process as it was seen. The start time tells it from a later one that got the same pid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    create_time: float
    name: str


class ProcessesStuckError(ServeAppError):
    """Processes outlived SIGKILL."""

    def __init__(self, stuck: Sequence[ProcessRecord]) -> None:
        self.stuck = tuple(stuck)
        super().__init__("these processes do not end: " + ", ".join(f"{p.name} (pid {p.pid})" for p in stuck))


def record_of(process: psutil.Process) -> ProcessRecord:
    """Describe a process so that it can be recognised later."""
    return ProcessRecord(pid=process.pid, create_time=process.create_time(), name=_short_name(process))


def find(runtime_dir: Path, recorded: Iterable[ProcessRecord] = ()) -> list[psutil.Process]:
    """Return the living processes of the instance whose runtime directory this is.

    They are those that carry its name in their environment (all of Ray's, and HAProxy, inherit it), those recorded
    earlier, and the descendants of both (Ray's agents overwrite their environment). This process and those it was
    started by are never among them.
    """
    found: dict[int, psutil.Process] = {}
    for process in [*_marked(runtime_dir), *_recorded(recorded)]:
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        found.update({member.pid: member for member in family})
    for pid in {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}:
        found.pop(pid, None)
    return [process for process in found.values() if _is_alive(process)]


def is_complete(processes: Sequence[psutil.Process]) -> bool:
    """Say whether Ray's two main processes are among them; without either the instance cannot serve or be managed."""
    return {_short_name(process) for process in processes} >= NEEDED


def end_all(runtime_dir: Path, recorded: Iterable[ProcessRecord] = ()) -> list[ProcessRecord]:
    """End every process of the instance and return what was ended; raises nothing when there is none.

    Raises:
        ProcessesStuckError: A process outlived SIGKILL, which only one stuck in the kernel does.
    """
    known = tuple(recorded)
    ended: dict[int, ProcessRecord] = {}

    def look() -> list[psutil.Process]:
        processes = find(runtime_dir, known)
        for process in processes:
            ended.setdefault(process.pid, record_of(process))
        return processes

    processes = look()
    for stage in _stages(processes):
        _terminate(stage)
    # A process may have started another one between the look and its own end.
    while processes := look():
        for process in processes:
            _quietly(process.kill)
        if stuck := _wait_until_gone(processes, timeout_s=KILL_WAIT_S):
            raise ProcessesStuckError([record_of(process) for process in stuck])
    return sorted(ended.values(), key=lambda record: record.pid)


def end_tree(recorded: ProcessRecord) -> None:
    """End one process, if it still is the one recorded, and all its descendants.

    Raises:
        ProcessesStuckError: One outlived SIGKILL.
    """
    family = [member for process in _recorded([recorded]) for member in (process, *process.children(recursive=True))]
    _terminate(family)
    for process in family:
        _quietly(process.kill)
    if stuck := _wait_until_gone(family, timeout_s=KILL_WAIT_S):
        raise ProcessesStuckError([record_of(process) for process in stuck])


def _stages(processes: Sequence[psutil.Process]) -> list[list[psutil.Process]]:
    names = {process.pid: _short_name(process) for process in processes}
    return [
        [p for p in processes if names[p.pid] == FIRST_TO_END],
        [p for p in processes if names[p.pid] not in NEEDED],
        [p for p in processes if names[p.pid] == LAST_TO_END],
    ]


def _terminate(processes: list[psutil.Process]) -> None:
    for process in processes:
        _quietly(process.terminate)
    _wait_until_gone(processes, timeout_s=GRACE_S)


def _wait_until_gone(processes: list[psutil.Process], *, timeout_s: float) -> list[psutil.Process]:
    """Wait for processes that are no children of ours and return those still alive.

    `psutil.wait_procs` would wait for zombies too, which stay for ever in a container whose first process reaps none.
    """
    deadline = time.monotonic() + timeout_s
    while (alive := [p for p in processes if _is_alive(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def _quietly(signal_it: Callable[[], None]) -> None:
    try:
        signal_it()
    except psutil.NoSuchProcess:  # it ended by itself
        return


def _marked(runtime_dir: Path) -> list[psutil.Process]:
    marked = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(INSTANCE_VARIABLE) == str(runtime_dir):
                marked.append(process)
        except (psutil.Error, OSError):  # of another user, or already gone: not ours
            continue
    return marked


def _recorded(records: Iterable[ProcessRecord]) -> list[psutil.Process]:
    alive = []
    for record in records:
        try:
            process = psutil.Process(record.pid)
        except psutil.NoSuchProcess:
            continue
        if process.create_time() == record.create_time:
            alive.append(process)
    return alive


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _short_name(process: psutil.Process) -> str:
    """Return the program's name: `raylet`, `ray::ServeReplica:app:Gateway`; of Python the script or the module."""
    try:
        name, command = process.name(), process.cmdline()
    except psutil.Error:
        return "unknown"
    if name.startswith("python"):
        if "-m" in command[:-1]:
            return command[command.index("-m") + 1]
        return next((Path(part).name for part in command[1:] if part.endswith(".py")), name)
    return name.strip()
