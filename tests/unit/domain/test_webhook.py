import base64
import contextlib
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.errors import InvalidInputError, UnavailableError
from serve_app.domain.webhook import (
    Delivery,
    ForgedDeliveryError,
    RepeatedDeliveryError,
    ReplayMemory,
    StaleDeliveryError,
    check_delivery,
    event_of,
    signature_of,
)

SECRET = b"a secret of the registry"
NOW_S = 1_769_763_600.0
BODY = b'{"entity":"model_version_alias","action":"created","data":{"name":"iris","alias":"champion","version":"2"}}'


def delivery(*, secret: bytes = SECRET, at_s: float = NOW_S, **changes: Any) -> Delivery:
    """Return a delivery signed as it stands, then changed."""
    facts: dict[str, Any] = {"delivery_id": "3f2c-1", "timestamp": str(int(at_s)), "body": BODY}
    signature = signature_of(secret, facts["delivery_id"], facts["timestamp"], facts["body"])
    return Delivery(**{**facts, "signature": signature, **changes})


def test_signature_is_the_one_that_mlflow_makes() -> None:
    signed = b"id-1.1769763600." + BODY
    expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert signature_of(SECRET, "id-1", "1769763600", BODY) == f"v1,{expected}"


def test_genuine_delivery_is_let_in_and_remembered_as_long_as_it_could_come_again() -> None:
    assert check_delivery(delivery(), SECRET, now_s=NOW_S + 10, window_s=60) == NOW_S + 60


@pytest.mark.parametrize(
    "changes",
    [
        {"body": BODY + b" "},
        {"body": b""},
        {"delivery_id": "3f2c-2"},
        {"delivery_id": ""},
        {"timestamp": str(int(NOW_S) + 1)},
        {"timestamp": ""},
        {"timestamp": "soon"},
        {"timestamp": "9" * 400},
        {"timestamp": "\u0661769763600"},
        {"signature": ""},
        {"signature": "v1,"},
        {"signature": "v1,\udcff\u00fc"},
        {"signature": signature_of(SECRET, "3f2c-1", str(int(NOW_S)), BODY).removeprefix("v1,")},
        {"signature": signature_of(SECRET, "3f2c-1", str(int(NOW_S)), BODY).replace("v1", "v2")},
        {"signature": signature_of(b"another secret", "3f2c-1", str(int(NOW_S)), BODY)},
        {"signature": signature_of(b"", "3f2c-1", str(int(NOW_S)), BODY)},
    ],
    ids=str,
)  # fmt: skip
def test_delivery_that_was_tampered_with_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ForgedDeliveryError):
        check_delivery(delivery(**changes), SECRET, now_s=NOW_S)


def test_parts_of_the_signed_text_cannot_change_places() -> None:
    """`a.1` + `2` and `a` + `1` sign the same bytes; only the one that the sender meant may pass."""
    signature = signature_of(SECRET, "a", "1", b"2." + BODY)
    assert signature == signature_of(SECRET, "a.1", "2", BODY)
    with pytest.raises(ForgedDeliveryError):
        check_delivery(Delivery(delivery_id="a.1", timestamp="2", signature=signature, body=BODY), SECRET, now_s=2)


@pytest.mark.parametrize("age_s", [-301.0, 301.0, 86_400.0, 1e9])
def test_delivery_outside_the_window_is_refused(age_s: float) -> None:
    with pytest.raises(StaleDeliveryError, match="within 300 s"):
        check_delivery(delivery(at_s=NOW_S - age_s), SECRET, now_s=NOW_S)


@pytest.mark.parametrize("age_s", [-300.0, -1.0, 0.0, 299.0, 300.0])
def test_delivery_within_the_window_is_let_in(age_s: float) -> None:
    check_delivery(delivery(at_s=NOW_S - age_s), SECRET, now_s=NOW_S)


