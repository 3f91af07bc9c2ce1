import io
import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from serve_app.adapters.bundle_reader import read_bundle
from serve_app.adapters.loaders.sklearn_targets import SklearnTargetsLoader
from serve_app.domain.manifest import Manifest
from serve_app.usecases.ports import Bundle
from tests.unit.training.recordings import write_recording
from training.datasets import DatasetError, read_recording
from training.features import FEATURE_NAMES, SIGNATURE, TARGETS, Examples, examples_of
from training.publish import TrainedModels
from training.train_forecaster import CANDIDATES, MIN_EXAMPLES, main, n_fits, train

N_SECONDS = 1400
TWO = {name: CANDIDATES[name] for name in ("random forest, leaves of 5", "extra trees, leaves of 60")}


def _run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [*arguments, "--trees", "4"])


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("data") / "node.csv.gz", N_SECONDS)


@pytest.fixture(scope="module")
def examples(recording: Path) -> Examples:
    return examples_of(read_recording(recording).segments)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, recording: Path) -> Path:
    root = tmp_path_factory.mktemp("models") / "forecaster"
    result = _run("--csv", str(recording), "--out", str(root), "--model-version", "v1")
    assert result.exit_code == 0, result.output
    return root


@pytest.fixture(scope="module")
def bundle(root: Path) -> Bundle:
    return read_bundle(root / "current")


@pytest.fixture(scope="module")
def manifest(bundle: Bundle) -> Manifest:
    return bundle.manifest


def _offline(bundle: Path, rows: np.ndarray) -> np.ndarray:
    """Predict from the bundle's files, as the layout says that they fit together."""

    def load(path: str) -> object:
        return joblib.load(io.BytesIO((bundle / path).read_bytes()))

    scaled = load("scalers/scaler_x/features.joblib").transform(rows)  # type: ignore[attr-defined]  # a StandardScaler
    columns = []
    for target in TARGETS:
        output = load(f"models/{target}/regression/model.joblib").predict(scaled)  # type: ignore[attr-defined]
        scaler_y = load(f"scalers/scaler_y/{target}.joblib")
        columns.append(scaler_y.inverse_transform(output.reshape(-1, 1)).ravel())  # type: ignore[attr-defined]
    return np.stack(columns, axis=1)


def test_bundle_has_exactly_the_files_of_the_layout(root: Path, manifest: Manifest) -> None:
    bundle = root / "v1"
    assert (root / "current").resolve() == bundle.resolve()
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert files == {
        "manifest.json",
        "golden.json",
        "scalers/scaler_x/features.joblib",
        *(f"models/{target}/regression/model.joblib" for target in TARGETS),
        *(f"scalers/scaler_y/{target}.joblib" for target in TARGETS),
    }
    assert set(manifest.sha256) == files - {"manifest.json"}


def test_golden_outputs_are_what_the_files_predict(root: Path) -> None:
    golden = json.loads((root / "current" / "golden.json").read_bytes())
    assert np.shape(golden["inputs"]) == (32, len(FEATURE_NAMES))
    np.testing.assert_array_equal(_offline(root / "current", np.array(golden["inputs"])), golden["outputs"])


def test_served_outputs_equal_the_offline_pipeline_bit_for_bit(bundle: Bundle) -> None:
    golden = json.loads(bundle.files["golden.json"])
    predictor = SklearnTargetsLoader().load(bundle)
    assert predictor.engine == dict.fromkeys(TARGETS, "treelite")
    np.testing.assert_array_equal(predictor.predict(np.array(golden["inputs"])), golden["outputs"])


def test_manifest_says_what_was_trained_on_what(manifest: Manifest, recording: Path) -> None:
    assert (manifest.model_version, manifest.models_type) == ("v1", "regression")
    assert (manifest.family, manifest.loader, manifest.signature) == ("forecaster", "sklearn_targets", SIGNATURE)
    assert manifest.environment is not None
    assert {"python", "scikit-learn", "numpy"} <= set(manifest.environment)
    training: dict[str, Any] = dict(manifest.training or {})
    assert training["data"]["sha256"] == read_recording(recording).sha256
    assert training["data"]["rows"] == N_SECONDS
    assert training["data"]["power_source"] == "model"
    assert training["data"]["first"] == "2026-11-21T11:20:00Z"
    assert (training["horizon_s"], training["history_s"], training["seed"], training["trees"]) == (60, 300, 7, 4)
    assert training["examples_training"] + training["examples_held_out"] == training["examples"] - 59


