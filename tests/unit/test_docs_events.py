"""The section on events in `docs/rollouts.md`: its settings are settings, its examples are what the code makes."""

import json

import yaml

from serve_app.config import AppConfig
from serve_app.domain.event_forms import cloud_event, slack_message
from serve_app.domain.events import Event, EventKind
from serve_app.ingress.events import frame_of
from serve_app.usecases.deliver_events import RETRY_DELAYS_S
from serve_app.usecases.event_ports import KEPT_EVENTS
from tests.pages import block, page

PAGE = "rollouts.md"
CLOUD_EVENT = json.loads(block(PAGE, "json", '"specversion"'))
EVENT = Event.model_validate(CLOUD_EVENT["data"])


def section() -> str:
    return page(PAGE).split("\n## Events\n")[1].split("\n## ")[0]


def test_the_settings_are_ones_that_the_configuration_takes() -> None:
    events = yaml.safe_load(block(PAGE, "yaml", "webhooks:"))["events"]
    family = {"models_type": "regression", "source": {"root": "models"}}
    config = AppConfig.parse({"families": {"forecaster": family}, "events": events})
    assert [webhook.name for webhook in config.webhooks] == ["pipeline", "chat"]
    assert config.event_source == CLOUD_EVENT["source"]


def test_the_examples_are_what_the_code_makes_of_one_event() -> None:
    assert cloud_event(EVENT, source=CLOUD_EVENT["source"]) == CLOUD_EVENT
    assert slack_message(EVENT) == json.loads(block(PAGE, "json", '"blocks"'))
    assert frame_of(EVENT).decode().strip() == block(PAGE, "text", "data:").strip()


def test_the_table_has_every_kind() -> None:
    rows = [line for line in section().splitlines() if line.startswith("| `")]
    assert {kind for kind in EventKind if any(f"`{kind.value}`" in row for row in rows)} == set(EventKind)


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"{KEPT_EVENTS:,}" in section()
    *first, last = (f"{delay_s:g}" for delay_s in RETRY_DELAYS_S)
    assert f"after {', '.join(first)} and then every {last} s" in " ".join(section().split())
