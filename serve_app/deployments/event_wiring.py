"""Puts together what brings events to webhooks, in the Reconciler, and to listeners, in a gateway."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from ray.serve.handle import DeploymentHandle

from serve_app.adapters.event_metrics import DeliveryMetrics
from serve_app.adapters.event_webhook import WebhookSender, WebhookSettings
from serve_app.config import AppConfig
from serve_app.config_events import WebhookConfig, WebhookForm
from serve_app.deployments.handles import ask_all
from serve_app.usecases.deliver_events import EventDelivery, Receiver
from serve_app.usecases.event_ports import EventPlane
from serve_app.usecases.follow_events import EventFeed
from serve_app.usecases.keep_state import StateKeeper
from serve_app.usecases.ports import Clock

FOLLOWER_WAIT_S = 1.0
"""How often a cluster that does not lead looks whether it does now."""
ABSENT_LOOKS = 3
"""Looks in a row without an answer of its own after which a gateway takes itself for stopping; one may be lost."""
log = structlog.get_logger(__name__)


def make_deliveries(
    config: AppConfig, keeper: StateKeeper, *, leads: Callable[[], bool], clock: Clock, registry: CollectorRegistry
) -> list[EventDelivery]:
    """Make one delivery for each configured webhook."""
    meter = DeliveryMetrics(registry, [webhook.name for webhook in config.webhooks])
    return [
        EventDelivery(
            Receiver(webhook.name, frozenset(webhook.families), frozenset(webhook.kinds)),
            WebhookSender(_settings(webhook, source=config.event_source), clock=clock),
            keeper=keeper, leads=leads, clock=clock, meter=meter,
        )
        for webhook in config.webhooks
    ]  # fmt: skip


async def deliver_for_ever(delivery: EventDelivery, keeper: StateKeeper, *, leads: Callable[[], bool]) -> None:
    """Deliver what happens when it happens, and what failed when it is due."""
    while True:
        bell = keeper.bell  # taken before the turn: what happens in it rings this one
        try:
            await delivery.turn()
        except Exception:
            log.exception("events not delivered")
        try:
            async with asyncio.timeout(max(delivery.wait_s, 0.1) if leads() else FOLLOWER_WAIT_S):
                await bell.wait()
        except TimeoutError:
            continue
        if delivery.is_waiting:  # news does not hurry a receiver that is away
            await asyncio.sleep(delivery.wait_s)


def make_feed(config: AppConfig, plane: EventPlane, own: DeploymentHandle[Any], own_id: str) -> EventFeed:
    """Make what listeners follow; Serve routes no calls to a replica that is about to stop, which so learns of it."""
    n_absent = 0

    async def is_leaving() -> bool:
        nonlocal n_absent
        n_absent = 0 if own_id in await ask_all(own, "name") else n_absent + 1
        return n_absent >= ABSENT_LOOKS

    return EventFeed(plane, max_listeners=config.events.max_listeners, is_leaving=is_leaving)


def _settings(webhook: WebhookConfig, *, source: str) -> WebhookSettings:
    return WebhookSettings(
        source=source,
        url=webhook.url,
        url_file=Path(webhook.url_file) if webhook.url_file is not None else None,
        secret_file=Path(webhook.secret_file) if webhook.secret_file is not None else None,
        is_slack=webhook.form is WebhookForm.SLACK,
        timeout_s=webhook.timeout_s,
    )
