import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli.bundle import bundle_app
from tests import builders


def run(*arguments: object) -> Result:
    return CliRunner().invoke(bundle_app, [str(argument) for argument in arguments])


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    for path in ("models/a/regression/model.joblib", "scalers/scaler_x/features.joblib"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(path)
    return tmp_path


def test_manifest_makes_a_bundle_that_verifies(base_dir: Path) -> None:
    made = run("manifest", "--models-type", "regression", "--base-dir", base_dir)
    assert made.exit_code == 0
    assert "2 files" in made.output
    verified = run("verify", base_dir)
    assert verified.exit_code == 0
    assert verified.output.startswith("ok: version v2")


def test_dry_run_prints_the_manifest_and_writes_nothing(base_dir: Path) -> None:
    made = run("manifest", "--models-type", "regression", "--base-dir", base_dir, "--dry-run", "--model-version", "v7")
    assert json.loads(made.stdout)["model_version"] == "v7"
    assert not (base_dir / "manifest.json").exists()


def test_refused_manifest_prints_the_problem_and_exits_with_1(base_dir: Path) -> None:
    made = run("manifest", "--models-type", "classification", "--base-dir", base_dir)
    assert made.exit_code == 1
    assert "expected files like models/<target>/classification/model.joblib, found none" in made.stderr


def test_verify_prints_each_problem_on_a_line(tmp_path: Path) -> None:
    directory = builders.write_forecaster(tmp_path)
    (directory / "golden.json").unlink()
    (directory / "scalers/scaler_x/features.joblib").write_bytes(b"")
    verified = run("verify", directory)
    assert verified.exit_code == 1
    lines = verified.stderr.splitlines()
    assert lines[0] == f"refused: {directory}"
    assert lines[1] == "  golden.json: expected a file, found none"
    assert lines[2].startswith("  scalers/scaler_x/features.joblib: expected sha256 ")
    assert len(lines) == 3


def test_verify_refuses_an_unknown_loader_and_another_type(tmp_path: Path) -> None:
    verified = run("verify", builders.write_forecaster(tmp_path, loader="pickel"), "--models-type", "classification")
    assert verified.exit_code == 1
    assert "models_type: expected 'classification', found 'regression'" in verified.stderr
    assert "loader: expected one of" in verified.stderr


def test_verify_of_nothing_says_so_without_a_traceback(tmp_path: Path) -> None:
    verified = run("verify", tmp_path / "none")
    assert verified.exit_code == 1
    assert verified.stderr.startswith("expected a directory at")


def test_list_shows_versions_newest_first_with_current_and_verified(tmp_path: Path) -> None:
    builders.write_forecaster(tmp_path, "first_20260101_000000")
    builders.write_forecaster(tmp_path, "second_20260102_000000", current=False)
    listed = run("list", tmp_path)
    assert listed.exit_code == 0
    rows = [line.split("│")[1:-1] for line in listed.output.splitlines() if "_2026" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [(row[0], row[5], row[6]) for row in cells] == [
        ("second_20260102_000000", "", "yes"),
        ("first_20260101_000000", "yes", "yes"),
    ]


def test_list_shows_broken_bundles_with_their_problems(tmp_path: Path) -> None:
    directory = builders.write_forecaster(tmp_path, "v1")
    (directory / "golden.json").unlink()
    (tmp_path / "v2").mkdir()
    (tmp_path / "v2" / "manifest.json").write_text("{")
    listed = run("list", tmp_path)
    assert listed.exit_code == 0
    assert "no, 1 problem" in listed.stdout
    assert "v1: golden.json: expected a file, found none" in listed.stderr
    assert "v2: expected a JSON document" in listed.stderr


def test_quick_list_checks_no_digests(tmp_path: Path) -> None:
    directory = builders.write_forecaster(tmp_path)
    (directory / "golden.json").unlink()
    assert "not checked" in run("list", tmp_path, "--quick").output


def test_list_of_an_empty_directory_says_so(tmp_path: Path) -> None:
    assert run("list", tmp_path).output == f"no bundle in {tmp_path}\n"
