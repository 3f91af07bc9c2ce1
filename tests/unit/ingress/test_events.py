"""`/admin/events` over a real socket: the stream with resume, filter, limit and heartbeats, and the list."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx
import pytest
import uvicorn

from serve_app.cli.ports import choose_free
from serve_app.domain.events import EventKind
from tests.unit.ingress.administered import BEARER, READ, Administered
from tests.unit.ingress.serving import FAMILY
from tests.unit.usecases.eventful import event

PATH = "/admin/events"
STREAM = {"Accept": "text/event-stream"}
LIST = {"Accept": "application/json"}


@dataclass
class Served:
    """A gateway, and a client of it."""

    gateway: Administered
    http: httpx.AsyncClient

    def tell(self, family: str = FAMILY, kind: EventKind = EventKind.RELOAD_COMMITTED) -> None:
        told = self.gateway.plane.told
        told.append(event(kind, id=len(told) + 1, family=family, reason="line\nbreak"))


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    gateway, (port,) = Administered(), choose_free(1)
    config = uvicorn.Config(gateway.api, port=port, lifespan="off", ws="none", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:
            await asyncio.sleep(0.01)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=BEARER, trust_env=False) as http:
        yield Served(gateway, http)
    server.should_exit = True
    with suppress(asyncio.CancelledError):
        await serving


@asynccontextmanager
async def stream(served: Served, query: str = "", **headers: str) -> AsyncIterator[AsyncIterator[str]]:
    async with asyncio.timeout(10), served.http.stream("GET", PATH + query, headers=STREAM | headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"
        yield answer.aiter_lines()


async def read_event(lines: AsyncIterator[str]) -> dict[str, str]:
    """Read one event as the standard says: fields up to an empty line, comments left out."""
    fields: dict[str, str] = {}
    async for line in lines:
        if not line and "data" in fields:
            return fields
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
    raise AssertionError("the stream has ended")


async def test_events_come_with_id_kind_and_one_line_of_json(served: Served) -> None:
    served.tell()
    async with stream(served, "?after=0") as lines:
        first = await read_event(lines)
    assert (first["id"], first["event"], first["retry"]) == ("1", "reload.committed", "2000")
    document = json.loads(first["data"])
    assert (document["family"], document["reason"]) == (FAMILY, "line\nbreak")
    assert document["sentence"] == f"{FAMILY}: v2 answers now, instead of v1"


async def test_whoever_was_cut_off_goes_on_after_the_last_id_it_has(served: Served) -> None:
    for _ in range(3):
        served.tell()
    async with stream(served, "?after=0") as lines:
        last = (await read_event(lines))["id"]
    served.tell()
    async with stream(served, "?after=0", **{"Last-Event-ID": last}) as lines:  # the header wins
        assert [(await read_event(lines))["id"] for _ in range(3)] == ["2", "3", "4"]
        served.tell()
        assert (await read_event(lines))["id"] == "5"


async def test_a_family_is_all_that_comes_where_one_is_named(served: Served) -> None:
    served.tell("iris")
    served.tell()
    async with stream(served, f"?after=0&family={FAMILY}") as lines:
        assert (await read_event(lines))["id"] == "2"


async def test_a_quiet_stream_says_that_it_is_still_there(served: Served) -> None:
    async with stream(served) as lines:
        async for line in lines:
            if line == ": still here":
                break


async def test_one_listener_too_many_is_told_so_and_gets_in_when_another_has_left(served: Served) -> None:
    async with stream(served), stream(served):
        refused = await served.http.get(PATH, headers=STREAM)
        assert refused.status_code == 503
        assert "2 listen to events" in refused.json()["detail"]
        assert refused.headers["retry-after"] == "30"
        assert (await served.http.get(PATH, headers=LIST)).status_code == 200
    async with asyncio.timeout(10):
        while (feed := served.gateway.api_feed).n_listeners:
            await asyncio.sleep(0.01)
    assert feed._looking is None
    async with stream(served):
        pass


async def test_the_list_is_the_newest_or_what_came_after_an_id(served: Served) -> None:
    for family in (FAMILY, "iris", FAMILY):
        served.tell(family)

    async def ids(query: str) -> list[int]:
        answer = await served.http.get(PATH + query, headers=LIST)
        assert answer.status_code == 200
        return [one["id"] for one in answer.json()["events"]]

    assert await ids("") == [1, 2, 3]
    assert await ids("?limit=2") == [2, 3]
    assert await ids("?after=0&limit=2") == [1, 2]
    assert await ids("?family=iris") == [2]
    assert (await served.http.get(PATH, headers=LIST)).json()["newest"] == 3


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("?after=-1", {}, 422), ("?after=x", {}, 422), ("?limit=0", {}, 422), ("?family=nobody", {}, 404),
        ("", {"Last-Event-ID": "abc"}, 422), ("", {"Last-Event-ID": "9" * 30}, 422),
        ("", {"Authorization": "Bearer nobodys-token-0123456789"}, 401),
        ("", {"Authorization": f"Bearer {READ}"}, 200),
    ],
)  # fmt: skip
async def test_who_may_read_and_what_may_be_asked(
    served: Served, query: str, headers: dict[str, str], status: int
) -> None:
    assert (await served.http.get(PATH + query, headers=LIST | headers)).status_code == status
