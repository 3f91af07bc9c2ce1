"""`families.<name>.record`: a sample of requests and their answers, which versions can be run on before any traffic."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from serve_app.config_part import Part


class RecordConfig(Part):
    """Requests are kept on disk with what was answered. No keys or entities are; outputs are, as they were given.

    The bounds are for a directory, thus for all gateways of a node together: the oldest requests give way.
    """

    sample: Annotated[
        float,
        Field(gt=0, le=100, description="percent of the requests; 1 of 1,000 a second fills the record in 17 minutes"),
    ] = 1.0
    max_requests: Annotated[
        int, Field(ge=100, le=10_000_000, description="never more; 10,000 show a disagreement of 0.1 %")
    ] = 10_000
    max_bytes: Annotated[
        int, Field(ge=1 << 16, description="never more on disk; a request takes some 150 and 20 a value")
    ] = 64 << 20
    redact: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(
            description="names of inputs whose values are never written; 0 stands for them, and a replay has the "
            "version that answered answer again, for its answers do not fit any more"
        ),
    ] = ()
    directory: Annotated[
        str | None,
        Field(
            description="a relative one lies under state_dir; default: record/<family>; where gateways and Reconciler "
            "are on several nodes, one that all of them mount"
        ),
    ] = None
    replay_s: Annotated[
        float,
        Field(gt=0, le=540, description="seconds a replay may run; then it tells of the requests that it has got to"),
    ] = 60.0

    @model_validator(mode="after")
    def _redacts_each_once(self) -> "RecordConfig":
        if len(set(self.redact)) != len(self.redact):
            raise ValueError(f"redact: expected names that differ, found {', '.join(self.redact)}")
        return self

    def under(self, state_dir: str, family: str) -> Path:
        """Return the directory of a family's record."""
        return Path(state_dir, self.directory or f"record/{family}")
