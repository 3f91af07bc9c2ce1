"""Deliveries over HTTP to a real server that takes them, refuses them, hangs, redirects, goes away and comes back."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serve_app.adapters.event_webhook import WebhookSender, WebhookSettings
from serve_app.domain.event_forms import sentence_of, signed_headers
from serve_app.domain.events import EventKind
from serve_app.usecases.event_ports import DeliveryError
from tests.fakes.clock import FakeClock
from tests.http_receiver import Receiver, http_receiver
from tests.unit.usecases.eventful import NOW_S, event

SOURCE = "/serve-app/eu"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with http_receiver() as made:
        yield made


@asynccontextmanager
async def sending(receiver: Receiver, **settings: Any) -> AsyncIterator[WebhookSender]:
    if "url_file" not in settings:
        settings["url"] = receiver.url
    sender = WebhookSender(WebhookSettings(SOURCE, **settings), clock=FakeClock())
    try:
        yield sender
    finally:
        await sender.close()


async def refused(sender: WebhookSender) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await sender.send(event(id=1))
    return caught.value


async def test_a_cloud_event_is_posted_in_structured_mode(receiver: Receiver) -> None:
    async with sending(receiver) as sender:
        await sender.send(event(id=7))
    (got,) = receiver.got
    assert got.path == "/hook"
    assert got.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert got.headers["webhook-signature"] is None
    assert (got.document["id"], got.document["source"]) == ("7", SOURCE)
    assert got.document["data"]["version"] == "v2"


async def test_a_message_for_slack_is_plain_json_with_the_sentence(receiver: Receiver) -> None:
    async with sending(receiver, is_slack=True) as sender:
        await sender.send(event(EventKind.ROLLOUT_ABORTED, id=7))
    (got,) = receiver.got
    assert got.headers["content-type"] == "application/json"
    assert got.document["text"] == sentence_of(event(EventKind.ROLLOUT_ABORTED))
    assert [block["type"] for block in got.document["blocks"]] == ["section", "context"]


async def test_the_signature_fits_the_very_bytes_and_the_secret_may_change_while_it_runs(
    receiver: Receiver, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    async with sending(receiver, secret_file=secret) as sender:
        for text in (b"first\n", b"whsec_c2Vjb25k"):
            secret.write_bytes(text)
            await sender.send(event(id=7))
            got = receiver.got[-1]
            expected = signed_headers(text.strip(), got.headers["webhook-id"], got.body, now_s=NOW_S)
            assert {name: got.headers[name] for name in expected} == expected
    assert receiver.got[0].headers["webhook-id"] == receiver.got[1].headers["webhook-id"]


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_what_was_read_and_refused_is_told_apart_with_the_receivers_words(
    receiver: Receiver, status: int
) -> None:
    receiver.status, receiver.answer_body = status, b"invalid_blocks\n" + b"x" * 100_000
    async with sending(receiver) as sender:
        error = await refused(sender)
    assert error.is_refusal
    assert f"{status}: invalid_blocks x" in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429, 500, 503])
async def test_other_failures_are_tried_again(receiver: Receiver, status: int) -> None:
    receiver.status, receiver.answer_headers = status, {"Retry-After": "17"}
    async with sending(receiver) as sender:
        error = await refused(sender)
    assert not error.is_refusal
    assert error.retry_after_s == 17


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    with http_receiver() as other:
        receiver.status, receiver.answer_headers = 307, {"Location": other.url}
        async with sending(receiver) as sender:
            assert "307" in str(await refused(sender))
        assert other.got == []


async def test_a_receiver_that_hangs_costs_the_timeout_and_no_more(receiver: Receiver) -> None:
    receiver.may_answer.clear()
    async with sending(receiver, timeout_s=0.1) as sender:
        assert "0.1 s" in str(await refused(sender))
        receiver.may_answer.set()
        await sender.send(event(id=1))
    assert len(receiver.got) == 2


async def test_a_receiver_that_is_gone_is_an_error_without_its_url_until_it_is_back(receiver: Receiver) -> None:
    async with sending(receiver) as sender:
        receiver.close()
        error = await refused(sender)
        assert "ConnectError" in str(error)
        assert "127.0.0.1" not in str(error)  # the URL may be the secret
        receiver.open()
        await sender.send(event(id=1))


async def test_a_url_from_a_file_is_read_for_each_delivery_and_checked(receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "url"
    async with sending(receiver, url_file=file) as sender:
        assert "cannot be read" in str(await refused(sender))
        file.write_text("file:///etc/passwd")
        assert "no http or https URL" in str(await refused(sender))
        file.write_text(receiver.url + "\n")
        await sender.send(event(id=1))
    assert len(receiver.got) == 1


@pytest.mark.parametrize("text", ["", "whsec_***"])
async def test_a_bad_secret_is_an_error_and_nothing_is_sent_unsigned(
    receiver: Receiver, tmp_path: Path, text: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(text)
    async with sending(receiver, secret_file=secret) as sender:
        assert "secret" in str(await refused(sender))
    assert receiver.got == []
