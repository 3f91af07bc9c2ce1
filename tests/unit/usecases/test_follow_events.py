"""Listeners get what they lack and what comes, hear when the control plane is away, and are let go of at the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from serve_app.domain.errors import UnavailableError
from serve_app.domain.events import Event
from serve_app.usecases.follow_events import AWAY, LEAVING, PAGE, EventFeed, Remark
from tests.fakes.control_plane import FakeControlPlane
from tests.unit.usecases.eventful import event


def plane_with(n: int = 0) -> FakeControlPlane:
    plane = FakeControlPlane("iris", "other")
    for _ in range(n):
        tell(plane)
    return plane


def tell(plane: FakeControlPlane, family: str = "iris") -> None:
    plane.told.append(event(id=len(plane.told) + 1, family=family))


def feed_of(plane: FakeControlPlane, *, heartbeat_s: float = 60.0, most: int = 2) -> EventFeed:
    return EventFeed(plane, max_listeners=most, look_s=0.005, heartbeat_s=heartbeat_s)


@asynccontextmanager
async def listening(
    feed: EventFeed, after: int | None = None, family: str | None = None
) -> AsyncIterator[AsyncIterator[Event | Remark]]:
    feed.enter()
    try:
        async with asyncio.timeout(10), aclosing(feed.follow(after=after, family=family)) as told:  # type: ignore[type-var]  # a generator
            yield told
    finally:
        feed.leave()


async def next_id(told: AsyncIterator[Event | Remark]) -> int:
    found = await anext(told)
    assert isinstance(found, Event), found
    return found.id


async def test_a_listener_begins_after_the_id_it_names_and_goes_on_with_what_happens() -> None:
    plane = plane_with(3)
    async with listening(feed_of(plane), after=1) as told:
        assert [await next_id(told), await next_id(told)] == [2, 3]
        waiting = asyncio.create_task(next_id(told))
        await asyncio.sleep(0)
        tell(plane)
        assert await waiting == 4


async def test_a_listener_without_an_id_gets_what_happens_from_now_on() -> None:
    plane = plane_with(3)
    async with listening(feed_of(plane, heartbeat_s=0.05)) as told:
        assert await anext(told) == Remark("still here")
        tell(plane)
        assert await next_id(told) == 4


async def test_many_events_come_page_by_page_without_a_gap() -> None:
    plane = plane_with(2 * PAGE + 5)
    async with listening(feed_of(plane), after=0) as told:
        assert [await next_id(told) for _ in plane.told] == [*range(1, 2 * PAGE + 6)]


async def test_a_family_is_all_that_is_told_where_one_is_named() -> None:
    plane = plane_with(2)
    async with listening(feed_of(plane), after=0, family="other") as told:
        waiting = asyncio.create_task(next_id(told))
        await asyncio.sleep(0)
        tell(plane)
        tell(plane, "other")
        assert await waiting == 4


async def test_while_the_control_plane_is_away_the_listener_is_told_so_once_and_misses_nothing() -> None:
    plane = plane_with(1)
    async with listening(feed_of(plane, heartbeat_s=0.03), after=0) as told:
        assert await next_id(told) == 1
        plane.error = UnavailableError("away")
        remarks = [await anext(told) for _ in range(3)]
        assert remarks.count(Remark(AWAY)) == 1
        tell(plane)
        plane.error = None
        while isinstance(found := await anext(told), Remark):
            pass
        assert found.id == 2


async def test_an_id_of_another_store_does_not_make_a_listener_deaf() -> None:
    plane = plane_with(1)
    async with listening(feed_of(plane, heartbeat_s=0.05), after=999) as told:
        assert await anext(told) == Remark("still here")
        tell(plane)
        assert await next_id(told) == 2


async def test_a_listener_hears_something_in_time_though_others_are_told_much() -> None:
    plane = plane_with()
    async with listening(feed_of(plane, heartbeat_s=0.2), family="other") as told:
        began_s = asyncio.get_running_loop().time()
        heard = asyncio.ensure_future(anext(told))
        while not heard.done():
            tell(plane)  # which rings, for nothing
            await asyncio.sleep(0.01)
        assert heard.result() == Remark("still here")
        assert asyncio.get_running_loop().time() - began_s < 3


async def test_more_listeners_than_allowed_are_refused_until_one_leaves() -> None:
    feed = feed_of(plane_with())
    feed.enter()
    feed.enter()
    with pytest.raises(UnavailableError, match="2 listen to events"):
        feed.enter()
    feed.leave()
    feed.enter()
    feed.leave()
    feed.leave()
    assert feed.n_listeners == 0


async def test_listeners_are_let_go_of_when_the_gateway_is_to_stop_after_what_there_is_to_tell() -> None:
    plane, leaving = plane_with(1), False

    async def is_leaving() -> bool:
        return leaving

    feed = EventFeed(plane, max_listeners=2, is_leaving=is_leaving, look_s=0.005)
    async with listening(feed, after=0) as told:
        assert await next_id(told) == 1
        waiting = asyncio.ensure_future(anext(told))
        await asyncio.sleep(0)
        leaving = True
        assert await waiting == Remark(LEAVING)
        with pytest.raises(StopAsyncIteration):
            await anext(told)


async def test_nobody_is_asked_while_nobody_listens() -> None:
    feed = feed_of(plane_with())
    assert feed._looking is None
    async with listening(feed):
        assert feed._looking is not None
    assert feed._looking is None
