"""MLflow's signed webhooks: whether a delivery is genuine, fresh and new, and which registered model it speaks of.

MLflow signs `<delivery id>.<timestamp>.<body>` with HMAC-SHA256 and sends `v1,<base64>`. It repeats a delivery that was
answered by 429 or 5xx under the same id and timestamp, so an id counts as used up only once its delivery was acted on.
"""

import base64
import hashlib
import hmac
import re
from collections import OrderedDict
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.domain.errors import InvalidInputError, RequestError, UnavailableError

WINDOW_S: Final = 300.0
"""How old a delivery may be, and how far ahead its sender's clock; the repeats of one delivery fit in it."""
MAX_REMEMBERED: Final = 10_000
SIGNATURE_VERSION: Final = "v1"
ENTITIES: Final = ("registered_model", "model_version", "model_version_tag", "model_version_alias")
"""What an event is about where it can change which version a model's alias, tag or newest version names."""
_DELIVERY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")  # no dot: the dots of the signed text then stay unambiguous
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")


class WebhooksOffError(RequestError):
    """No secret is configured, so no delivery can be trusted."""


class ForgedDeliveryError(RequestError):
    """The delivery is not signed with our secret."""


class StaleDeliveryError(RequestError):
    """The delivery is older, or further ahead, than the window allows."""


class RepeatedDeliveryError(RequestError):
    """A delivery of this id was taken already."""


class Delivery(BaseModel):
    """One delivery as it came: the three headers of MLflow, empty where one is missing, and the body."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    delivery_id: str
    timestamp: str
    signature: str
    body: bytes


class Event(BaseModel):
    """What the body says, as far as it matters here; `data` is different for each entity."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    entity: str = Field(max_length=128)
    action: str = Field(max_length=128)
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """The event as MLflow names it, such as `model_version_alias.created`."""
        return f"{self.entity}.{self.action}"

    @property
    def model(self) -> str | None:
        """The registered model that may have another version now, or None where the event changes none."""
        model = self.data.get("name")
        return model if self.entity in ENTITIES and isinstance(model, str) else None


class ReplayMemory:
    """Remembers the ids of deliveries for as long as their timestamps would let them in again.

    Only genuine deliveries get here, so nobody without the secret can fill it. A full memory refuses the next delivery
    instead of forgetting one; the sender tries again, and polling finds the change anyway.
    """

    def __init__(self, *, max_entries: int = MAX_REMEMBERED) -> None:
        self._max_entries = max_entries
        self._expiries: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._expiries)

    def take(self, delivery_id: str, *, until_s: float, now_s: float) -> None:
        """Remember an id until `until_s`.

        Raises:
            RepeatedDeliveryError: It is remembered already.
            UnavailableError: The memory is full.
        """
        if self._expiries.get(delivery_id, now_s) > now_s:
            raise RepeatedDeliveryError(f"the delivery {delivery_id} was taken already")
        self._expiries.pop(delivery_id, None)
        if len(self._expiries) >= self._max_entries:
            self._forget_expired(now_s)
        if len(self._expiries) >= self._max_entries:
            raise UnavailableError(f"{len(self._expiries)} deliveries came within the window, the limit; try again")
        self._expiries[delivery_id] = until_s

    def give_back(self, delivery_id: str) -> None:
        """Forget an id: its delivery was not acted on and may come again."""
        self._expiries.pop(delivery_id, None)

    def _forget_expired(self, now_s: float) -> None:
        self._expiries = OrderedDict((id_, until_s) for id_, until_s in self._expiries.items() if until_s > now_s)


def signature_of(secret: bytes, delivery_id: str, timestamp: str, body: bytes) -> str:
    """Sign a delivery as MLflow does."""
    signed = b".".join((delivery_id.encode(), timestamp.encode(), body))
    digest = hmac.new(secret, signed, hashlib.sha256).digest()
    return f"{SIGNATURE_VERSION},{base64.b64encode(digest).decode()}"


def check_delivery(delivery: Delivery, secret: bytes, *, now_s: float, window_s: float = WINDOW_S) -> float:
    """Check who sent a delivery and when; return until when its id must be remembered.

    Raises:
        ForgedDeliveryError: A header is missing or malformed, or the signature is another one.
        StaleDeliveryError: The signature is right, but the timestamp is outside the window.
    """
    is_well_formed = _DELIVERY_ID.fullmatch(delivery.delivery_id) and _TIMESTAMP.fullmatch(delivery.timestamp)
    expected = signature_of(secret, delivery.delivery_id, delivery.timestamp, delivery.body) if is_well_formed else ""
    # surrogatepass: a header is any bytes; compare_digest takes text of ASCII alone.
    if not expected or not hmac.compare_digest(expected.encode(), delivery.signature.encode("utf-8", "surrogatepass")):
        raise ForgedDeliveryError("the signature does not fit this delivery and the secret of this server")
    sent_s = float(delivery.timestamp)
    if abs(now_s - sent_s) > window_s:
        raise StaleDeliveryError(
            f"expected a timestamp within {window_s:g} s of this server's clock, got one {now_s - sent_s:+.0f} s old"
        )
    return sent_s + window_s


def event_of(body: bytes) -> Event:
    """Read the body of a delivery.

    Raises:
        InvalidInputError: It is no event of MLflow.
    """
    try:
        return Event.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise InvalidInputError(f"expected an event of MLflow: {where}: {first['msg'][:200]}") from None
