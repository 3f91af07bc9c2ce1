"""The environment of the helper processes that a serving process starts."""

import os
import sys
from pathlib import Path

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT"), "1")


def child_environment() -> dict[str, str]:
    """Let a helper import what this process can, and compute with one thread, as the replicas do."""
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return {**os.environ, **_ONE_THREAD, "PYTHONPATH": path}
