"""A staged bundle becomes a version, or is refused; the server's own reader is asked about the same bundle."""

import json
import os
from pathlib import Path

import pytest

from serve_app.adapters.bundle_reader import read_bundle
from serve_app.adapters.sources.local_directory import LocalDirectorySource
from serve_app.domain.errors import BundleError, SourceError
from tests.kuberay.sidecar.bundles import BAD, GOOD, MODEL, SCALER, STRICTER, document, files, make_live, stage
from tests.kuberay.sidecar.shells import Shell, lines


def live(root: Path) -> str:
    return LocalDirectorySource(root).fetch("current").manifest.model_version


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def server_accepts(directory: Path) -> bool:
    try:
        read_bundle(directory)
    except (BundleError, SourceError):
        return False
    return True


def refused(root: Path) -> list[Path]:
    return sorted((root / "staging").glob("rejected-*"))


def promoted(shell: Shell, root: Path, version: str, **settings: str) -> None:
    stage(root, version)
    done = shell.once(root, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert live(root) == version


@pytest.mark.parametrize("name", GOOD)
def test_both_accept(shell: Shell, root: Path, name: str) -> None:
    make_live(root, "v0")
    staging = stage(root)
    GOOD[name](staging)
    assert server_accepts(staging)
    expected = read_bundle(staging).files
    done = shell.once(root)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    bundle = LocalDirectorySource(root).fetch("current")
    assert (bundle.manifest.model_version, bundle.files) == ("v1", expected)
    assert names_in(staging) == set()
    assert not list((root / "v1").rglob(".promoting"))


@pytest.mark.parametrize("name", BAD)
def test_both_refuse_and_the_old_one_stays(shell: Shell, root: Path, name: str) -> None:
    make_live(root, "v0")
    staging = stage(root)
    BAD[name](staging)
    assert not server_accepts(staging)
    done = shell.once(root)
    assert (done.returncode, done.stderr) == (1, ""), done.stdout
    assert live(root) == "v0"
    assert names_in(root) - {"outside", "outside.json", "elsewhere"} == {".sidecar", "current", "staging", "v0"}
    (directory,) = refused(root)
    assert (directory / "reason.txt").read_text().strip()
    assert names_in(staging) == {directory.name}
    (line,) = lines(done.stdout, "rejected")
    assert line["directory"] == directory.name


@pytest.mark.parametrize("name", STRICTER)
def test_only_the_sidecar_refuses(shell: Shell, root: Path, name: str) -> None:
    staging = stage(root)
    STRICTER[name](staging)
    assert server_accepts(staging)
    assert shell.once(root).returncode == 1
    assert len(refused(root)) == 1


def test_version_holds_the_listed_files_and_nothing_else(shell: Shell, root: Path) -> None:
    GOOD["unlisted_files"](stage(root))
    assert shell.once(root).returncode == 0
    found = {path.relative_to(root / "v1").as_posix() for path in (root / "v1").rglob("*") if not path.is_dir()}
    assert found == {MODEL, SCALER, "manifest.json"}


def test_links_are_replaced_by_what_they_point_to(shell: Shell, root: Path) -> None:
    GOOD["links_inside"](stage(root))
    assert shell.once(root).returncode == 0
    assert not [path for path in (root / "v1").rglob("*") if path.is_symlink()]


def test_files_are_moved_and_not_copied(shell: Shell, root: Path) -> None:
    inode = (stage(root) / MODEL).stat().st_ino
    assert shell.once(root).returncode == 0
    assert (root / "v1" / MODEL).stat().st_ino == inode


def test_current_is_a_relative_link(shell: Shell, root: Path) -> None:
    promoted(shell, root, "v1")
    assert (root / "current").readlink() == Path("v1")


def test_nothing_happens_without_ready(shell: Shell, root: Path) -> None:
    stage(root, is_ready=False)
    assert shell.once(root).returncode == 0
    assert names_in(root) == {".sidecar", "staging"}
    assert (root / "staging" / MODEL).exists()


def test_bundle_that_still_changes_is_waited_for(shell: Shell, root: Path) -> None:
    staging = stage(root)
    (staging / MODEL).write_bytes(b"half")
    waiting = shell.once(root, SETTLE_SECONDS="600")
    assert waiting.returncode == 1
    assert len(list(lines(waiting.stdout, "waiting"))) == 1
    assert (staging / "READY").exists()
    (staging / MODEL).write_bytes(files("v1")[MODEL])
    assert shell.once(root, SETTLE_SECONDS="600").returncode == 0
    assert live(root) == "v1"


def test_same_bundle_again_changes_nothing(shell: Shell, root: Path) -> None:
    promoted(shell, root, "v1")
    inode = (root / "v1").stat().st_ino
    promoted(shell, root, "v1")
    assert (root / "v1").stat().st_ino == inode
    assert names_in(root) == {".sidecar", "current", "staging", "v1"}
    assert names_in(root / "staging") == set()


def test_older_bundle_that_comes_again_goes_live(shell: Shell, root: Path) -> None:
    make_live(root, "v1")
    for version in ("v2", "v1"):
        promoted(shell, root, version)


def test_other_content_under_the_live_version_is_refused(shell: Shell, root: Path) -> None:
    promoted(shell, root, "v1")
    stage(root, "v1", metrics={"rmse": 1})
    assert shell.once(root).returncode == 1
    assert "a version never changes" in (refused(root)[0] / "reason.txt").read_text()
    assert LocalDirectorySource(root).fetch("current").manifest.metrics is None


def test_damaged_version_is_not_made_live_again(shell: Shell, root: Path) -> None:
    make_live(root, "v1")
    promoted(shell, root, "v2")
    (root / "v1" / MODEL).write_bytes(b"rot")
    stage(root, "v1")
    assert shell.once(root).returncode == 1
    assert live(root) == "v2"
    assert "to be sound" in (refused(root)[0] / "reason.txt").read_text()


def test_directory_in_the_place_of_current_blocks_and_loses_nothing(shell: Shell, root: Path) -> None:
    (root / "current").mkdir()
    stage(root)
    blocked = shell.once(root)
    assert blocked.returncode == 1
    assert "expected" in next(lines(blocked.stdout, "blocked"))["reason"]
    (root / "current").rmdir()
    assert shell.once(root).returncode == 0
    assert live(root) == "v1"


def test_ready_alone_is_refused(shell: Shell, root: Path) -> None:
    (root / "staging").mkdir()
    (root / "staging" / "READY").touch()
    assert shell.once(root).returncode == 1
    assert names_in(refused(root)[0]) == {"reason.txt"}


def test_newest_versions_stay_and_the_live_one(shell: Shell, root: Path) -> None:
    (root / "notes").mkdir()
    make_live(root, "v1")
    promoted(shell, root, "v2", KEEP_VERSIONS="2")
    promoted(shell, root, "v3", KEEP_VERSIONS="2")
    assert names_in(root) == {".sidecar", "current", "staging", "notes", "v2", "v3"}
    promoted(shell, root, "v2", KEEP_VERSIONS="1")
    assert names_in(root) == {".sidecar", "current", "staging", "notes", "v2"}


def test_live_version_stays_even_if_all_others_are_newer(shell: Shell, root: Path) -> None:
    make_live(root, "v1")
    stage(root, "v2", is_ready=False).rename(root / "v2")
    os.utime(root / "v2", (4e9, 4e9))
    promoted(shell, root, "v3", KEEP_VERSIONS="1")
    assert names_in(root) == {".sidecar", "current", "staging", "v2", "v3"}


def test_refused_bundles_do_not_fill_the_disk(shell: Shell, root: Path) -> None:
    for _ in range(3):
        BAD["truncated"](stage(root))
        assert shell.once(root, KEEP_REJECTED="2").returncode == 1
    assert len(refused(root)) == 2


def test_names_can_be_changed(shell: Shell, root: Path) -> None:
    elsewhere = root.parent / "incoming"
    stage(root.parent / "x")
    (root.parent / "x" / "staging").rename(elsewhere)
    (elsewhere / "manifest.json").rename(elsewhere / "about.json")
    link = root.parent / "live"
    settings = {"STAGING_DIR": str(elsewhere), "CURRENT_LINK": str(link), "MANIFEST_NAME": "about.json"}
    assert shell.once(root, **settings).returncode == 0
    assert link.resolve() == root / "v1"
    assert LocalDirectorySource(root, manifest_name="about.json").versions()[0].version == "v1"


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({"MODELS_ROOT": "/nowhere"}, ()),
        ({"POLL_DEFAULT": "often"}, ()),
        ({"POLL_DEFAULT": "0"}, ()),
        ({"KEEP_VERSIONS": "1.5"}, ()),
        ({"KEEP_VERSIONS": "$(id)"}, ()),
        ({"MANIFEST_NAME": "../manifest.json"}, ()),
        ({"RELOAD_TOKEN": "a\nb"}, ()),
        ({}, ("--poll-interval",)),
        ({}, ("--poll-interval", "-5")),
        ({}, ("--pol", "5")),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(
    shell: Shell, root: Path, settings: dict[str, str], arguments: tuple[str, ...]
) -> None:
    refusal = shell.once(root, *arguments, **settings)
    assert refusal.returncode == 2
    assert "event=misused" in refusal.stderr
    assert settings.get("RELOAD_TOKEN", "a\nb") not in refusal.stdout + refusal.stderr


def test_staging_on_another_file_system_is_refused_at_once(shell: Shell, root: Path, tmp_path: Path) -> None:
    if root.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to; one at /dev/shm would do")
    refusal = shell.once(root, STAGING_DIR=str(tmp_path / "staging"))
    assert refusal.returncode == 2
    assert "a move would copy" in refusal.stderr


def test_reason_cannot_forge_a_line_of_the_log(shell: Shell, root: Path) -> None:
    staging = stage(root)
    forged = document(models_type='x\nlevel=info event=promoted version="v9"')
    (staging / "manifest.json").write_text(json.dumps(forged))
    done = shell.once(root)
    assert len(done.stdout.splitlines()) == 2
    assert not [line for line in done.stdout.splitlines() if line.startswith("level=info event=promoted")]
