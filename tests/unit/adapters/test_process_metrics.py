import os
import socket
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry

from serve_app.adapters.process_metrics import ProcessMetrics, memory_of

MIB = 1 << 20


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text + "\n")
    return directory


V2 = {
    "memory.max": str(100 * MIB),
    "memory.current": str(80 * MIB),
    "memory.stat": f"anon {50 * MIB}\ninactive_file {20 * MIB}",
}
V1 = {
    "memory/memory.limit_in_bytes": str(100 * MIB),
    "memory/memory.usage_in_bytes": str(80 * MIB),
    "memory/memory.stat": f"cache 1\ntotal_inactive_file {20 * MIB}",
}


@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1"])
def test_of_a_limited_group_what_could_be_freed_does_not_count(tmp_path: Path, files: dict[str, str]) -> None:
    assert memory_of(write(tmp_path, files)) == (60 * MIB, 100 * MIB)


@pytest.mark.parametrize(
    "files",
    [{}, V2 | {"memory.max": "max"}, V1 | {"memory/memory.limit_in_bytes": str(1 << 62)}],
    ids=["no group", "v2 without a limit", "v1 without a limit"],
)
def test_without_a_limit_it_is_the_machine(tmp_path: Path, files: dict[str, str]) -> None:
    used, limit = memory_of(write(tmp_path, files))
    assert limit == psutil.virtual_memory().total
    assert 0 < used < limit


def test_a_process_tells_what_it_uses_and_whose_it_is(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    ProcessMetrics(registry, "iris-cpu", cgroup=write(tmp_path, V2))
    labels = {"deployment": "iris-cpu", "host": socket.gethostname(), "pid": str(os.getpid())}
    assert registry.get_sample_value("serve_app_process_info", labels) == 1
    assert registry.get_sample_value("serve_app_memory_used_bytes") == 60 * MIB
    assert registry.get_sample_value("serve_app_memory_limit_bytes") == 100 * MIB
    assert (registry.get_sample_value("process_resident_memory_bytes") or 0) > MIB
