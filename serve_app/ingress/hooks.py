"""`POST /hooks/mlflow`: MLflow says that something changed, and the families that follow it look at once.

A delivery carries no order: all it can cause is a look at the source, which polling would do a little later anyway.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from serve_app.domain.errors import InvalidInputError, NotJsonError, RequestError
from serve_app.domain.webhook import (
    WINDOW_S,
    Delivery,
    Event,
    ReplayMemory,
    WebhooksOffError,
    check_delivery,
    event_of,
)
from serve_app.ingress.admin import admin_route, answer
from serve_app.ingress.request_body import read_body
from serve_app.ingress.security import MAX_ADDRESS_CHARACTERS
from serve_app.usecases.admit_caller import RefusalMeter
from serve_app.usecases.ports import Clock, ControlPlane

PATH: Final = "/hooks/mlflow"
MAX_BODY_BYTES: Final = 64 << 10
REASON: Final = "webhook"
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Webhooks:
    """How deliveries are judged: the secret (None: all are refused), who follows which registered model, the window."""

    secret: bytes | None
    families: Mapping[str, Sequence[str]]
    window_s: float = WINDOW_S


class Taken(BaseModel):
    """Answer to a delivery: `accepted` with the families that look now, or `ignored` with the reason."""

    status: str
    event: str
    families: list[str] = []
    detail: str = ""


def hooks_router(webhooks: Webhooks, *, plane: ControlPlane, meter: RefusalMeter, clock: Clock) -> APIRouter:
    """Build the route. The memory of deliveries is that of this process."""
    api = APIRouter(tags=["hooks"], route_class=admin_route())
    memory = ReplayMemory()

    @api.post(
        PATH, summary="MLflow's signed webhook: look at the registry now", response_model=Taken, status_code=202,
        responses={200: {"model": Taken}, 401: {}, 404: {}, 409: {}, 413: {}, 422: {}, 503: {}},
    )  # fmt: skip
    async def mlflow(request: Request) -> Response:
        if webhooks.secret is None:
            raise WebhooksOffError("webhooks are off: this server has no webhook secret")
        try:
            delivery = await _delivery_of(request)
            until_s = check_delivery(delivery, webhooks.secret, now_s=clock.now_s(), window_s=webhooks.window_s)
            event = event_of(delivery.body)
            memory.take(delivery.delivery_id, until_s=until_s, now_s=clock.now_s())
        except RequestError as error:
            if not isinstance(error, InvalidInputError | NotJsonError):  # then the sender knows the secret
                meter.count_refusal(REASON)
            address = request.client.host if request.client else "unknown"
            log.warning("webhook refused", reason=str(error), address=address[:MAX_ADDRESS_CHARACTERS])
            raise
        try:
            return await _act_on(event, webhooks.families, plane)
        except BaseException:  # a cancelled request has not been acted on either
            memory.give_back(delivery.delivery_id)
            raise

    return api


async def _act_on(event: Event, families: Mapping[str, Sequence[str]], plane: ControlPlane) -> Response:
    if event.model is None:
        return answer(Taken(status="ignored", event=event.name, detail="this event changes no version"))
    following = list(families.get(event.model, ()))
    if not following:
        return answer(Taken(status="ignored", event=event.name, detail="no family follows this model"))
    await asyncio.gather(*map(plane.look, following))
    log.info("webhook taken", registry_event=event.name, model=event.model, families=following)
    return answer(Taken(status="accepted", event=event.name, families=following), status=202)


async def _delivery_of(request: Request) -> Delivery:
    headers = request.headers
    return Delivery(
        delivery_id=headers.get("x-mlflow-delivery-id", ""),
        timestamp=headers.get("x-mlflow-timestamp", ""),
        signature=headers.get("x-mlflow-signature", ""),
        body=await read_body(request, most=MAX_BODY_BYTES),
    )
