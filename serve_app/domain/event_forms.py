"""How an event is told: as a sentence, as a CloudEvent, as a message of Slack; and how a delivery is signed.

CloudEvents 1.0.2 in the JSON format and structured mode (https://github.com/cloudevents/spec, `cloudevents/spec.md`,
`formats/json-format.md`, `bindings/http-protocol-binding.md`); `sequence` is the extension of that name. Slack's
incoming webhooks take `text` and `blocks` (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks).
The signature is that of Standard Webhooks (https://www.standardwebhooks.com, `webhook-id`, `-timestamp`, `-signature`).
"""

import base64
import binascii
import hashlib
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from serve_app.domain.errors import ServeAppError
from serve_app.domain.events import Event, EventKind
from serve_app.domain.webhook import signature_of

CLOUD_EVENT_MEDIA_TYPE: Final = "application/cloudevents+json; charset=utf-8"
TYPE_PREFIX: Final = "serve-app."
SLACK_MOST_CHARACTERS: Final = 560
"""A text of a section may have 3,000, and escaping makes five characters of one at worst."""
SECRET_PREFIX: Final = "whsec_"  # noqa: S105  # what a secret of Standard Webhooks begins with
_MOST_SAID: Final = 300

_SENTENCES: Final = {
    EventKind.RELOAD_BEGUN: "{family}: {actor} asks for {version} instead of {before}",
    EventKind.RELOAD_COMMITTED: "{family}: {version} answers now, instead of {before}",
    EventKind.RELOAD_FAILED: "{family}: {version} was not taken up, {before} stays",
    EventKind.ROLLBACK_BEGUN: "{family}: {actor} asks to go back from {before} to {version}",
    EventKind.ROLLBACK_COMMITTED: "{family}: went back from {before} to {version}",
    EventKind.ROLLBACK_FAILED: "{family}: could not go back to {version}, {before} stays",
    EventKind.BUNDLE_REFUSED: "{family}: the bundle of {version} was refused",
    EventKind.ROLLOUT_STARTED: "{family}: {actor} starts a rollout ({strategy}) from {before} to {version}",
    EventKind.ROLLOUT_MOVED: "{family}: the rollout of {version} goes on, phase {phase}, {weight} % of the traffic",
    EventKind.ROLLOUT_VERDICT: "{family}: the verdict on {version} is {verdict}",
    EventKind.ROLLOUT_PAUSED: "{family}: the rollout of {version} is paused, {weight} % of the traffic",
    EventKind.ROLLOUT_PROMOTED: "{family}: {version} is promoted and answers now, instead of {before}",
    EventKind.ROLLOUT_ABORTED: "{family}: the rollout of {version} was aborted, {before} answers everything",
    EventKind.ROLLOUT_FAILED: "{family}: the rollout of {version} failed, {before} answers everything",
    EventKind.ROLLOUT_ENDED: "{family}: the rollout of {version} has ended",
    EventKind.SOURCE_UNREACHABLE: "{family}: the source of models cannot be reached, what is loaded goes on",
    EventKind.SOURCE_BACK: "{family}: the source of models can be reached again",
    EventKind.PIN_SET: "{family}: the configuration pins {version}",
    EventKind.PIN_LIFTED: "{family}: the configuration pins no version any more, the source is followed",
}
_SPEAKS_FOR_ITSELF: Final = {EventKind.RELOAD_COMMITTED, EventKind.ROLLBACK_COMMITTED, EventKind.ROLLBACK_BEGUN}


class BadSecretError(ServeAppError):
    """What is configured as the secret of a webhook is none."""


def sentence_of(event: Event) -> str:
    """Tell an event in one line for people."""
    facts = event.facts
    weight = facts.get("weight_percent")
    told = _SENTENCES[event.kind].format(
        family=event.family,
        version=event.version or "no version",
        actor=event.actor or "somebody",
        before=facts.get("from_version") or "nothing",
        strategy=facts.get("strategy"),
        phase=facts.get("phase"),
        weight=f"{weight:g}" if isinstance(weight, int | float) else "?",
        verdict=facts.get("verdict"),
    )
    why = " ".join(event.reason.split())
    if not why or event.kind in _SPEAKS_FOR_ITSELF or why == f"{event.actor} asks for {event.version}":
        return told
    return f"{told}: {why if len(why) <= _MOST_SAID else why[: _MOST_SAID - 1] + '…'}"


def time_of(event: Event) -> str:
    """Return when it happened, as RFC 3339 has it."""
    return datetime.fromtimestamp(event.at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def cloud_event(event: Event, *, source: str) -> dict[str, Any]:
    """Return the CloudEvent; `source` and `id` together tell it from all others."""
    return {
        "specversion": "1.0",
        "id": str(event.id),
        "source": source,
        "type": TYPE_PREFIX + event.kind.value,
        "time": time_of(event),
        "subject": event.family,
        "sequence": f"{event.id:020d}",
        "datacontenttype": "application/json",
        "data": event.model_dump(mode="json"),
    }


def slack_message(event: Event) -> dict[str, Any]:
    """Return the message for Slack: `text` for notifications, `blocks` for the channel."""
    text = _escaped(sentence_of(event))
    context = _escaped(f"{event.kind.value} · {event.actor or 'serve-app'} · {time_of(event)} · event {event.id}")
    return {
        "text": text,
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": context, "verbatim": True}]},
        ],
    }


def delivery_id(event: Event, *, source: str) -> str:
    """Return what names a delivery, the same for each try of it."""
    return f"evt_{hashlib.sha256(source.encode()).hexdigest()[:12]}_{event.id}"


def signed_headers(secret: bytes, name: str, body: bytes, *, now_s: float) -> dict[str, str]:
    """Return the three headers of Standard Webhooks.

    Raises:
        BadSecretError: The secret is empty, or no base64 after `whsec_`.
    """
    timestamp = str(int(now_s))
    signature = signature_of(key_of(secret), name, timestamp, body)
    return {"webhook-id": name, "webhook-timestamp": timestamp, "webhook-signature": signature}


def checked_url(url: str) -> str:
    """Return a URL that events may be sent to.

    Raises:
        ValueError: It is none of http or https with a host, or holds a password, which would end in logs.
    """
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or not url.isascii() or any(character <= " " for character in url):
        raise ValueError("expected a URL of http or https with a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("expected a URL without user and password; use url_file for one that is a secret")
    return url


def key_of(secret: bytes) -> bytes:
    """Return the key of a secret: after `whsec_` it is written in base64, else the secret is the key.

    Raises:
        BadSecretError: It is empty, or no base64 after `whsec_`.
    """
    prefix = SECRET_PREFIX.encode()
    try:
        key = base64.b64decode(secret[len(prefix) :], validate=True) if secret.startswith(prefix) else secret
    except binascii.Error as error:
        raise BadSecretError(f"expected base64 after {SECRET_PREFIX!r} in the secret of a webhook") from error
    if not key:
        raise BadSecretError("expected a secret for the webhook, found an empty one")
    return key


def _escaped(text: str) -> str:
    """Cut what Slack would refuse, and escape the three characters that it reads as its own."""
    cut = text if len(text) <= SLACK_MOST_CHARACTERS else text[: SLACK_MOST_CHARACTERS - 1] + "…"
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
