import os
import sys
import threading
from collections.abc import Iterator

import numpy  # noqa: F401  # brings a BLAS library along, whose threads are counted here
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from serve_app.adapters.beside_serving import SWITCH_INTERVAL_S, beside_serving


@pytest.fixture(autouse=True)
def _interpreter_as_before() -> Iterator[None]:
    interval_s = sys.getswitchinterval()
    with threadpool_limits(limits=2):
        yield
    sys.setswitchinterval(interval_s)


def threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info()}


def test_libraries_use_one_thread_inside_and_what_they_used_before_after() -> None:
    before = threads()
    with beside_serving():
        assert threads() == {1}
    assert threads() == before != {1}


def test_interpreter_is_handed_over_early_from_then_on() -> None:
    sys.setswitchinterval(0.005)
    with beside_serving():
        assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)


def test_interval_that_is_shorter_already_stays() -> None:
    sys.setswitchinterval(0.0001)
    with beside_serving():
        assert sys.getswitchinterval() == pytest.approx(0.0001)


def test_thread_keeps_its_priority() -> None:
    seen: list[int] = []

    def work() -> None:
        with beside_serving():
            seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [os.getpriority(os.PRIO_PROCESS, 0)]
