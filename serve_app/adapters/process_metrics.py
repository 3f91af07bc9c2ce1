"""What a process uses, and how full the memory is that it shares with others: its container's, or the machine's."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

CGROUP: Final = Path("/sys/fs/cgroup")


class ProcessMetrics(Collector):
    """Memory, CPU time and files of this process under the names that Prometheus knows, and whose process it is.

    `deployment` and `host` are labels of `serve_app_process_info` alone; the other series have only the replica's name,
    and are joined with it.
    """

    def __init__(self, registry: CollectorRegistry, deployment: str, *, cgroup: Path = CGROUP) -> None:
        self._labels = {"deployment": deployment, "host": socket.gethostname(), "pid": str(os.getpid())}
        self._process = ProcessCollector(registry=None)
        self._cgroup = cgroup
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Measure now."""
        yield from self._process.collect()
        info = GaugeMetricFamily("serve_app_process_info", "1 for a process of the server.", labels=list(self._labels))
        info.add_metric(list(self._labels.values()), 1)
        yield info
        used, limit = memory_of(self._cgroup)
        yield GaugeMetricFamily("serve_app_memory_used_bytes", "Memory of the container that cannot be freed.", used)
        yield GaugeMetricFamily("serve_app_memory_limit_bytes", "Memory the container may use at most.", limit)


def memory_of(cgroup: Path = CGROUP) -> tuple[int, int]:
    """Return bytes in use and bytes at most: those of the control group, or of the machine where that has no limit.

    In use is what the kernel could not free, the figure that Kubernetes calls the working set; v1 and v2 are read.
    """
    machine = psutil.virtual_memory()
    for limit_file, used_file, stat_file, inactive in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            limit = int((cgroup / limit_file).read_text())
            used = int((cgroup / used_file).read_text())
            facts = dict(line.split() for line in (cgroup / stat_file).read_text().splitlines())
        except (OSError, ValueError):  # no such file, or `max`
            continue
        if limit < machine.total:
            return max(used - int(facts.get(inactive, 0)), 0), limit
    return int(machine.total - machine.available), int(machine.total)
