import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.adapters import bundle_reader
from serve_app.adapters.bundle_reader import read_bundle
from serve_app.adapters.bundle_writer import write_bundle
from serve_app.domain.errors import BundleError, ManifestError, SourceError
from tests import builders

MODEL = "models/a/regression/model.joblib"
SCALER = "scalers/scaler_x/features.joblib"
FILES = {MODEL: b"the model", SCALER: b"the scaler"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "root", builders.manifest(FILES), FILES)


def refusals(directory: Path, *, max_bytes: int = 10**6) -> tuple[str, ...]:
    with pytest.raises(BundleError) as caught:
        read_bundle(directory, max_bytes=max_bytes)
    return caught.value.problems


def test_sound_bundle_is_read_whole(directory: Path) -> None:
    bundle = read_bundle(directory)
    assert bundle.files == FILES
    assert bundle.manifest == builders.manifest(FILES)
    assert len(bundle.digest) == 64


def test_file_that_the_manifest_does_not_list_is_never_opened(directory: Path) -> None:
    os.mkfifo(directory / "models" / "unlisted")  # opening it for reading would wait for ever
    (directory / "models" / "outside").symlink_to("/etc/passwd")
    assert read_bundle(directory).files.keys() == FILES.keys()


def test_wrong_digest_shows_expected_and_found(directory: Path) -> None:
    (directory / MODEL).write_bytes(b"the modem")
    (problem,) = refusals(directory)
    digest = builders.manifest(FILES).sha256[MODEL]
    assert problem.startswith(f"{MODEL}: expected sha256 {digest}, found ")
    assert problem.endswith("(9 bytes)")


def test_truncated_file_shows_its_size(directory: Path) -> None:
    (directory / MODEL).write_bytes(b"the")
    assert "(3 bytes)" in refusals(directory)[0]


def test_empty_file_is_called_empty(directory: Path) -> None:
    (directory / MODEL).write_bytes(b"")
    assert "(0 bytes, the file is empty)" in refusals(directory)[0]


def test_missing_file_is_named(directory: Path) -> None:
    (directory / SCALER).unlink()
    assert refusals(directory) == (f"{SCALER}: expected a file, found none",)


def test_missing_manifest_is_named(directory: Path) -> None:
    (directory / "manifest.json").unlink()
    assert refusals(directory) == ("manifest.json: expected a file, found none",)


def test_manifest_that_is_not_json_is_refused(directory: Path) -> None:
    (directory / "manifest.json").write_text("not json")
    with pytest.raises(ManifestError, match="expected a JSON document, found 'not json'"):
        read_bundle(directory)


def test_path_that_leaves_the_bundle_is_refused(directory: Path) -> None:
    text = (directory / "manifest.json").read_text().replace(SCALER, "../../secret")
    (directory / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match=r"found '\.\./\.\./secret', which leaves the bundle"):
        read_bundle(directory)


def test_link_out_of_the_bundle_is_refused_even_to_the_right_bytes(directory: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(FILES[MODEL])
    (directory / MODEL).unlink()
    (directory / MODEL).symlink_to(outside)
    assert refusals(directory) == (f"{MODEL}: expected a file inside the bundle, found a link to {outside}",)


def test_linked_directory_out_of_the_bundle_is_refused(directory: Path, tmp_path: Path) -> None:
    shutil.move(directory / "models", tmp_path / "models")
    (directory / "models").symlink_to(tmp_path / "models")
    assert "expected a file inside the bundle, found a link to" in refusals(directory)[0]


def test_link_within_the_bundle_is_followed(directory: Path) -> None:
    (directory / MODEL).rename(directory / "data")
    (directory / MODEL).symlink_to(directory / "data")
    assert read_bundle(directory).files == FILES


def test_broken_link_names_its_target(directory: Path) -> None:
    (directory / MODEL).unlink()
    (directory / MODEL).symlink_to("nowhere")
    assert refusals(directory) == (f"{MODEL}: expected a file, found a link to nowhere, which is not there",)


def test_loop_of_links_is_refused(directory: Path) -> None:
    (directory / MODEL).unlink()
    (directory / MODEL).symlink_to("model.joblib")
    assert f"{MODEL}: expected a readable file, found: Too many levels" in refusals(directory)[0]


def test_named_pipe_is_refused_without_waiting(directory: Path) -> None:
    (directory / MODEL).unlink()
    os.mkfifo(directory / MODEL)
    assert refusals(directory) == (f"{MODEL}: expected a regular file, found a named pipe",)


def test_directory_in_place_of_a_file_is_refused(directory: Path) -> None:
    (directory / MODEL).unlink()
    (directory / MODEL).mkdir()
    assert refusals(directory) == (f"{MODEL}: expected a regular file, found a directory",)


def test_bundle_above_the_byte_limit_is_refused(directory: Path) -> None:
    assert refusals(directory, max_bytes=12) == (
        f"{SCALER}: expected at most 3 bytes (what is left of the limit), found 10",
    )


def test_all_problems_are_listed_at_once(directory: Path) -> None:
    (directory / MODEL).write_bytes(b"x")
    (directory / SCALER).unlink()
    assert len(refusals(directory)) == 2


def test_bundle_behind_a_link_is_read_at_its_target(directory: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(directory)
    assert read_bundle(link).location == str(directory)


@pytest.mark.parametrize("made", ["nothing", "file", "link", "loop"])
def test_place_without_a_directory_is_no_source(tmp_path: Path, made: str) -> None:
    place = tmp_path / "place"
    if made == "file":
        place.write_text("")
    elif made == "link":
        place.symlink_to("nowhere")
    elif made == "loop":
        place.symlink_to("place")
    with pytest.raises(SourceError, match=r"expected a directory at .*place, found"):
        read_bundle(place)


@pytest.mark.parametrize("change", ["manifest rewritten", "directory removed", "file grows"])
def test_directory_that_changes_during_the_read_is_one_clear_error(
    directory: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bundle_reader._read_all

    def changing(descriptor: int, size: int) -> bytes:
        content = real(descriptor, size)
        if content == FILES[MODEL]:
            changes[change]()
        return content

    changes: dict[str, Callable[[], object]] = {
        "manifest rewritten": lambda: (directory / "manifest.json").write_bytes(b"{}"),
        "directory removed": lambda: shutil.rmtree(directory),
        "file grows": lambda: (directory / MODEL).write_bytes(b"the model and more"),
    }
    monkeypatch.setattr(bundle_reader, "_read_all", changing)
    with pytest.raises(SourceError, match="changed while it was read"):
        read_bundle(directory)