def test_manifest_compares_every_target_with_persistence(manifest: Manifest) -> None:
    metrics: dict[str, Any] = dict(manifest.metrics or {})
    held_out = metrics["held_out"]
    assert list(held_out) == list(TARGETS)
    for numbers in held_out.values():
        for name, baseline in numbers["baselines"].items():
            assert baseline["skill_mae"] == pytest.approx(1 - numbers["mae"] / baseline["mae"], abs=1e-3)
            worse = numbers["mae"] >= baseline["mae"] or numbers["rmse"] >= baseline["rmse"]
            assert (name in numbers["beaten_by"]) == worse


def test_version_that_exists_is_never_overwritten(recording: Path, root: Path) -> None:
    before = (root / "v1" / "manifest.json").read_bytes()
    result = _run("--csv", str(recording), "--out", str(root), "--model-version", "v1")
    assert result.exit_code == 2
    assert "expected a new version" in result.output
    assert (root / "v1" / "manifest.json").read_bytes() == before


def test_version_that_cannot_be_a_directory_is_refused_before_training(tmp_path: Path) -> None:
    result = _run("--csv", str(tmp_path / "absent.csv"), "--out", str(tmp_path), "--model-version", "../v1")
    assert result.exit_code == 2
    assert "--model-version" in result.output


def test_no_current_leaves_the_link_where_it_was(recording: Path, root: Path) -> None:
    result = _run("--csv", str(recording), "--out", str(root), "--model-version", "v2", "--no-current")
    assert result.exit_code == 0, result.output
    assert (root / "v2" / "manifest.json").is_file()
    assert (root / "current").resolve() == (root / "v1").resolve()


def test_if_missing_trains_nothing_where_a_bundle_is_current(root: Path, tmp_path: Path) -> None:
    before = sorted(root.iterdir())
    result = _run("--csv", str(tmp_path / "absent.csv"), "--out", str(root), "--if-missing")
    assert result.exit_code == 0
    assert sorted(root.iterdir()) == before


def test_missing_recording_is_one_sentence_and_writes_nothing(tmp_path: Path) -> None:
    result = _run("--csv", str(tmp_path / "absent.csv"), "--out", str(tmp_path / "models"), "--if-missing")
    assert result.exit_code == 1
    assert "expected a recording at" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "models").exists()


def test_model_that_does_not_beat_persistence_is_published_with_a_warning(tmp_path: Path) -> None:
    recording = write_recording(tmp_path / "node.csv", MIN_EXAMPLES + 360, seed=3)
    text = recording.read_text().splitlines()
    place = text[0].split(",").index("memory_percent")
    for i, line in enumerate(text[1:], start=1):
        cells = line.split(",")
        cells[place] = f"{i * 0.05:.3f}"  # memory that only grows, beyond what a forest has seen
        text[i] = ",".join(cells)
    recording.write_text("\n".join(text))
    result = _run("--csv", str(recording), "--out", str(tmp_path / "models"))
    assert result.exit_code == 0, result.output
    assert "warning: ram_usage_node is not better than last_value and mean_60s" in result.output


def _parameters(models: TrainedModels) -> list[float]:
    """Return what the scalers have learned."""
    scalers = [models.scaler_x, *models.scalers_y.values()]
    return [float(x) for scaler in scalers if scaler is not None for x in (*scaler.mean_, *scaler.scale_)]


def test_held_out_part_has_no_say_in_what_is_trained(examples: Examples) -> None:
    first = int(len(examples) * 0.8)
    changed = Examples(examples.times_s, examples.inputs.copy(), examples.targets.copy())
    changed.inputs[first:] *= 3
    changed.targets[first - 59 :] += 1000  # targets of the last minute before it reach into it
    one, other = (train(table, trees=4, candidates=TWO) for table in (examples, changed))
    assert one.choices == other.choices
    np.testing.assert_array_equal(_parameters(one.models), _parameters(other.models))
    np.testing.assert_array_equal(
        one.models.predict(examples.inputs[:100]), other.models.predict(examples.inputs[:100])
    )


def test_too_few_examples_are_refused_with_both_numbers() -> None:
    few = Examples(np.arange(9.0), np.zeros((9, len(FEATURE_NAMES))), np.zeros((9, len(TARGETS))))
    with pytest.raises(DatasetError, match=r"expected at least 600 examples, that is 960 s .*, got 9"):
        train(few, trees=1)


def test_progress_is_told_of_every_fit(examples: Examples) -> None:
    told: list[str] = []
    train(examples, trees=1, candidates=TWO, advance=told.append)
    assert len(told) == n_fits(TWO)
