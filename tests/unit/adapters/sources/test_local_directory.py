import hashlib
from datetime import timedelta
from pathlib import Path

import pytest

from serve_app.adapters.bundle_writer import set_current, write_bundle
from serve_app.adapters.sources import make_source
from serve_app.adapters.sources.local_directory import LocalDirectorySource
from serve_app.config_sources import DirectoryConfig
from serve_app.domain.errors import BundleError, SourceError
from tests import builders

FILES = {"models/a/regression/model.joblib": b"the model"}


def write(root: Path, version: str, *, days: int = 0) -> Path:
    created_at = builders.CREATED_AT + timedelta(days=days)
    return write_bundle(root, builders.manifest(FILES, model_version=version, created_at=created_at), FILES)


def current_version(root: Path) -> str | None:
    ref = LocalDirectorySource(root).current()
    return None if ref is None else ref.version


def test_configured_directory_is_read_with_its_manifest_name(tmp_path: Path) -> None:
    (tmp_path / write(tmp_path, "v1").name / "manifest.json").rename(tmp_path / "v1" / "bundle.json")
    source = make_source(
        DirectoryConfig(root=str(tmp_path), manifest_name="bundle.json"), family="a", models_type="regression"
    )
    assert source.find("v1").version == "v1"
    assert source.status().kind == "local_directory"


def test_flipped_link_is_seen_at_once(tmp_path: Path) -> None:
    write(tmp_path, "v1")
    write(tmp_path, "v2")
    source = LocalDirectorySource(tmp_path)
    for version in ("v1", "v2", "v1"):
        set_current(tmp_path, version)
        assert source.fetch("current").manifest.model_version == version


def test_fingerprint_is_the_digest_of_the_manifest(tmp_path: Path) -> None:
    directory = write(tmp_path, "v1")
    ref = LocalDirectorySource(tmp_path).current()
    assert ref is not None
    assert ref.fingerprint == hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest()
    assert ref.fingerprint == LocalDirectorySource(tmp_path).fetch("v1").digest


def test_root_that_is_itself_a_bundle_is_current(tmp_path: Path) -> None:
    directory = write(tmp_path, "v1")
    source = LocalDirectorySource(directory)
    assert current_version(directory) == "v1"
    assert source.fetch("v1") == source.fetch("current")
    assert [ref.version for ref in source.versions()] == ["v1"]


def test_root_that_is_the_current_link_follows_it(tmp_path: Path) -> None:
    write(tmp_path, "v1")
    write(tmp_path, "v2")
    for version in ("v1", "v2"):
        set_current(tmp_path, version)
        assert current_version(tmp_path / "current") == version


def test_relative_root_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path, "v1"))
    assert current_version(Path()) == "v1"


def test_without_a_link_the_newest_timestamp_in_a_name_is_current(tmp_path: Path) -> None:
    write(tmp_path, "tft_model_20250130_143000", days=0)
    write(tmp_path, "tft_model_20250130_120000", days=5)
    assert current_version(tmp_path) == "tft_model_20250130_143000"


def test_directory_whose_name_differs_from_its_version_is_found_by_version(tmp_path: Path) -> None:
    write(tmp_path, "v1").rename(tmp_path / "tft_model_20250130_143000")
    assert LocalDirectorySource(tmp_path).fetch("v1").manifest.model_version == "v1"


def test_what_is_no_bundle_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, "v1")
    write(tmp_path, "v2").rename(tmp_path / "staging")
    write(tmp_path, "v3").rename(tmp_path / ".v3.tmp")
    (tmp_path / "notes").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    assert [ref.version for ref in LocalDirectorySource(tmp_path).versions()] == ["v1"]


def test_broken_current_is_reported_and_its_fetch_says_why(tmp_path: Path) -> None:
    directory = write(tmp_path, "v1")
    set_current(tmp_path, "v1")
    (directory / "manifest.json").write_text("{")
    assert current_version(tmp_path) == "v1"
    for version in ("current", "v1"):
        with pytest.raises(BundleError, match="expected a JSON document"):
            LocalDirectorySource(tmp_path).fetch(version)


def test_link_to_nowhere_is_a_source_error(tmp_path: Path) -> None:
    write(tmp_path, "v1")
    (tmp_path / "current").symlink_to("v9")
    with pytest.raises(SourceError, match="found a link to v9, which is not there"):
        LocalDirectorySource(tmp_path).current()


def test_missing_root_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a directory at"):
        LocalDirectorySource(tmp_path / "none").current()


def test_current_outside_the_root_is_listed_too(tmp_path: Path) -> None:
    outside = write(tmp_path / "elsewhere", "v1")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "current").symlink_to(outside)
    (ref,) = LocalDirectorySource(tmp_path / "root").versions()
    assert (ref.version, ref.is_current) == ("v1", True)


def test_other_manifest_name_is_honoured(tmp_path: Path) -> None:
    directory = write(tmp_path, "v1")
    (directory / "manifest.json").rename(directory / "bundle.json")
    assert LocalDirectorySource(tmp_path, manifest_name="bundle.json").fetch("v1").files == FILES
