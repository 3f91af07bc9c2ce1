"""Webhooks as the Reconciler runs them, to real receivers: one that is away or hangs is in nobody's way."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from serve_app.adapters.clock import SystemClock
from serve_app.config import AppConfig
from serve_app.deployments.event_wiring import deliver_for_ever, make_deliveries
from serve_app.usecases import deliver_events
from serve_app.usecases.keep_state import StateKeeper
from tests.fakes.state_store import FakeStateStore
from tests.http_receiver import Receiver, http_receiver
from tests.unit.usecases.eventful import event


@pytest.fixture
def receivers() -> Iterator[tuple[Receiver, Receiver]]:
    with http_receiver() as one, http_receiver() as other:
        yield one, other


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    store: FakeStateStore, registry: CollectorRegistry, *webhooks: dict[str, Any]
) -> AsyncIterator[StateKeeper]:
    """Run what the Reconciler runs, with these webhooks."""
    family = {"models_type": "regression", "source": {"root": "models"}}
    config = AppConfig.parse({"families": {"iris": family}, "events": {"webhooks": webhooks}})
    keeper = StateKeeper(store)

    def leads() -> bool:
        return True

    deliveries = make_deliveries(config, keeper, leads=leads, clock=SystemClock(), registry=registry)
    loops = [asyncio.create_task(deliver_for_ever(one, keeper, leads=leads)) for one in deliveries]
    try:
        await until(lambda: all(store.delivered(webhook["name"]) is not None for webhook in webhooks))
        yield keeper
    finally:
        for loop in loops:
            loop.cancel()
            with suppress(asyncio.CancelledError):
                await loop
        for delivery in deliveries:
            await delivery._sender.close()  # type: ignore[attr-defined]  # the adapter


def ids(receiver: Receiver) -> list[str]:
    return [got.document["id"] for got in receiver.got]


async def test_events_arrive_when_they_happen_and_go_on_after_a_restart(receivers: tuple[Receiver, Receiver]) -> None:
    receiver, store = receivers[0], FakeStateStore()
    webhook = {"name": "ops", "url": receiver.url}
    async with running(store, CollectorRegistry(), webhook) as keeper:
        await keeper.append_events([event(), event()])
        await until(lambda: store.delivered("ops") == 2)  # saved: whoever is ended before that sends it once more
    store.append_events([event()])
    async with running(store, CollectorRegistry(), webhook):
        await until(lambda: len(receiver.got) == 3)
    assert ids(receiver) == ["1", "2", "3"]


async def test_a_receiver_that_hangs_and_one_that_is_away_delay_nobody_and_miss_nothing(
    receivers: tuple[Receiver, Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver_events, "RETRY_DELAYS_S", (0.05,))
    well, ill = receivers
    ill.may_answer.clear()
    registry = CollectorRegistry()
    webhooks: list[dict[str, Any]] = [
        {"name": "well", "url": well.url},
        {"name": "ill", "url": ill.url, "timeout_s": 1.0},
    ]

    def counted(name: str, outcome: str) -> float:
        labels = {"webhook": name, "outcome": outcome}
        return registry.get_sample_value("serve_app_event_deliveries_total", labels) or 0.0

    with capture_logs() as logs:
        async with running(FakeStateStore(), registry, *webhooks) as keeper:
            await keeper.append_events([event() for _ in range(5)])
            await until(lambda: len(well.got) == 5)
            await until(lambda: counted("ill", "failed") >= 2)
            ill.close()
            await until(lambda: counted("ill", "failed") >= 5)
            ill.open()
            await until(lambda: counted("ill", "delivered") == 5)
            await until(lambda: logs[-1]["event"] == "webhook delivered again")
    assert ids(well) == ["1", "2", "3", "4", "5"]
    assert list(dict.fromkeys(ids(ill))) == ["1", "2", "3", "4", "5"]
    assert counted("well", "failed") == 0
    assert [line["event"] for line in logs if line["log_level"] in ("warning", "info")] == [
        "webhook not delivered", "webhook delivered again",
    ]  # fmt: skip
