"""Processes of the tests' own that start in milliseconds: each is forked from one that has imported what they run."""

import multiprocessing
from multiprocessing.context import ForkServerContext

_IMPORTED = (
    "tests.contracts.state_writers",
    "tests.contracts.window_writers",
    "tests.unit.adapters.sources.test_local_copies",
    "tests.unit.adapters.sources.test_mlflow_registry",
    "tests.unit.adapters.test_prediction_log",
)
"""Where functions lie that tests run in processes. Python starts one such process for all, with one list."""


def forked() -> ForkServerContext:
    """Return a context that makes such processes, and locks, barriers and queues between them and this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context
