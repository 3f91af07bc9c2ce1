"""The facts of the machine that belong beside every figure."""

import os
import platform
import subprocess
from pathlib import Path

import psutil

from tests.benchmarks.measurements import Machine


def describe(wrk_version: str, load_before: float) -> Machine:
    """Say what this machine is; never its name."""
    return Machine(
        cpu=cpu_model(Path("/proc/cpuinfo")),
        cores=os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        wrk=wrk_version,
        load_before=round(load_before, 2),
    )


def cpu_model(cpuinfo: Path) -> str:
    """Read the processor's name as the kernel gives it."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """Name the measured code, with a mark if the files differ from that commit."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "not committed"
