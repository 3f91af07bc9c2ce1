"""What is known of the local MLflow server: where its data lie, and whether it runs."""

from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.cli.ports import LOOPBACK
from serve_app.cli.processes import ProcessRecord
from serve_app.cli.state_dir import StateDir

TRACKING_URI = "MLFLOW_TRACKING_URI"


class RegistryRecord(BaseModel):
    """What `registry up` started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int
    process: ProcessRecord

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return f"http://{LOOPBACK}:{self.port}"


def running_registry(state: StateDir) -> RegistryRecord | None:
    """Return the record of the local registry, if it lives."""
    try:
        record = RegistryRecord.model_validate_json(registry_record_file(state).read_text())
        process = psutil.Process(record.process.pid)
        is_same = process.create_time() == record.process.create_time and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, ValidationError, psutil.NoSuchProcess):
        return None
    return record if is_same else None


def registry_environment(state: StateDir) -> dict[str, str]:
    """Return the variable that leads to the local registry; empty while none runs."""
    record = running_registry(state)
    return {} if record is None else {TRACKING_URI: record.uri}


def registry_directory(state: StateDir) -> Path:
    """Directory of all that the local registry keeps."""
    return state.path / "mlflow-server"


def registry_record_file(state: StateDir) -> Path:
    """The `RegistryRecord`."""
    return registry_directory(state) / "run.json"
