"""Sends events to one URL over HTTP."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx
import orjson

from serve_app.domain.errors import ServeAppError
from serve_app.domain.event_forms import (
    CLOUD_EVENT_MEDIA_TYPE,
    checked_url,
    cloud_event,
    delivery_id,
    signed_headers,
    slack_message,
)
from serve_app.domain.events import Event
from serve_app.usecases.event_ports import DeliveryError
from serve_app.usecases.ports import Clock

REFUSALS: Final = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
)
"""Answers to what was read and cannot be used; others are about the receiver, not about the event."""
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """Where to, and in which form. Files are read for each delivery, so that secrets change without a restart.

    One of `url` and `url_file` is given. `source` is that of CloudEvents.
    """

    source: str
    url: str | None = None
    url_file: Path | None = None
    secret_file: Path | None = None
    is_slack: bool = False
    timeout_s: float = 10.0


class WebhookSender:
    """Posts one event at a time; implements `EventSender`. Lives on one event loop.

    It calls what the operator configured and nothing else: no redirect is followed, no proxy taken from the
    environment. The answer is read as far as it is told in the log, never acted on.
    """

    def __init__(
        self, settings: WebhookSettings, *, clock: Clock, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._http = httpx.AsyncClient(
            timeout=settings.timeout_s, follow_redirects=False, trust_env=False, transport=transport,
            limits=httpx.Limits(max_connections=1),
        )  # fmt: skip

    async def send(self, event: Event) -> None:
        """See `EventSender.send`."""
        try:
            url, body, headers = await asyncio.to_thread(self._request, event)
            async with (
                asyncio.timeout(self._settings.timeout_s),
                self._http.stream("POST", url, content=body, headers=headers) as answer,
            ):
                said = "" if answer.is_success else await _beginning(answer)
        except TimeoutError:
            raise DeliveryError(f"no answer within {self._settings.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # which may quote the URL, and that may be a secret
            raise DeliveryError(f"the receiver cannot be reached ({type(error).__name__})") from None
        if not answer.is_success:
            raise DeliveryError(
                f"expected an answer of success, found {answer.status_code}{f': {said}' if said else ''}",
                is_refusal=answer.status_code in REFUSALS,
                retry_after_s=_seconds(answer.headers.get("retry-after", "")),
            )

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    def _request(self, event: Event) -> tuple[str, bytes, Mapping[str, str]]:
        settings = self._settings
        url = settings.url or _read(settings.url_file, "URL").decode("ascii", "replace")
        try:
            checked_url(url)
        except ValueError:
            raise DeliveryError("the file of the URL holds no http or https URL") from None
        document: Any = slack_message(event) if settings.is_slack else cloud_event(event, source=settings.source)
        body = orjson.dumps(document)
        headers = {"content-type": "application/json" if settings.is_slack else CLOUD_EVENT_MEDIA_TYPE}
        if settings.secret_file is not None:
            name = delivery_id(event, source=settings.source)
            try:
                headers |= signed_headers(_read(settings.secret_file, "secret"), name, body, now_s=self._clock.now_s())
            except ServeAppError as error:
                raise DeliveryError(str(error)) from error
        return url, body, headers


def _read(path: Path | None, what: str) -> bytes:
    assert path is not None, "one of the two is configured"
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise DeliveryError(f"the file of the {what} cannot be read: {path}: {error.strerror}") from error


async def _beginning(answer: httpx.Response) -> str:
    """Return what the receiver said, as far as it is worth a line."""
    raw = b""
    async for piece in answer.aiter_bytes(_SHOWN):
        raw += piece
        if len(raw) >= _SHOWN:
            break
    return " ".join(raw[:_SHOWN].decode("utf-8", "replace").split())


def _seconds(retry_after: str) -> float:
    """Read `Retry-After`; a date is not worth reading, the usual delays will do."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 8 else 0.0
