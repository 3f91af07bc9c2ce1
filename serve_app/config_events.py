"""`events`: who is told what has happened, and how many may listen."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from serve_app.config_part import Name, Part
from serve_app.domain.event_forms import checked_url
from serve_app.domain.events import EventKind


class WebhookForm(StrEnum):
    """How an event is written."""

    CLOUDEVENTS = "cloudevents"
    SLACK = "slack"


class WebhookConfig(Part):
    """One receiver. Only what stands here is ever called, and no redirect is followed."""

    name: Annotated[
        Name,
        Field(description="under which its position is kept, and metrics and logs speak of it; unique"),
    ]
    url: Annotated[
        Annotated[str, AfterValidator(checked_url)] | None,
        Field(repr=False, description="http or https; or url_file"),
    ] = None
    url_file: Annotated[
        str | None,
        Field(
            min_length=1,
            description="file of the URL, where that is a secret, as Slack's is; relative: under state_dir; read anew "
            "for each delivery",
        ),
    ] = None
    form: Annotated[WebhookForm, Field(description="cloudevents | slack")] = WebhookForm.CLOUDEVENTS
    families: Annotated[tuple[Name, ...], Field(description="default: all")] = ()
    kinds: Annotated[tuple[EventKind, ...], Field(description="default: all; e.g. rollout.aborted")] = ()
    secret_file: Annotated[
        str | None,
        Field(
            min_length=1,
            description="secret that deliveries are signed with (HMAC-SHA256, Standard Webhooks); relative: under "
            "state_dir; read anew for each delivery; default: not signed",
        ),
    ] = None
    timeout_s: Annotated[
        float, Field(gt=0, le=60, description="seconds for one delivery, from the name to the answer")
    ] = 10.0

    @model_validator(mode="after")
    def _has_one_url(self) -> "WebhookConfig":
        if (self.url is None) == (self.url_file is None):
            raise ValueError("expected either url or url_file")
        return self

    def under(self, state_dir: str) -> "WebhookConfig":
        """Return it with paths that are absolute or lie under the state directory."""
        paths = {"url_file": self.url_file, "secret_file": self.secret_file}
        return self.model_copy(
            update={name: str(Path(state_dir, path)) for name, path in paths.items() if path is not None}
        )


class EventsConfig(Part):
    """What has happened is kept, listed and streamed by `/admin/events`, and sent to webhooks."""

    webhooks: tuple[WebhookConfig, ...] = ()
    source: Annotated[
        str | None,
        Field(
            pattern=r"^[!-~]{1,200}$",
            description="`source` of CloudEvents, a URI that no other server has; default: /serve-app/<cluster>",
        ),
    ] = None
    max_listeners: Annotated[
        int, Field(ge=1, le=1000, description="open streams of /admin/events at each gateway; more are answered 503")
    ] = 16

    @model_validator(mode="after")
    def _names_are_unique(self) -> "EventsConfig":
        names = [webhook.name for webhook in self.webhooks]
        if doubles := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"webhooks: expected names that differ, found twice: {', '.join(doubles)}")
        return self
