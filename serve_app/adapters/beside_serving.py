"""How a thread loads a model beside predictions without holding them up."""

import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

SWITCH_INTERVAL_S = 0.0005
"""How long a thread keeps the interpreter while another waits for it. Python's 5 ms is what every request would wait
during a load, once for each time that the event loop sleeps."""

WORK_S = 0.001
REST_FACTOR = 2.0
"""A load rests this many times as long as it has worked: on a busy machine it takes a third of a processor, not one."""

LONGEST_REST_S = 0.1


class _Pace(threading.local):
    """The pace of this thread: since when it has worked (`time.perf_counter`), or None while it need not rest."""

    working_since_s: float | None = None


_pace = _Pace()


@contextmanager
def beside_serving() -> Iterator[None]:
    """Load with one BLAS or OpenMP thread, with rests, and hand the interpreter over early; that stays so.

    The thread keeps its normal priority on purpose. At a low one the system takes the processor away from it for up
    to a second on a busy machine, and it may hold the interpreter just then: predictions would wait for all of it.
    """
    if sys.getswitchinterval() > SWITCH_INTERVAL_S:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
    _pace.working_since_s = time.perf_counter()
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        _pace.working_since_s = None


def breathe() -> None:
    """Rest if this thread loads beside predictions and has worked for a while. For loaders, between their steps."""
    if (since_s := _pace.working_since_s) is None:
        return
    worked_s = time.perf_counter() - since_s
    if worked_s >= WORK_S:
        time.sleep(min(worked_s * REST_FACTOR, LONGEST_REST_S))
        _pace.working_since_s = time.perf_counter()


class BreathingFile(io.BufferedReader):
    """A file in memory for whoever reads it bit by bit, and rests between the reads: joblib unpickles in Python."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes."""
        breathe()
        return super().read(size)
