"""Memory of a Pod's containers, by process: resident bytes, and the share of them that is its own (PSS)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from tests.rehearsal.kubelet_twin import Pod
from tests.rehearsal.quantities import whole_units

MIB: Final = 1 << 20
GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """One process. PSS divides shared pages among those who share them, so sums of it are true."""

    title: str
    rss_bytes: int
    pss_bytes: int


@dataclass(frozen=True, slots=True)
class ContainerMemory:
    """One container: what its manifest requests and allows (0: nothing said), and what its processes use."""

    pod: str
    container: str
    request_bytes: int
    limit_bytes: int
    processes: Sequence[ProcessMemory]

    @property
    def pss_bytes(self) -> int:
        """Sum over the processes."""
        return sum(process.pss_bytes for process in self.processes)

    @property
    def rss_bytes(self) -> int:
        """Sum over the processes; it counts shared pages several times."""
        return sum(process.rss_bytes for process in self.processes)

    def table(self) -> str:
        """Return one line for the container and one for each process."""
        lines = [f"{self.pod}/{self.container}: PSS {self.pss_bytes / MIB:.0f} MiB, RSS {self.rss_bytes / MIB:.0f} MiB"]
        lines += [f"  {p.title:60} {p.pss_bytes / MIB:7.1f} {p.rss_bytes / MIB:7.1f}" for p in self.processes]
        return "\n".join(lines)


def memory_of(pod: Pod) -> list[ContainerMemory]:
    """Measure every running container of a Pod, that of Ray first."""
    spec = pod.document["spec"]
    found = []
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        running = pod.containers.get(container["name"])
        if running is not None:
            resources = container.get("resources") or {}
            request, limit = ((resources.get(part) or {}).get("memory", 0) for part in ("requests", "limits"))
            found.append(
                ContainerMemory(
                    pod.name,
                    container["name"],
                    whole_units(request),
                    whole_units(limit),
                    _measured(running.processes()),
                )
            )
    return found


def _measured(processes: Sequence[psutil.Process]) -> list[ProcessMemory]:
    measured = []
    for process in processes:
        try:
            used, words = process.memory_full_info(), process.cmdline()
        except psutil.NoSuchProcess:
            continue
        measured.append(ProcessMemory(title(words or [process.name()]), used.rss, used.pss))
    return sorted(measured, key=lambda one: -one.pss_bytes)


def title(words: Sequence[str]) -> str:
    """Return what a process is, short and without paths."""
    if words[0].startswith(("ray::", "ray-dashboard-")):
        return words[0].partition(" ")[0]
    if any("multiprocessing" in word for word in words):
        return "helper of multiprocessing"
    if "-m" in words:
        return f"python -m {words[words.index('-m') + 1]}"
    names = [word.rpartition("/")[2] for word in words[:3] if not word.startswith("-")]
    return " ".join(names)[:60]
