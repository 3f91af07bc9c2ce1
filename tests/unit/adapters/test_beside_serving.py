import os
import sys
import threading
import time
from collections.abc import Iterator

import numpy  # noqa: F401  # brings a BLAS library along, whose threads are counted here
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from serve_app.adapters.beside_serving import (
    REST_FACTOR,
    SWITCH_INTERVAL_S,
    WORK_S,
    BreathingFile,
    beside_serving,
    breathe,
)


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


def worked_and_passed_s(work_s: float) -> tuple[float, float]:
    """Work for some processor time, breathing all the time, and return the seconds of work and those that passed."""
    started_s, worked_s = time.perf_counter(), time.thread_time()
    while (done_s := time.thread_time() - worked_s) < work_s:
        breathe()
    return done_s, time.perf_counter() - started_s


def test_load_rests_in_proportion_to_its_work() -> None:
    with beside_serving():
        worked_s, passed_s = worked_and_passed_s(20 * WORK_S)
    assert passed_s >= REST_FACTOR * worked_s


def test_work_that_is_no_load_never_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    with beside_serving():
        pass
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("rested"))
    worked_and_passed_s(3 * WORK_S)


def test_file_that_breathes_reads_as_any_other() -> None:
    content = bytes(range(256)) * 100
    with beside_serving():
        file = BreathingFile(content)
        parts = [file.read(7), file.peek(3)[:3], file.read(), file.read(1)]
    assert parts == [content[:7], content[7:10], content[7:], b""]
