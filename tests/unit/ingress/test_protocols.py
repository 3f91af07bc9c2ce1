"""What the two protocols of other servers promise alike."""

from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.unit.ingress.protocols import split_server
from tests.unit.ingress.serving import FAMILY, Server

pytestmark = pytest.mark.usefixtures("quiet")


@dataclass(frozen=True)
class Protocol:
    """Its routes, the first for the version that routing chooses and the other for a named one, and a good body."""

    routes: tuple[str, str]
    body: dict[str, Any]
    request_id: str
    """A header that names a request."""

    def path(self, version: str | None = None) -> str:
        return self.routes[version is not None].format(family=FAMILY, version=version)


OPEN_INFERENCE = Protocol(
    ("/v2/models/{family}/infer", "/v2/models/{family}/versions/{version}/infer"),
    {"inputs": [{"name": "x", "datatype": "FP64", "shape": [2, 3], "data": [[1, 2, 3], [4, 5, 6]]}]},
    "x-request-id",
)
TENSORFLOW = Protocol(
    ("/v1/models/{family}:predict", "/v1/models/{family}/versions/{version}:predict"),
    {"instances": [[1, 2, 3], [4, 5, 6]]},
    "x-correlation-id",
)
BOTH = pytest.mark.parametrize("protocol", [OPEN_INFERENCE, TENSORFLOW], ids=["open inference", "tensorflow"])


@BOTH
async def test_answer_has_the_headers_of_every_prediction_and_is_counted_by_its_route(protocol: Protocol) -> None:
    server = Server()
    async with server.http() as client:
        answer = await client.post(protocol.path(), json=protocol.body, headers={protocol.request_id: "abc"})
        assert (answer.headers["x-request-id"], answer.headers["x-model-version"]) == ("abc", "v1")
        assert answer.headers["x-prediction-id"]
        await client.post(protocol.path("v1"), json=protocol.body)
    assert server.meter.seen == [(FAMILY, "v1", "stable", 200)] * 2
    assert [route for _, route, _ in server.meter.http] == list(protocol.routes)


@BOTH
async def test_routes_mounted_in_fastapi_alone_answer_the_same(protocol: Protocol) -> None:
    server = split_server(0)
    for path in (protocol.path(), protocol.path("v2")):
        answers = []
        for app in (server.api, server.api.rest):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
                answer = await client.post(path, json=protocol.body)
                assert answer.status_code == 200, answer.text
                answers.append((answer.content, answer.headers["x-model-version"]))
        assert answers[0] == answers[1]
