"""A server whose families follow an MLflow registry, configured as the systems before it were: by its environment."""

import json
import secrets
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from serve_app.adapters.loaders.mlflow_settings import TREE_TYPES
from serve_app.cli.state_dir import StateDir
from tests.integration import instance
from tests.integration.instance import REPOSITORY, Instance, await_that, shipped_config
from tests.mlflow_server import MlflowServer
from tests.traffic import Answer, Traffic

IRIS, FLOWERS, HOOKED, FRAUD = "iris", "flowers", "hooked", "fraud"
IRIS_MODEL, FRAUD_MODEL = "iris-random-forest", "fraud_detection_model"
"""Registered models of the first and the last family; the others are registered under the family's name."""
INTERVAL_S = 2.0
SELDOM_S = 3600.0
"""An interval that ends in no test: what comes, came by a call or by a webhook."""
COLUMNS = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
ROW = [5.1, 3.5, 1.4, 0.2]
JSON = {"Content-Type": "application/json"}
BODY = json.dumps({"instances": [ROW]}).encode()
TAKEN_UP_TIMEOUT_S = 90.0
"""The longest waiting time after a failure is 66 s."""
HOOK_EVENTS = ("model_version_alias.created", "model_version_alias.deleted", "model_version.created")


@dataclass(frozen=True)
class RegistryServer:
    """The running server and its registry.

    The default family is as its environment says; `unserved` are what `/predict/flowers` and `/health` answered when
    the server had started without the registry, and without copies.
    """

    instance: Instance
    http: httpx.Client
    mlflow: MlflowServer
    unserved: tuple[httpx.Response, httpx.Response]

    @property
    def address(self) -> str:
        return self.instance.address

    @property
    def token(self) -> str:
        return self.instance.environment["ADMIN_API_TOKEN"]

    @property
    def admin(self) -> dict[str, str]:
        return {"X-Admin-Token": self.token}

    def predict(self, family: str, row: list[float] | None = None) -> httpx.Response:
        return self.http.post(f"/predict/{family}", json={"instances": [ROW if row is None else row]})

    def current(self, family: str) -> str:
        """Return the version that answers for a family; an empty one where none does."""
        return str(self.http.get("/models/current", params={"family": family}).json().get("version", ""))

    def source(self, family: str) -> dict[str, Any]:
        """Return what /health says of the registry of a family."""
        told: dict[str, Any] = self.http.get("/health").json()["families"][family]["source"]
        return told

    def await_version(self, family: str, version: str) -> None:
        await_that(lambda: self.current(family) == version, timeout_s=TAKEN_UP_TIMEOUT_S)

    def audit(self, family: str) -> list[dict[str, Any]]:
        """Return the changes of a family, newest first."""
        told = self.http.get("/admin/audit", params={"family": family, "limit": "200"}, headers=self.admin)
        entries: list[dict[str, Any]] = told.json()["entries"]
        return entries

    def metric(self, name: str, **labels: str) -> float | None:
        """Return the sum of all samples with these labels among theirs; None where there are none."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        names = (name, f"{name}_total")  # the parser adds that to counters
        samples = [sample for family in families for sample in family.samples if sample.name in names]
        found = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
        return sum(found) if found else None

    def traffic(self, family: str, *, connections: int = 4, rate: float | None = 100) -> Any:
        """Return a context manager under which requests for a family flow."""
        return Traffic.started(f"{self.address}/predict/{family}", BODY, connections=connections, rate=rate)

    @contextmanager
    def webhook(self) -> Iterator[None]:
        """Let the registry tell this server of changes, of every model's, for as long as the block runs."""
        secret = (self.instance.state.path / "webhook-secret").read_text()
        client = self.mlflow.client
        created = client.create_webhook(
            name="serve-app", url=f"{self.address}/hooks/mlflow", events=list(HOOK_EVENTS), secret=secret
        )
        try:
            yield
        finally:
            client.delete_webhook(created.webhook_id)


@contextmanager
def running(directory: Path, mlflow: MlflowServer) -> Iterator[RegistryServer]:
    """Start a server while the registry is away, note what it says, and have the registry come back.

    The registry has a version 1 of `flowers` and `hooked` by then, and whatever the caller registered.
    """
    for name in (FLOWERS, HOOKED):
        register(mlflow, name, alias="champion")
    state = StateDir.at(directory / "state")
    state.prepare()
    (state.path / "webhook-secret").write_text(secrets.token_urlsafe(32))
    environment = {
        "ADMIN_API_TOKEN": secrets.token_hex(32),
        "MODEL_SOURCE": "mlflow",
        "MLFLOW_TRACKING_URI": mlflow.uri,
        "MLFLOW_MODEL_NAME": IRIS_MODEL,
        "MLFLOW_MODEL_STAGE": "Production",
    }
    mlflow.kill()
    with instance.running(directory, configuration(), environment=environment) as (started, http):
        await_that(lambda: http.get("/health").json()["mlflow"]["status"] != "unknown", timeout_s=30)
        unserved = (http.post(f"/predict/{FLOWERS}", content=BODY, headers=JSON), http.get("/health"))
        mlflow.start()
        server = RegistryServer(started, http, mlflow, unserved)
        for name in (FLOWERS, HOOKED):
            server.await_version(name, "1")
        yield server


