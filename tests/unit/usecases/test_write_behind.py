import asyncio

import pytest

from serve_app.usecases import write_behind
from serve_app.usecases.write_behind import WaitingToBeWritten, write_for_ever


def test_what_waits_is_bounded_in_number_and_in_values_and_drops_are_told_once() -> None:
    waiting = WaitingToBeWritten[str](most=3, most_values=10)
    for name in "abcde":
        if waiting.has_room():
            waiting.put(name, 1)
    assert waiting.take() == (["a", "b", "c"], 2)
    for name in "ab":
        if waiting.has_room():
            waiting.put(name, 11)
    assert waiting.take() == (["a"], 1), "one may be larger than the bound, or it could never be written"
    assert waiting.take() == ([], 0)


async def test_a_write_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_behind, "WRITE_EVERY_S", 0.001)
    n_calls, is_second = 0, asyncio.Event()

    async def write() -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            raise OSError("the disk is full")
        is_second.set()

    running = asyncio.create_task(write_for_ever(write, noun="things"))
    async with asyncio.timeout(30):
        await is_second.wait()
    running.cancel()
