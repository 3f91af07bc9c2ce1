"""What is known of a source since it was last asked: shown in `/health`, and by `/models/current` for its stage."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class SourceStatus(BaseModel):
    """The state of one family's source. It crosses processes; times are seconds since the epoch.

    `name` is the registered model of a registry, `selector` how its version is chosen (`champion`, `Production`, `3`),
    `model_uri` and `stage` what it last called current. `next_try_s` is set while it is away.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    status: Literal["ok", "error", "unknown"] = "unknown"
    name: str | None = None
    selector: str | None = None
    version: str | None = None
    model_uri: str | None = None
    stage: str | None = None
    server_version: str | None = None
    verified_at_s: float | None = None
    last_error: str | None = None
    next_try_s: float | None = None
