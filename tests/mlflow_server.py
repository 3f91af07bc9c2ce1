"""A real MLflow server of the tests' own: SQLite and a directory, on this machine, gone with the tests."""

import base64
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

_START_S = 90.0


class NoMlflowError(Exception):
    """The server cannot be started here; the message says why."""


class MlflowServer:
    """One server, and short ways to register models with it. All it keeps lies in `directory`.

    `environment` is what its process finds beside the variables of this one that are not MLflow's.
    """

    def __init__(self, directory: Path, port: int, *, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.port = port
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Address, the tracking URI."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it printed, its access log among it."""
        return (self.directory / "log").read_text()

    @property
    def client(self) -> Any:
        """MLflow's own client of it."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            NoMlflowError: It does not come up.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a third process, of no use here
            "MLFLOW_ALLOWED_HOST_ADDRESSED_ARTIFACT_SCHEMES": "http",  # for files on a server of a test's own
        }
        foreign = {name for name in os.environ if name.startswith("MLFLOW_")}
        with (self.directory / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                    *("--backend-store-uri", f"sqlite:///{self.directory / 'mlflow.db'}"),
                    *("--artifacts-destination", str(self.directory / "artifacts"), "--workers", "1"),
                ],
                env={name: value for name, value in os.environ.items() if name not in foreign}
                | settings
                | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it starts a worker; both are ended as one group
            )
        give_up_s = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up_s:
                self.kill()
                raise NoMlflowError(f"mlflow server did not start: {self.log[-500:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it and its worker at once, as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill it, and start it again on the same port with the same data."""
        self.kill()
        self.start()

    def register(
        self,
        name: str,
        model: Any,
        *,
        alias: str | None = None,
        stage: str | None = None,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        **log_options: Any,
    ) -> str:
        """Train nothing: log a fitted scikit-learn model, register it, and return the number of its version."""
        import mlflow
        import mlflow.sklearn
        import sklearn

        before = mlflow.get_tracking_uri()
        options = {
            "serialization_format": "cloudpickle",  # MLflow's default, skops, wants forests to be trusted by name
            "pip_requirements": [f"scikit-learn=={sklearn.__version__}"],  # else it loads the model to find them out
        } | log_options
        mlflow.set_tracking_uri(self.uri)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # MLflow's advice on pickles and signatures
                with mlflow.start_run():
                    mlflow.log_metrics(dict(metrics or {}))
                    mlflow.log_params(dict(params or {}))
                    logged = mlflow.sklearn.log_model(model, name="model", registered_model_name=name, **options)
        finally:
            mlflow.set_tracking_uri(before)
        version = str(logged.registered_model_version)
        self._choose(name, version, alias, stage)
        return version

    def register_files(
        self, name: str, files: Mapping[str, bytes], *, alias: str | None = None, stage: str | None = None
    ) -> str:
        """Register any files as a version, in the way of MLflow before 3: as artifacts of a run."""
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        client = self.client
        run = client.create_run("0")
        source = self.directory / "sources" / run.info.run_id
        for path, content in files.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(content)
        location = f"{run.info.artifact_uri}/model"
        repository: Any = get_artifact_repository(location, tracking_uri=self.uri)
        repository.log_artifacts(str(source))
        try:
            client.get_registered_model(name)
        except MlflowException:
            client.create_registered_model(name)
        version = str(client.create_model_version(name, location, run_id=run.info.run_id).version)
        self._choose(name, version, alias, stage)
        return version

    def set_stage(self, name: str, version: str, stage: str) -> None:
        """Move a version to a stage; whatever was there is archived."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated, and still served
            self.client.transition_model_version_stage(name, version, stage, archive_existing_versions=True)

    def set_alias(self, name: str, version: str, alias: str = "champion") -> None:
        """Point an alias at a version."""
        self.client.set_registered_model_alias(name, alias, version)

    def n_requests(self, part: str) -> int:
        """Count the requests so far whose line in the access log holds `part`."""
        return sum(part in line for line in self.log.splitlines() if '"GET ' in line)

    def _choose(self, name: str, version: str, alias: str | None, stage: str | None) -> None:
        if alias:
            self.set_alias(name, version, alias)
        if stage:
            self.set_stage(name, version, stage)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.uri}/health", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


def webhook_settings() -> dict[str, str]:
    """What an MLflow server needs to send webhooks to an address of this machine, and to see a new one soon."""
    return {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """The one server of a test session. Who kills it starts it again."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), free_port(), environment=webhook_settings())
    try:
        server.start()
    except NoMlflowError as error:
        pytest.skip(str(error))
    try:
        yield server
    finally:
        server.kill()
