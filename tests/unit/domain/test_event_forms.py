"""Events as others read them: sentences, CloudEvents, Slack; signatures; URLs that may be called."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.event_forms import (
    BadSecretError,
    checked_url,
    cloud_event,
    delivery_id,
    key_of,
    sentence_of,
    signed_headers,
    slack_message,
)
from serve_app.domain.events import Event, EventKind
from tests.unit.usecases.eventful import event


@pytest.mark.parametrize("kind", EventKind)
def test_every_kind_has_a_sentence_of_one_line_that_names_the_family(kind: EventKind) -> None:
    told = sentence_of(event(kind, reason="first\nsecond", facts={"weight_percent": 5.0, "verdict": "fail"}))
    assert told.startswith("iris: ")
    assert "\n" not in told
    assert "None" not in told.replace("(None)", "").replace("phase None", "")


def test_sentences_say_from_where_to_where_and_why() -> None:
    assert sentence_of(event(EventKind.RELOAD_COMMITTED)) == "iris: v2 answers now, instead of v1"
    assert sentence_of(event(EventKind.RELOAD_FAILED)) == "iris: v2 was not taken up, v1 stays: why"


def test_a_reason_that_only_repeats_the_sentence_is_left_out() -> None:
    begun = event(EventKind.RELOAD_BEGUN, actor="source", reason="source asks for v2")
    assert sentence_of(begun) == "iris: source asks for v2 instead of v1"


def test_a_cloud_event_has_what_the_specification_asks_for() -> None:
    made = cloud_event(event(id=42), source="/serve-app/eu")
    assert {name: made[name] for name in ("specversion", "id", "source", "type", "time", "subject")} == {
        "specversion": "1.0", "id": "42", "source": "/serve-app/eu", "type": "serve-app.reload.committed",
        "time": "2026-01-30T09:00:00.000Z", "subject": "iris",
    }  # fmt: skip
    assert made["datacontenttype"] == "application/json"
    assert Event.model_validate(made["data"]) == event(id=42)
    assert all(name.isalnum() and name.islower() for name in made)  # what names of attributes may be made of
    assert made["sequence"] < cloud_event(event(id=100), source="/")["sequence"]


@given(st.text(max_size=4000))
def test_a_slack_message_is_never_one_that_slack_refuses(reason: str) -> None:
    made = slack_message(event(EventKind.RELOAD_FAILED, reason=reason, version=reason[:128], actor=reason))
    texts = [made["text"], made["blocks"][0]["text"]["text"], made["blocks"][1]["elements"][0]["text"]]
    for text in texts:
        assert 0 < len(text) <= 3000
        assert "<" not in text
        assert ">" not in text
    assert len(json.dumps(made)) < 50_000


def test_what_slack_would_read_as_a_command_is_escaped() -> None:
    assert "&lt;!channel&gt; &amp;" in slack_message(event(EventKind.RELOAD_FAILED, reason="<!channel> &"))["text"]


def test_signature_is_that_of_standard_webhooks() -> None:
    # The example of the specification's libraries.
    secret, body = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    headers = signed_headers(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", body, now_s=1614265330.9)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_secret_is_base64_after_its_prefix_and_itself_otherwise() -> None:
    assert key_of(b"whsec_" + base64.b64encode(b"key")) == b"key"
    assert key_of(b"plain") == b"plain"
    for bad in (b"", b"whsec_", b"whsec_***"):
        with pytest.raises(BadSecretError):
            key_of(bad)


def test_a_delivery_has_one_name_for_all_tries_and_another_for_each_server() -> None:
    assert delivery_id(event(id=3), source="/a") == delivery_id(event(id=3), source="/a")
    assert delivery_id(event(id=3), source="/a") != delivery_id(event(id=3), source="/b")
    assert "." not in delivery_id(event(id=3), source="/a.b")  # dots part the signed text


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/hook", "https://hooks.example.com/services/T/B/x?y=1"])
def test_urls_of_http_are_taken(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks.example.com", "ftp://a/b", "file:///etc/passwd", "http://", "https:///x", "http://a b/", "http://[::1",
        "http://ann:secret@a/", "http://a:99999/", "http://a/\r\nX: y", "gopher://a/",
    ],
)  # fmt: skip
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected a URL"):
        checked_url(url)
