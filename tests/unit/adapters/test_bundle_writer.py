import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serve_app.adapters.bundle_reader import read_bundle
from serve_app.adapters.bundle_writer import build_manifest, set_current, write_bundle, write_manifest
from serve_app.domain.errors import BundleError, ManifestError, SourceError
from tests import builders

FILES = {"models/a/regression/model.joblib": b"the model"}
NOW = datetime(2026, 1, 30, 9, 0, 30, tzinfo=UTC)


def write(root: Path, version: str = "v1") -> Path:
    return write_bundle(root, builders.manifest(FILES, model_version=version), FILES)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def lay_out(base_dir: Path, *paths: str) -> None:
    for path in paths:
        (base_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (base_dir / path).write_text(path)


def test_written_bundle_reads_back(tmp_path: Path) -> None:
    directory = write(tmp_path / "new" / "root")
    assert directory == tmp_path / "new" / "root" / "v1"
    assert read_bundle(directory).files == FILES


def test_nothing_but_the_version_is_left_behind(tmp_path: Path) -> None:
    write(tmp_path)
    assert names_in(tmp_path) == ["v1"]


def test_existing_version_is_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(BundleError, match="expected a new version, found one that exists"):
        write(tmp_path)
    assert names_in(tmp_path) == ["v1"]


def test_crash_during_the_write_leaves_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path)
    assert names_in(tmp_path) == []


def test_files_other_than_the_manifest_lists_are_refused_all_at_once(tmp_path: Path) -> None:
    described = builders.manifest({"a": b"1", "b": b"2"})
    with pytest.raises(BundleError) as caught:
        write_bundle(tmp_path, described, {"a": b"x", "c": b"3"})
    assert len(caught.value.problems) == 3
    assert names_in(tmp_path) == []


def test_bundle_is_readable_for_other_users(tmp_path: Path) -> None:
    assert write(tmp_path).stat().st_mode & 0o755 == 0o755


def test_current_is_a_relative_link_that_can_flip(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        write(tmp_path, version)
        set_current(tmp_path, version)
        assert (tmp_path / "current").readlink() == Path(version)
    assert names_in(tmp_path) == ["current", "v1", "v2"]


@pytest.mark.parametrize("version", ["v9", "../v1", "current", ""])
def test_current_never_points_at_what_is_no_version(tmp_path: Path, version: str) -> None:
    write(tmp_path)
    set_current(tmp_path, "v1")
    with pytest.raises(BundleError, match="expected a"):
        set_current(tmp_path, version)
    assert (tmp_path / "current").readlink() == Path("v1")


def test_directory_named_current_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "current").mkdir()
    with pytest.raises(BundleError, match="expected a link, found a directory"):
        set_current(tmp_path, "v1")


def test_generated_manifest_lists_the_models_of_the_type_and_all_scalers(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        "models/b/regression/model.joblib",
        "models/a/regression/model.joblib",
        "models/a/classification/model.joblib",
        "models/a/regression/.hidden",
        "scalers/scaler_x/features.joblib",
        "scalers/scaler_y/a.joblib",
        "README.md",
    )
    manifest = build_manifest(tmp_path, "regression", now=NOW)
    assert list(manifest.sha256) == [
        "models/a/regression/model.joblib",
        "models/b/regression/model.joblib",
        "scalers/scaler_x/features.joblib",
        "scalers/scaler_y/a.joblib",
    ]
    assert manifest.model_version == "v2026-01-30T0900Z"
    assert manifest.created_at == NOW


def test_written_generated_manifest_makes_the_directory_a_bundle(tmp_path: Path) -> None:
    lay_out(tmp_path, "models/a/regression/model.joblib")
    write_manifest(tmp_path, build_manifest(tmp_path, "regression", model_version="v7"))
    assert read_bundle(tmp_path).manifest.model_version == "v7"
    assert names_in(tmp_path) == ["manifest.json", "models"]


def test_sidecar_section_survives_a_new_manifest(tmp_path: Path) -> None:
    lay_out(tmp_path, "models/a/regression/model.joblib")
    path = write_manifest(tmp_path, build_manifest(tmp_path, "regression"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sidecar": {"poll_interval_seconds": 7}}))
    sidecar = build_manifest(tmp_path, "regression").sidecar
    assert sidecar is not None
    assert sidecar.poll_interval_seconds == 7


def test_directory_without_models_of_the_type_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, "models/a/classification/model.joblib")
    with pytest.raises(BundleError, match=r"expected files like models/<target>/regression/model.joblib, found none"):
        build_manifest(tmp_path, "regression")


def test_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path / "base", "models/a/regression/model.joblib")
    lay_out(tmp_path, "outside")
    (tmp_path / "base/models/a/regression/extra").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="expected a file inside the bundle, found a link to"):
        build_manifest(tmp_path / "base", "regression")


def test_bad_version_and_missing_directory_are_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, "models/a/regression/model.joblib")
    with pytest.raises(ManifestError, match="model_version: expected"):
        build_manifest(tmp_path, "regression", model_version="a/b")
    with pytest.raises(SourceError, match="found nothing there"):
        build_manifest(tmp_path / "none", "regression")
