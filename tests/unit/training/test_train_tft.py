import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from serve_app.adapters.bundle_reader import read_bundle
from serve_app.adapters.clock import SystemClock
from serve_app.adapters.loaders import LOADERS
from serve_app.adapters.loaders.tft.torch_loader import TorchLoader
from serve_app.adapters.sources.local_directory import LocalDirectorySource
from serve_app.usecases.load_model import LoadPolicy, load_model
from serve_app.usecases.ports import Bundle
from serve_app.usecases.window_rows import server_key
from tests.unit.training.fleets import hourly_fleet
from training.train_tft import CHECKPOINT, main

SMALL = ("--encoder-length", "24", "--prediction-length", "6", "--hidden-size", "8", "--threads", "1")
QUICK = (*SMALL, "--epochs", "2", "--batches", "4")
POLICY = LoadPolicy(family="tft", models_type="tft", default_loader="sklearn_targets", allowed_pickle_loaders=())

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def _run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def long_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a fleet at five minutes a step, which `hourly_fleet` also is if one takes its hours for steps."""
    path = tmp_path_factory.mktemp("data") / "long.csv"
    fleet = hourly_fleet(servers=6, days=12)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["server", "timestamp", *(metric.name for metric in fleet.metrics)])
        for server, series in zip(fleet.servers, fleet.values.tolist(), strict=True):
            for step, values in enumerate(series):
                cells = ["" if value != value else value for value in values]
                writer.writerow([server, fleet.start_s + 300 * step, *cells])
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, long_csv: Path) -> Path:
    root = tmp_path_factory.mktemp("models") / "tft"
    result = _run("--csv", str(long_csv), "--out", str(root), "--report", str(root.parent / "docs"), *QUICK)
    assert result.exit_code == 0, result.output
    return root


@pytest.fixture(scope="module")
def bundle(root: Path) -> Bundle:
    return read_bundle(root / "current")


def test_version_is_named_after_the_time_and_holds_the_seeds_files(root: Path, bundle: Bundle) -> None:
    [version] = [path for path in root.iterdir() if not path.is_symlink() and not path.name.startswith(".")]
    assert version.name == bundle.manifest.model_version
    assert version.name.startswith("tft_model_20")
    assert set(bundle.files) == {"config.json", "model.safetensors", "server_mapping.json", "golden.json"}
    assert not (root / CHECKPOINT).exists()


def test_manifest_says_what_was_trained_on_what(bundle: Bundle, long_csv: Path) -> None:
    manifest = bundle.manifest
    assert (manifest.models_type, manifest.family, manifest.loader) == ("tft", "tft", "torch")
    training: dict[str, Any] = dict(manifest.training or {})
    assert (training["epochs"], training["servers_trained"], training["plan"]["seed"]) == (2, 5, 0)
    assert training["training_time"] > 0
    assert (training["data"]["kind"], training["data"]["file"]) == ("csv", long_csv.name)
    metrics: dict[str, Any] = dict(manifest.metrics or {})
    assert set(metrics) == {"held_out", "unknown_servers"}
    assert set(metrics["held_out"]["metrics"]) == {"cpu_percent", "disk_io_mb_per_s"}
    numbers = metrics["held_out"]["metrics"]["cpu_percent"]["to 30 min"]
    assert {"model", "persistence", "seasonal_naive", "coverage", "beaten_by"} == set(numbers)


def test_report_is_written_where_it_is_asked_for(root: Path, bundle: Bundle) -> None:
    document = json.loads((root.parent / "docs" / "forecast-quality.json").read_text())
    assert document["reports"] == (bundle.manifest.metrics or {})
    assert document["training"]["data"] == (bundle.manifest.training or {})["data"]
    assert "## Servers never seen" in (root.parent / "docs" / "forecast-quality.md").read_text()


def test_golden_samples_hold_in_the_server(root: Path) -> None:
    loaded = load_model(LocalDirectorySource(root), "current", policy=POLICY, loaders=LOADERS, clock=SystemClock())
    assert loaded.facts.training["epochs"] == 2
    assert loaded.facts.engine["cpu_percent"].startswith("torch ")
    assert loaded.facts.temporal is not None
    assert (loaded.facts.temporal.mode, loaded.facts.temporal.n_entities) == ("tft", 5)


def test_last_golden_sample_is_of_a_stranger(bundle: Bundle) -> None:
    predictor = TorchLoader().load(bundle)
    keys = [row[0] for row in json.loads(bundle.files["golden.json"])["inputs"]]
    assert {int(key) for key in keys[:-1]} <= {server_key(server) for server in predictor.servers}
    assert int(keys[-1]) not in {server_key(server) for server in predictor.servers}


def test_no_current_and_if_missing_leave_things_as_they_are(root: Path, long_csv: Path, tmp_path: Path) -> None:
    before = (root / "current").resolve()
    arguments = ("--csv", str(long_csv), "--out", str(root), *QUICK, "--epochs", "1")
    assert _run(*arguments, "--model-version", "other", "--no-current").exit_code == 0
    assert (root / "other" / "manifest.json").is_file()
    assert (root / "current").resolve() == before
    assert _run("--csv", str(tmp_path / "absent.csv"), "--out", str(root), "--if-missing").exit_code == 0
    refused = _run(*arguments, "--model-version", "other")
    assert refused.exit_code == 2
    assert "expected a new version" in refused.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--csv", "absent.csv"), "expected a CSV file at"),
        (("--days", "1", "--servers", "1"), "expected at least"),
        (("--servers", "1", "--hidden-size", "9"), "that 4 attention heads divide"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = _run("--out", str(tmp_path / "tft"), *arguments)
    assert result.exit_code == 1
    assert said in result.output.replace("\n", " ")
    assert "Traceback" not in result.output
    assert not (tmp_path / "tft").exists()


def test_training_that_was_killed_goes_on_and_ends_with_the_same_weights(tmp_path: Path, long_csv: Path) -> None:
    arguments = ("--csv", str(long_csv), *SMALL, "--epochs", "4", "--batches", "4", "--model-version", "v1")
    assert _run("--out", str(tmp_path / "whole"), *arguments).exit_code == 0
    killed = tmp_path / "killed"
    code = (
        "import os, signal, training.fit_tft as f, typer, training.train_tft as t\n"
        "write = f._write_checkpoint\n"
        "def then_die(path, progress, *rest):\n"
        "    write(path, progress, *rest)\n"
        "    if len(progress.history) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "f._write_checkpoint = then_die\n"
        "typer.run(t.main)\n"
    )
    died = subprocess.run(
        [sys.executable, "-c", code, "--out", str(killed), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=120,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert (killed / CHECKPOINT).is_file()
    assert not (killed / "current").exists()
    assert _run("--out", str(killed), *arguments, "--resume").exit_code == 0
    one, other = (root / "v1" / "model.safetensors" for root in (tmp_path / "whole", killed))
    assert one.read_bytes() == other.read_bytes()
    assert not (killed / CHECKPOINT).exists()
