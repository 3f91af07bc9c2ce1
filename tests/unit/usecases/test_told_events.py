"""The control plane tells of each change once, whichever write it is killed at, and of sources and pins."""

import asyncio
from typing import Any

import pytest

from serve_app.domain.errors import SourceError
from serve_app.domain.events import EventKind
from tests.fakes.state_store import FakeStateStore
from tests.unit.usecases.test_control_versions import FAMILY, World, reload, settled


class _KilledError(BaseException):
    """Ends the Reconciler as `kill -9` would: nothing after it runs."""


class _MortalStore(FakeStateStore):
    """Kills the writer at its next write but `left`, before the write or after it."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None
        self.writes_first = False
        self.has_killed = False

    def write(self, *args: Any, **kwargs: Any) -> None:
        if self.left == 0:
            self.has_killed = True
            if self.writes_first:
                super().write(*args, **kwargs)
            raise _KilledError
        super().write(*args, **kwargs)
        self.left = None if self.left is None else self.left - 1


@pytest.mark.parametrize("writes_first", [False, True])
@pytest.mark.parametrize("left", [0, 1, 2, 3])
async def test_a_change_that_is_cut_off_at_any_write_is_told_once(left: int, writes_first: bool) -> None:
    store = _MortalStore()
    world = World(store=store)
    world.publish("v1")
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    n_before = len(store.told)
    store.left, store.writes_first = left, writes_first
    task = asyncio.create_task(reload(control))
    async with asyncio.timeout(10):
        while not store.has_killed:
            await asyncio.sleep(0.001)
    task.cancel()
    for leftover in (*control._runs._tasks, task):
        leftover.cancel()
        await asyncio.gather(leftover, return_exceptions=True)
    store.left = None
    control = await world.reconciler()
    await settled(control)
    await settled(control)
    told = [(event.kind, event.version) for event in store.told[n_before:]]
    assert told == [(EventKind.RELOAD_BEGUN, "v2"), (EventKind.RELOAD_COMMITTED, "v2")]


async def test_what_is_told_is_asked_for_by_family_and_id() -> None:
    world = World()
    world.publish("v1")
    control = await world.reconciler()
    await settled(control)
    page = await control.events(after=1, family=FAMILY, limit=10)
    assert ([event.kind for event in page.events], page.newest) == ([EventKind.RELOAD_COMMITTED], 2)
    assert (await control.events(after=None, family="other", limit=10)).events == ()


async def test_a_refused_bundle_an_outage_and_a_pin_are_told() -> None:
    world = World()
    world.publish("v1")
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.trial.refuses["v2"] = "it hangs"
    await reload(control)
    world.source.error = SourceError("no route")
    world.clock.advance(60)
    await settled(control)
    world.source.error = None
    world.fleet.pin = "v1"
    await settled(control)
    assert [event.kind for event in world.store.told[2:]] == [
        EventKind.RELOAD_BEGUN,
        EventKind.RELOAD_FAILED,
        EventKind.BUNDLE_REFUSED,
        EventKind.SOURCE_UNREACHABLE,
        EventKind.SOURCE_BACK,
        EventKind.PIN_SET,
    ]
    assert world.store.told[4].reason == "it hangs"


async def test_a_rollback_is_told_as_one() -> None:
    world = World()
    world.publish("v1")
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    await reload(control)
    await control.rollback(FAMILY, to=None, actor="ann", wait_s=5.0)
    assert [event.kind for event in world.store.told[4:]] == [EventKind.ROLLBACK_BEGUN, EventKind.ROLLBACK_COMMITTED]
