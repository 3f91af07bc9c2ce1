import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serve_app.deployments import front_door
from tests.unit.ingress.serving import Server


async def behind(_: object) -> PlainTextResponse:
    return PlainTextResponse("behind")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(
        routes=[Route(path, behind, methods=["GET", "POST"]) for path in ("/live", "/predict/forecaster", "/x")],
        middleware=front_door.middlewares(),
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as opened:
        yield opened


async def test_hot_route_is_answered_at_the_door_and_the_rest_behind_it(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_door, "_open", [])
    front_door.open_for(Server().inference)
    assert (await client.get("/live")).json() == {"status": "alive"}
    answer = await client.post("/predict/forecaster", json={"instances": [[1, 2, 3]]})
    assert answer.json()["model_version"] == "v1"
    assert (await client.get("/x")).text == "behind"


async def test_closed_door_lets_everything_through(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_door, "_open", [])
    assert (await client.get("/live")).text == "behind"


async def test_request_id_of_answers_is_left_to_ray() -> None:
    transport = httpx.ASGITransport(front_door.without_request_id(Server().api))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.post("/predict/", json={"instances": [[1, 2, 3]]}, headers={"x-request-id": "abc"})
    assert "x-request-id" not in answer.headers
    assert answer.headers["x-model-version"] == "v1"


class Watched:
    """A transport that remembers what is written to it."""

    def __init__(self, transport: Any, writes: list[bytes]) -> None:
        self._transport, self._writes = transport, writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.fixture
async def written(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[int, list[bytes]]]:
    """The door behind uvicorn as Ray runs it: its port, and what it writes."""
    monkeypatch.setattr(front_door, "_open", [])
    front_door.open_for(Server().inference)
    app = front_door.FrontDoor(Starlette(routes=[Route("/x", behind)]))  # as Ray puts it around its application
    config, writes = Config(app, http="httptools", lifespan="off"), list[bytes]()
    config.load()

    class WatchedProtocol(HttpToolsProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(Watched(transport, writes))  # type: ignore[arg-type]  # a transport in all but name

    server = await asyncio.get_running_loop().create_server(
        lambda: WatchedProtocol(config=config, server_state=ServerState(), app_state={}), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1], writes


async def test_head_and_body_of_an_answer_are_one_write(written: tuple[int, list[bytes]]) -> None:
    port, writes = written
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        for _ in range(3):
            answer = await client.post("/predict/forecaster", json={"instances": [[1, 2, 3]]})
            assert answer.json()["model_version"] == "v1"
        refused = await client.post("/predict/unknown", json={"instances": [[1, 2, 3]]})
        assert refused.status_code == 404
        assert len(writes) == 4
        assert (await client.get("/x")).text == "behind"


async def test_a_connection_that_is_to_be_closed_is_closed_after_the_answer(written: tuple[int, list[bytes]]) -> None:
    port, writes = written
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"instances": [[1, 2, 3]]}'
    head = b"POST /predict/forecaster HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % len(body)
    writer.write(head + b"\r\n" + body + head + b"connection: close\r\n\r\n" + body)  # the second comes at once
    async with asyncio.timeout(5):
        told = await reader.read()
    writer.close()
    assert told.count(b"HTTP/1.1 200 OK") == told.count(b'"model_version":"v1"') == len(writes) == 2
    assert b"connection: close" in writes[1]
