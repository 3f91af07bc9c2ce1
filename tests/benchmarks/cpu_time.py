"""What the processes of a server cost: user and system seconds of all of them together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Birth:
    """Which process; the start time tells it from a later one with the same pid."""

    pid: int
    create_time: float


def cpu_seconds(processes: Iterable[psutil.Process]) -> dict[Birth, float]:
    """Read the time each process has used so far; one that is gone is left out."""
    used = {}
    for process in processes:
        try:
            times = process.cpu_times()
            used[Birth(process.pid, process.create_time())] = times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return used


def difference(before: Mapping[Birth, float], after: Mapping[Birth, float]) -> float:
    """Return what was used between two readings; a process born between them counts from its birth.

    What a process used that ended between them is not known any more and counts nothing.
    """
    return sum(seconds - before.get(birth, 0.0) for birth, seconds in after.items())


def tree(root: psutil.Process) -> list[psutil.Process]:
    """Return a process and all its descendants; none if it is gone."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
