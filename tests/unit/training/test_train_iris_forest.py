import io
import json
from pathlib import Path

import joblib
import numpy as np
import pytest
import typer
from sklearn.datasets import load_iris
from typer.testing import CliRunner

from serve_app.adapters.bundle_reader import read_bundle
from training.train_iris_forest import SIGNATURE, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("iris")
    app = typer.Typer()
    app.command()(main)
    arguments = ["--out", str(folder / "iris"), "--joblib", str(folder / "iris.joblib"), "--model-version", "v1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return folder


def test_bundle_and_plain_file_hold_the_very_same_forest(folder: Path) -> None:
    packed = (folder / "iris" / "current" / "models" / "species" / "classification" / "model.joblib").read_bytes()
    assert packed == (folder / "iris.joblib").read_bytes()


def test_forest_has_a_hundred_trees_and_knows_its_flowers(folder: Path) -> None:
    forest = joblib.load(io.BytesIO((folder / "iris.joblib").read_bytes()))
    rows, species = load_iris(return_X_y=True)
    assert len(forest.estimators_) == 100
    assert (forest.predict(rows) == species).mean() > 0.99


def test_manifest_and_golden_samples_describe_a_classifier_without_scalers(folder: Path) -> None:
    bundle = folder / "iris" / "current"
    manifest = read_bundle(bundle).manifest
    assert (manifest.family, manifest.models_type, manifest.signature) == ("iris", "classification", SIGNATURE)
    assert set(manifest.sha256) == {"models/species/classification/model.joblib", "golden.json"}
    golden = json.loads((bundle / "golden.json").read_bytes())
    forest = joblib.load(io.BytesIO((folder / "iris.joblib").read_bytes()))
    np.testing.assert_array_equal(forest.predict(golden["inputs"]), np.ravel(golden["outputs"]))
    assert np.shape(golden["outputs"]) == (32, 1)
