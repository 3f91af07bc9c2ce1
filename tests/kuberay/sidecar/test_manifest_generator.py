"""The generator in shell gives what the one in Python does."""

import json
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serve_app.adapters.bundle_reader import read_bundle
from serve_app.adapters.bundle_writer import build_manifest
from serve_app.domain.errors import ServeAppError
from tests.kuberay.sidecar.bundles import MODEL, SCALER
from tests.kuberay.sidecar.shells import GENERATOR, TIMEOUT_S, Shell

ODD = ("models/a b/regression/x", "models/ä/regression/模型.joblib", "models/q/regression/\"quotes'", "scalers/-rf",
       "models/q/regression/deep/er/%s$(id)`id`*", "scalers/ leading and trailing ", "scalers/Z", "scalers/a-b",
       "scalers/a/b", "models/A/regression/x", "models/a.b/regression/x")  # fmt: skip


def generate(shell: Shell, base: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*shell.command, str(GENERATOR), *arguments],
        cwd=base,
        env={"PATH": shell.path, "MODELS_TYPE": "regression"} | settings,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def lay_out(base: Path, *paths: str) -> None:
    for path in paths:
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_text(path)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    lay_out(tmp_path, MODEL, SCALER)
    return tmp_path


def the_same_in_python(base: Path, text: str) -> str:
    found = json.loads(text)
    moment = datetime.fromisoformat(found["created_at"])
    return build_manifest(base, "regression", model_version=found["model_version"], now=moment).to_bytes().decode()


def test_manifest_is_that_of_python_byte_for_byte(shell: Shell, base: Path) -> None:
    lay_out(base, *ODD)
    lay_out(
        base,
        "models/other/classification/x",
        "scalers/.hidden",
        "models/a/regression/.git/x",
        "models/README",
        "other/x",
    )
    (base / "scalers" / "link").symlink_to("scaler_x/features.joblib")
    (base / "scalers" / "linked").symlink_to("scaler_x")
    (base / "scalers" / "dangling").symlink_to("nowhere")
    done = generate(shell, base, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == the_same_in_python(base, done.stdout)
    assert not (base / "manifest.json").exists()


def test_bundle_is_one_that_the_server_reads(shell: Shell, base: Path) -> None:
    done = generate(shell, base)
    assert done.returncode == 0, done.stderr
    bundle = read_bundle(base)
    assert set(bundle.files) == {MODEL, SCALER}
    version = bundle.manifest.model_version
    assert re.fullmatch(r"v\d{4}-\d\d-\d\dT\d{4}Z", version)
    assert bundle.manifest.created_at <= datetime.now(UTC)
    assert done.stdout == f"wrote ./manifest.json: version {version}, 2 files\n"
    assert sorted(path.name for path in base.iterdir()) == ["manifest.json", "models", "scalers"]


@pytest.mark.parametrize("seconds", ["10", "0.5"])
def test_interval_written_by_hand_is_kept(shell: Shell, base: Path, seconds: str) -> None:
    assert generate(shell, base, "--model-version", "v1").returncode == 0
    written = json.loads((base / "manifest.json").read_text())
    (base / "manifest.json").write_text(json.dumps(written | {"sidecar": {"poll_interval_seconds": float(seconds)}}))
    done = generate(shell, base, "--dry-run", "--model-version", "v2")
    assert done.stdout == the_same_in_python(base, done.stdout)
    assert json.loads(done.stdout)["sidecar"] == {"poll_interval_seconds": float(seconds)}


def test_other_directory_and_version(shell: Shell, base: Path, tmp_path: Path) -> None:
    done = generate(shell, Path("/"), "--base-dir", str(base), "--model-version", "v7")
    assert done.returncode == 0, done.stderr
    assert read_bundle(base).manifest.model_version == "v7"


def _newline(base: Path) -> None:
    lay_out(base, "scalers/line\nbreak")


def _link_outside(base: Path) -> None:
    (base.parent / "outside").write_text("x")
    (base / "scalers" / "away").symlink_to("../../outside")


def _backslash(base: Path) -> None:
    lay_out(base, "scalers/back\\slash")


def _no_model(base: Path) -> None:
    (base / MODEL).unlink()


@pytest.mark.parametrize("spoil", [_newline, _link_outside, _backslash, _no_model])
def test_both_refuse(shell: Shell, base: Path, spoil: Callable[[Path], None]) -> None:
    spoil(base)
    with pytest.raises(ServeAppError):
        build_manifest(base, "regression")
    done = generate(shell, base)
    assert done.returncode == 1
    assert done.stderr.startswith("refused: ")
    assert not (base / "manifest.json").exists()


@pytest.mark.parametrize("version", ["../v1", 'v1", "x": "', "current", ""])
def test_bad_version_is_refused(shell: Shell, base: Path, version: str) -> None:
    if version:
        assert generate(shell, base, "--model-version", version).returncode == 1
    assert generate(shell, base, MODELS_TYPE="a/b").returncode == 1
    assert generate(shell, base, MODELS_TYPE="").returncode == 2
