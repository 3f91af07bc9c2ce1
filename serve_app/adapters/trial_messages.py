"""What the trial and its worker tell each other: one JSON line each way for each trial."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from serve_app.config import MlflowModelsConfig
from serve_app.config_sources import SourceConfig
from serve_app.domain.recording import ReplayReport
from serve_app.domain.reload import VersionRef
from serve_app.domain.temporal import KeptWindows

READY_LINE = b"ready\n"
"""What a worker says first, once everything that a loader needs is imported."""


class Verdict(StrEnum):
    """How a trial ended."""

    PASSED = "passed"
    REFUSED = "refused"
    SOURCE_ERROR = "source_error"
    NOT_HELD = "not_held"
    NOTHING_RECORDED = "nothing_recorded"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReplayTask(_Message):
    """What a version is to be run on once it is loaded: recorded requests, and when answers agree.

    `newest` requests at most, for `max_s` seconds at most.
    """

    directory: str
    newest: int | None
    max_s: float
    rtol: float
    atol: float
    keeps_inputs: bool


class TrialJob(_Message):
    """One version to try: where it lies, what the operator asks of it, and what it may use."""

    family: str
    version: str
    models_type: str
    default_loader: str
    allowed_pickle_loaders: tuple[str, ...]
    source: SourceConfig
    mlflow: MlflowModelsConfig
    windows: KeptWindows | None = None
    timeout_s: float
    memory_bytes: int
    niceness: int
    replay: ReplayTask | None = None


class TrialAnswer(_Message):
    """What came of it. `tried` is there when it passed; `output` is the end of what the model code printed.

    `replayed` is there when it also was to run recorded requests.
    """

    verdict: Verdict
    message: str = ""
    tried: VersionRef | None = None
    load_seconds: float = 0.0
    artifact_bytes: int = 0
    output: str = ""
    replayed: ReplayReport | None = None
