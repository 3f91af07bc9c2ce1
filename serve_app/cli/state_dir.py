"""The state directory: the admin token, the record of what runs, the lock between two commands."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.cli.processes import ProcessRecord
from serve_app.cli.profile import Profile
from serve_app.domain.errors import ServeAppError


class StateDirBusyError(ServeAppError):
    """Another command is starting or stopping the instance of this state directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"another serve-app command is at work in {path}; wait for it to end")


class RunRecordError(ServeAppError):
    """The record of what runs cannot be read."""


class RunRecord(BaseModel):
    """What `up` started, so that `down` ends exactly this. Written before the first process starts and when ready."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime_dir: Path
    profile: Profile
    host: str
    port: int
    gcs_port: int
    dashboard_port: int
    started_at_s: float
    processes: tuple[ProcessRecord, ...] = ()

    @property
    def address(self) -> str:
        """Where clients reach the server."""
        return f"http://{self.host}:{self.port}"

    @property
    def dashboard_address(self) -> str:
        """Where Ray's dashboard and Serve's REST API answer."""
        return f"http://{self.host}:{self.dashboard_port}"

    @property
    def ray_address(self) -> str:
        """What a program gives to `ray.init`."""
        return f"{self.host}:{self.gcs_port}"

    @property
    def ray_token_file(self) -> Path:
        """The token that Ray's own interfaces ask for."""
        return self.runtime_dir / "ray-token"

    @property
    def session_logs(self) -> Path:
        """Ray's logs, the replicas' among them, while it runs."""
        return self.runtime_dir / "r" / "session_latest" / "logs"


@dataclass(frozen=True, slots=True)
class StateDir:
    """A directory of one instance; `path` is absolute. Only this user can enter it."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> "StateDir":
        """Name the directory; nothing is made yet."""
        return cls(path.expanduser().resolve())

    @property
    def admin_token_file(self) -> Path:
        """The token of the admin routes."""
        return self.path / "admin-token"

    @property
    def logs(self) -> Path:
        """A link to the logs of the running instance, or the logs of the last one."""
        return self.path / "logs"

    @property
    def example_request_file(self) -> Path:
        """A request body that the default family answers."""
        return self.path / "example-request.json"

    @property
    def record_file(self) -> Path:
        """The `RunRecord`."""
        return self.path / "run.json"

    def prepare(self) -> None:
        """Make the directory and the admin token if they are missing."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        if not self.admin_token_file.exists():
            write_secret(self.admin_token_file, secrets.token_urlsafe(32))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for one command; the lock ends with the process at the latest.

        Raises:
            StateDirBusyError: Another command holds it.
        """
        descriptor = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StateDirBusyError(self.path) from error
            yield
        finally:
            os.close(descriptor)

    def read_record(self) -> RunRecord | None:
        """Return the record, or None when nothing was started.

        Raises:
            RunRecordError: The file is there and is no record.
        """
        try:
            text = self.record_file.read_text()
        except FileNotFoundError:
            return None
        try:
            return RunRecord.model_validate_json(text)
        except ValidationError as error:
            raise RunRecordError(f"{self.record_file} is no record of a run: {error}") from error

    def write_record(self, record: RunRecord) -> None:
        """Replace the record in one step."""
        staged = self.record_file.with_suffix(".staged")
        staged.write_text(record.model_dump_json(indent=2) + "\n")
        staged.replace(self.record_file)

    def forget_record(self) -> None:
        """Note that nothing runs."""
        self.record_file.unlink(missing_ok=True)


def shown(path: Path) -> Path:
    """Return the path as a person would type it: relative to the working directory if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def write_secret(path: Path, secret: str) -> None:
    """Write a new file that only this user can read, at no moment open to others."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret)
