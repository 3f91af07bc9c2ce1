import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from serve_app.adapters.loaders.mlflow_model import MlflowLoader
from serve_app.adapters.loaders.mlflow_settings import MlflowLoaderSettings
from tests import builders
from training import train_fraud, train_iris
from training.registering import NOT_PROMOTED, Champion, decide


class Registry:
    """A registry in a database file, and the two programs that fill it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.uri = f"sqlite:///{directory / 'mlflow.db'}"

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def train(self, program: Any, *arguments: str) -> Result:
        app = typer.Typer()
        app.command()(program.main)
        return CliRunner().invoke(app, ["--tracking-uri", self.uri, "--trees", "5", *arguments])

    def champion(self, name: str) -> str:
        return str(self.client.get_model_version_by_alias(name, "champion").version)

    def files(self, name: str, version: str) -> dict[str, bytes]:
        from mlflow.artifacts import download_artifacts

        root = Path(download_artifacts(f"models:/{name}/{version}"))
        return {f"model/{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.chdir(tmp_path)  # without a server, MLflow puts its files here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of MLflow, of itself
        import mlflow

        found = Registry(tmp_path)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(found.uri)
        yield found
        mlflow.set_tracking_uri(before)


def test_program_registers_promotes_and_then_compares_with_the_champion(registry: Registry) -> None:
    name = train_iris.NAME
    first = registry.train(train_iris)
    assert first.exit_code == 0, first.output
    registered, promoted = first.output.splitlines()
    assert registered.startswith(f"{name}: registered version 1 with accuracy 0.9")
    assert promoted.endswith("and there is no champion yet")
    assert registry.champion(name) == "1"

    again = registry.train(train_iris)
    assert "promoted version 2 to alias champion" in again.output
    assert "is not worse than version 1" in again.output

    lower = registry.train(train_iris, "--threshold", "1.01", "--require-promotion")
    assert lower.exit_code == NOT_PROMOTED
    assert "did not promote version 3: accuracy 0.9" in lower.output
    assert "is below the threshold 1.0100" in lower.output
    assert registry.champion(name) == "2"

    asked = registry.train(train_iris, "--if-missing")
    assert asked.output == f"{name}: version 2 holds alias champion already\n"

    version = registry.client.get_model_version(name, "3")
    assert "below the threshold" in version.tags["promotion"]
    run = registry.client.get_run(version.run_id)
    assert run.data.metrics.keys() == {"accuracy", "f1_score"}
    assert run.data.params["trees"] == "5"


def test_registered_iris_is_served_by_the_loader_as_it_is_configured_by_default(registry: Registry) -> None:
    assert registry.train(train_iris, "--stage", "Production").exit_code == 0
    (held,) = registry.client.get_latest_versions(train_iris.NAME, ["Production"])
    bundle = builders.bundle(registry.files(train_iris.NAME, held.version), loader="mlflow")
    predictor = MlflowLoader(MlflowLoaderSettings(environment_mismatch="refuse")).load(bundle)
    assert predictor.engine == {"predictions": "treelite"}
    assert predictor.signature.input_names == train_iris.COLUMNS
    assert predictor.predict(np.array([[5.1, 3.5, 1.4, 0.2]])).tolist() == [[0]]


def test_fraud_detector_answers_with_probabilities_and_says_that_its_data_are_synthetic(registry: Registry) -> None:
    trained = registry.train(train_fraud, "--rows", "4000", "--threshold", "0.1")
    assert trained.exit_code == 0, trained.output
    assert "average_precision" in trained.output
    version = registry.client.get_model_version(train_fraud.NAME, registry.champion(train_fraud.NAME))
    assert version.tags["data"].startswith("synthetic")
    bundle = builders.bundle(registry.files(train_fraud.NAME, version.version), loader="mlflow")
    predictor = MlflowLoader(MlflowLoaderSettings(environment_mismatch="refuse")).load(bundle)
    assert predictor.signature.output_names == ("probability_0", "probability_1")
    assert {column.dtype for column in predictor.signature.inputs} == {"float64", "int64", "bool"}


def test_registry_that_is_away_is_one_line_and_an_error() -> None:
    app = typer.Typer()
    app.command()(train_iris.main)
    away = CliRunner().invoke(app, ["--tracking-uri", "http://127.0.0.1:9", "--trees", "1"])
    assert away.exit_code == 1
    assert away.output.startswith("error: http://127.0.0.1:9: ")
    assert away.output.count("\n") == 1
    nowhere = CliRunner().invoke(app, ["--trees", "1"], env={"MLFLOW_TRACKING_URI": ""})
    assert (nowhere.exit_code, nowhere.output) == (
        1, "error: expected --tracking-uri or MLFLOW_TRACKING_URI, found neither\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("score", "champion", "is_promoted", "reason"),
    [
        (0.8, None, False, "0.8000 is below the threshold 0.9000"),
        (float("nan"), None, False, "nan is below the threshold 0.9000"),
        (0.9, None, True, "there is no champion yet"),
        (0.95, Champion("1", 0.96), False, "but version 1 has 0.9600 on the same rows"),
        (0.95, Champion("1", 0.95), True, "is not worse than version 1 with 0.9500"),
        (
            0.95,
            Champion("1", None, "KeyError: 'x'"),
            False,
            "version 1 cannot be scored on the same rows: KeyError: 'x'",
        ),
    ],
)
def test_decision_needs_threshold_and_champion(
    score: float, champion: Champion | None, is_promoted: bool, reason: str
) -> None:
    decided, why = decide(score, 0.9, champion)
    assert decided is is_promoted
    assert reason in why
