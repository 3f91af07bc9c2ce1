from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

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