def configuration() -> dict[str, Any]:
    """Return the config; the registry of the default family stands in the environment."""
    families: dict[str, dict[str, Any]] = {
        IRIS: {"source": {"root": "models/iris"}},
        FLOWERS: {"source": {"model": FLOWERS}, "reload": {"interval_s": INTERVAL_S}},
        HOOKED: {"source": {"model": HOOKED}},
        FRAUD: {"source": {"model": FRAUD_MODEL, "stage": "Production"}, "reload": {"interval_s": INTERVAL_S}},
    }
    for name, family in families.items():
        if name != IRIS:
            family["source"]["kind"] = "mlflow_registry"
    shared: dict[str, Any] = {
        "models_type": "classification",
        "loader": "mlflow",
        "required": False,
        "pools": [{"num_cpus": 0.1}],
        "reload": {"interval_s": SELDOM_S},
    }
    document = shipped_config("bench.yaml")
    document["applications"][0]["args"] |= {
        "allow_env_overrides": True,
        "gateway": {"num_cpus": 0.1},
        "default_family": IRIS,
        "families": {name: shared | family for name, family in families.items()},
        "security": {"webhook_secret_file": "webhook-secret"},
    }
    return document


def register(
    mlflow: MlflowServer, name: str, *, answer: int = 0, alias: str | None = None, stage: str | None = None
) -> str:
    """Register a forest that answers `answer` for `ROW`, with an accuracy, and return the number of its version."""
    from mlflow.models import infer_signature
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    rows, species = load_iris(return_X_y=True, as_frame=True)
    rows.columns = COLUMNS
    forest = RandomForestClassifier(5, random_state=0).fit(rows, (species + answer) % 3)
    return mlflow.register(
        name, forest, alias=alias, stage=stage, metrics={"accuracy": 0.9 + answer / 100, "f1_score": 0.9},
        signature=infer_signature(rows, forest.predict(rows)), serialization_format="skops",
        skops_trusted_types=list(TREE_TYPES),
    )  # fmt: skip


def register_copies(mlflow: MlflowServer, name: str, count: int) -> list[str]:
    """Register the files of version 1 `count` times more: versions of their own, each copied for itself."""
    client = mlflow.client
    first = client.get_model_version(name, "1")
    model_id = first.source.removeprefix("models:/")
    made = [
        client.create_model_version(name, first.source, run_id=first.run_id, model_id=model_id) for _ in range(count)
    ]
    return [str(version.version) for version in made]


def train(server: RegistryServer, program: str, *options: str) -> str:
    """Run a training program as a user would and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"training.{program}", "--tracking-uri", server.mlflow.uri, *options],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def holders(server: RegistryServer, model: str) -> tuple[str, str]:
    """Return which version has the alias `champion`, and which the stage `Production`."""
    client = server.mlflow.client
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated, and still served
        (staged,) = client.get_latest_versions(model, ["Production"])
    return str(client.get_model_version_by_alias(model, "champion").version), str(staged.version)


def moved_under_kills(server: RegistryServer, versions: Sequence[str]) -> Traffic:
    """Move the alias of `flowers` to one version after the other and kill the registry each time, under traffic.

    Every second version may be missed, for the registry is killed again as soon as it is back; the others are waited
    for, and so is the last one.
    """
    traffic: Traffic
    with server.traffic(FLOWERS) as traffic:
        for i, version in enumerate(versions, start=1):
            server.mlflow.set_alias(FLOWERS, version)
            server.mlflow.restart()
            if i % 2 == 0 or i == len(versions):
                server.await_version(FLOWERS, version)
    return traffic


def first_answer_s(answers: Sequence[Answer], version: str, since_s: float) -> float:
    """Return the seconds from a moment (monotonic clock) to the first answer by a version after it."""
    return min(answer.at_s for answer in answers if answer.version == version and answer.at_s > since_s) - since_s


def now_s() -> float:
    """Return the time on the clock of `Answer.at_s`."""
    return time.monotonic()
