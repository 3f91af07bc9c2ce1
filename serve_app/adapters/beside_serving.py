"""How a thread loads a model beside predictions without holding them up."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

SWITCH_INTERVAL_S = 0.0005
"""How long a thread keeps the interpreter while another waits for it. Python's 5 ms is what every request would wait
during a load, once for each time that the event loop sleeps."""


@contextmanager
def beside_serving() -> Iterator[None]:
    """Load with one BLAS or OpenMP thread, and hand the interpreter over early; that stays so for the process.

    The thread keeps its normal priority on purpose. At a low one the system takes the processor away from it for up
    to a second on a busy machine, and it may hold the interpreter just then: predictions would wait for all of it.
    """
    if sys.getswitchinterval() > SWITCH_INTERVAL_S:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
    with threadpool_limits(limits=1):
        yield