def test_an_old_delivery_with_a_wrong_signature_is_forged_not_stale() -> None:
    with pytest.raises(ForgedDeliveryError):
        check_delivery(delivery(secret=b"other", at_s=1.0), SECRET, now_s=NOW_S)


# -- replays


def test_id_is_taken_once_until_it_expires() -> None:
    memory = ReplayMemory()
    memory.take("a", until_s=NOW_S + 10, now_s=NOW_S)
    with pytest.raises(RepeatedDeliveryError, match="the delivery a was taken already"):
        memory.take("a", until_s=NOW_S + 10, now_s=NOW_S + 9)
    memory.take("a", until_s=NOW_S + 30, now_s=NOW_S + 10)


def test_id_given_back_may_come_again() -> None:
    memory = ReplayMemory()
    memory.take("a", until_s=NOW_S + 10, now_s=NOW_S)
    memory.give_back("a")
    memory.give_back("never taken")
    memory.take("a", until_s=NOW_S + 10, now_s=NOW_S)


def test_full_memory_refuses_instead_of_forgetting_and_recovers_with_time() -> None:
    memory = ReplayMemory(max_entries=2)
    memory.take("a", until_s=NOW_S + 10, now_s=NOW_S)
    memory.take("b", until_s=NOW_S + 20, now_s=NOW_S)
    with pytest.raises(UnavailableError, match="2 deliveries came within the window"):
        memory.take("c", until_s=NOW_S + 30, now_s=NOW_S + 5)
    with pytest.raises(RepeatedDeliveryError):
        memory.take("a", until_s=NOW_S + 30, now_s=NOW_S + 5)
    memory.take("c", until_s=NOW_S + 30, now_s=NOW_S + 11)
    assert len(memory) == 2


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 50), st.floats(0, 5)), max_size=60))
def test_whatever_comes_no_id_is_taken_twice_before_it_expires(steps: list[tuple[str, float, float]]) -> None:
    memory = ReplayMemory(max_entries=4)
    expiries: dict[str, float] = {}
    now_s = 0.0
    for name, life_s, step_s in steps:
        now_s += step_s
        try:
            memory.take(name, until_s=now_s + life_s, now_s=now_s)
        except (RepeatedDeliveryError, UnavailableError):
            continue
        assert expiries.get(name, now_s) <= now_s
        expiries[name] = now_s + life_s
        assert len(memory) <= 4


# -- what it says


@pytest.mark.parametrize(
    ("entity", "model"),
    [
        ("registered_model", "iris"), ("model_version", "iris"), ("model_version_tag", "iris"),
        ("model_version_alias", "iris"), ("prompt", None), ("prompt_alias", None), ("budget_policy", None),
    ],
)  # fmt: skip
def test_only_events_about_models_name_one(entity: str, model: str | None) -> None:
    event = event_of(json.dumps({"entity": entity, "action": "created", "data": {"name": "iris"}, "x": 1}).encode())
    assert (event.model, event.name) == (model, f"{entity}.created")


@pytest.mark.parametrize("data", [{}, {"name": None}, {"name": 7}, {"name": ["iris"]}], ids=str)
def test_event_without_a_model_name_names_none(data: dict[str, Any]) -> None:
    body = json.dumps({"entity": "model_version", "action": "created", "data": data}).encode()
    assert event_of(body).model is None


@pytest.mark.parametrize(
    "body",
    [b"", b"nothing", b"[]", b"null", b"{}", b'{"entity":"a","action":"b"}', b'{"entity":1,"action":"b","data":{}}',
     b'{"entity":"a","action":"b","data":[]}', b"\xff\xfe", b"[" * 100_000],
    ids=lambda body: str(body[:30]),
)  # fmt: skip
def test_body_that_is_no_event_is_one_sentence(body: bytes) -> None:
    with pytest.raises(InvalidInputError, match="expected an event of MLflow") as caught:
        event_of(body)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_whatever_bytes_come_are_an_event_or_refused(body: bytes) -> None:
    with contextlib.suppress(InvalidInputError):
        event_of(body)
