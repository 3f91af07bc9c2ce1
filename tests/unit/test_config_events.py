from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config import AppConfig
from serve_app.config_events import EventsConfig, WebhookConfig, WebhookForm
from serve_app.domain.errors import ConfigError
from serve_app.domain.events import EventKind

HOOK: dict[str, Any] = {"name": "ops", "url": "https://hooks.example.com/x"}


def app(**events: Any) -> AppConfig:
    family = {"models_type": "regression", "source": {"root": "models"}}
    return AppConfig.parse({"state_dir": "/state", "families": {"iris": family}, "events": events})


def test_without_settings_nobody_is_told() -> None:
    assert app().webhooks == ()
    assert app().event_source == "/serve-app/default"
    assert app(source="urn:x:1").event_source == "urn:x:1"


def test_a_webhook_names_families_and_kinds_and_files_under_the_state_directory() -> None:
    document = {
        "name": "chat", "url_file": "slack-url", "form": "slack", "families": ["iris"], "kinds": ["rollout.aborted"],
        "secret_file": "/run/secret",
    }  # fmt: skip
    (webhook,) = app(webhooks=[document]).webhooks
    assert (webhook.url_file, webhook.secret_file) == ("/state/slack-url", "/run/secret")
    assert (webhook.form, webhook.kinds) == (WebhookForm.SLACK, (EventKind.ROLLOUT_ABORTED,))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"url": "ftp://a/b"}, "expected a URL of http or https"),
        ({"url": "https://ann:secret@a/"}, "without user and password"),
        ({"url_file": "x"}, "either url or url_file"),
        ({"url": None}, "either url or url_file"),
        ({"kinds": ["rollout.done"]}, "kinds"),
        ({"name": "Ops Team"}, "name"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"retries": 3}, "retries"),
    ],
)
def test_a_webhook_that_cannot_work_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        WebhookConfig.model_validate(HOOK | changed)


def test_names_are_unique_and_families_exist() -> None:
    with pytest.raises(ValidationError, match="found twice: ops"):
        EventsConfig.model_validate({"webhooks": [HOOK, HOOK]})
    with pytest.raises(ConfigError, match=r"'irsi' is no family \(did you mean 'iris'"):
        app(webhooks=[HOOK | {"families": ["irsi"]}])


def test_the_url_is_not_shown_where_the_configuration_is() -> None:
    assert "hooks.example.com" not in repr(WebhookConfig.model_validate(HOOK))
