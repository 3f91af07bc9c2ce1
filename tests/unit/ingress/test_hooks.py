"""`POST /hooks/mlflow` through the whole application."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.domain.errors import UnavailableError
from serve_app.domain.webhook import signature_of
from serve_app.ingress.api import build_api
from serve_app.ingress.hooks import MAX_BODY_BYTES, PATH, Webhooks, hooks_router
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import FakeControlPlane
from tests.unit.ingress.administered import Refusals
from tests.unit.ingress.serving import FAMILY, Server

pytestmark = pytest.mark.usefixtures("quiet")

SECRET = b"what the registry and this server share"


def event(model: str = "iris-model", entity: str = "model_version_alias") -> bytes:
    data = {"name": model, "alias": "champion", "version": "2"}
    return json.dumps({"entity": entity, "action": "created", "timestamp": "2026-01-30", "data": data}).encode()


class Hooked:
    """A gateway whose families `forecaster` and `iris` follow the registered model `iris-model`."""

    def __init__(self, secret: bytes | None = SECRET) -> None:
        self.plane = FakeControlPlane(FAMILY, "iris")
        self.clock = FakeClock()
        self.refusals = Refusals()
        server = Server()
        webhooks = Webhooks(secret, {"iris-model": [FAMILY, "iris"], "other": [FAMILY]})
        self.api = build_api(
            server.router, server.inference, required=frozenset(), collect_metrics=_no_metrics,
            hooks=hooks_router(webhooks, plane=self.plane, meter=self.refusals, clock=self.clock),
        )  # fmt: skip
        self.meter = server.meter

    async def send(self, body: bytes, headers: dict[str, str]) -> httpx.Response:
        """Send a delivery with these headers."""
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.api), base_url="http://gateway") as client:
            return await client.post(PATH, content=body, headers=headers)

    async def deliver(
        self, body: bytes, *, delivery_id: str = "d-1", secret: bytes = SECRET, age_s: float = 0.0
    ) -> httpx.Response:
        """Send a delivery as MLflow would."""
        timestamp = str(int(self.clock.now_s() - age_s))
        signature = signature_of(secret, delivery_id, timestamp, body)
        return await self.send(
            body,
            {"X-MLflow-Delivery-Id": delivery_id, "X-MLflow-Timestamp": timestamp, "X-MLflow-Signature": signature},
        )


async def _no_metrics() -> bytes:
    return b""


@pytest.fixture
async def hooked() -> Hooked:
    return Hooked()


async def test_genuine_delivery_makes_all_families_that_follow_the_model_look(hooked: Hooked) -> None:
    answer = await hooked.deliver(event())
    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
    assert answer.json()["families"] == [FAMILY, "iris"] == hooked.plane.looked
    assert hooked.refusals.reasons == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (event("example_model"), "no family follows this model"),
        (event(entity="prompt"), "this event changes no version"),
    ],
    ids=["a model that nobody follows, such as MLflow's test event", "a prompt"],
)  # fmt: skip
async def test_delivery_that_concerns_nobody_is_200_and_changes_nothing(hooked: Hooked, body: bytes, said: str) -> None:
    answer = await hooked.deliver(body)
    assert (answer.status_code, answer.json()["status"], answer.json()["detail"]) == (200, "ignored", said)
    assert hooked.plane.looked == []


async def test_delivery_comes_in_once(hooked: Hooked) -> None:
    first = await hooked.deliver(event())
    again = await hooked.deliver(event())
    assert (first.status_code, again.status_code) == (202, 409)
    assert "was taken already" in again.json()["detail"]
    assert len(hooked.plane.looked) == 2
    assert hooked.refusals.reasons == ["webhook"]


async def test_repeat_of_a_delivery_that_failed_is_taken(hooked: Hooked) -> None:
    hooked.plane.error = UnavailableError("the control plane is away", retry_after_s=3)
    failed = await hooked.deliver(event())
    assert (failed.status_code, failed.headers["retry-after"]) == (503, "3")
    hooked.plane.error = None
    assert (await hooked.deliver(event())).status_code == 202
    assert hooked.plane.looked == [FAMILY, "iris"]


@pytest.mark.parametrize(
    "headers", [{}, {"x-mlflow-signature": "v1,abc"}, {"x-mlflow-delivery-id": "ü".encode("latin-1")}], ids=str
)
async def test_delivery_without_a_signature_is_401(hooked: Hooked, headers: dict[str, Any]) -> None:
    answer = await hooked.send(event(), headers)
    assert (answer.status_code, hooked.plane.looked) == (401, [])
    assert hooked.refusals.reasons == ["webhook"]


async def test_delivery_signed_by_another_is_401_and_leaves_no_trace(hooked: Hooked) -> None:
    assert (await hooked.deliver(event(), secret=b"guessed")).status_code == 401
    assert (await hooked.deliver(event())).status_code == 202


@pytest.mark.parametrize("age_s", [301.0, -301.0])
async def test_delivery_outside_the_window_is_401(hooked: Hooked, age_s: float) -> None:
    answer = await hooked.deliver(event(), age_s=age_s)
    assert (answer.status_code, "within 300 s" in answer.json()["detail"]) == (401, True)


async def test_genuine_nonsense_is_422_and_no_refusal(hooked: Hooked) -> None:
    assert (await hooked.deliver(b"{}")).status_code == 422
    assert (hooked.refusals.reasons, hooked.plane.looked) == ([], [])


async def test_large_delivery_is_413_before_it_is_all_read(hooked: Hooked) -> None:
    taken = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b" " * 4096

    async with httpx.AsyncClient(transport=httpx.ASGITransport(hooked.api), base_url="http://gateway") as client:
        answer = await client.post(PATH, content=pieces())
    assert answer.status_code == 413
    assert taken <= MAX_BODY_BYTES // 4096 + 2


async def test_without_a_secret_the_route_is_404_with_the_reason() -> None:
    answer = await Hooked(secret=None).deliver(event())
    assert (answer.status_code, answer.json()) == (
        404, {"detail": "webhooks are off: this server has no webhook secret"},
    )  # fmt: skip


async def test_answers_are_counted_by_the_template_of_the_route(hooked: Hooked) -> None:
    await hooked.deliver(event())
    assert hooked.meter.http == [("POST", PATH, 202)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=100),
    headers=st.dictionaries(
        st.sampled_from(["x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature", "content-type"]),
        st.binary(max_size=40) | st.sampled_from([b"v1,", b"d-1", b"1769763600"]),
    ),
)
async def test_whatever_comes_unsigned_is_401(hooked: Hooked, body: bytes, headers: dict[str, Any]) -> None:
    assert (await hooked.send(body, headers)).status_code == 401
    assert hooked.plane.looked == []
