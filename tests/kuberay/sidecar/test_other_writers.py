"""Bundles that another user than the sidecar's writes, as on a directory of a node: what that user has to leave."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kuberay.sidecar.bundles import stage
from tests.kuberay.sidecar.shells import SCRIPT, SIDECAR, TIMEOUT_S, dash
from tests.rehearsal.containers import has_user

SIDECAR_USER = 1000
WRITER = 1001

pytestmark = pytest.mark.skipif(
    not has_user(WRITER), reason="two users are played: be root, and not in a namespace of users"
)


def prepare(root: Path) -> None:
    """What `docs/kuberay.md` says of a node."""
    root.parent.chmod(0o755)
    for directory in (root, root / "staging"):
        directory.mkdir(exist_ok=True)
        os.chown(directory, SIDECAR_USER, SIDECAR_USER)
        directory.chmod(0o2775)


def give(staging: Path, *, mode: int) -> None:
    """Make everything the writer's, in the sidecar's group; directories have this mode."""
    for entry in staging.rglob("*"):
        os.chown(entry, WRITER, SIDECAR_USER)
        entry.chmod(mode if entry.is_dir() else 0o644)


def look(root: Path) -> subprocess.CompletedProcess[str]:
    """Let the sidecar look once, from a place that its user can read."""
    script = shutil.copytree(SIDECAR, root.parent / "sidecar", dirs_exist_ok=True) / SCRIPT.name
    shell = dash()
    return subprocess.run(
        [*shell.command, str(script), "--once"], user=SIDECAR_USER, group=SIDECAR_USER, extra_groups=[], cwd="/",
        env=shell.environment(root, {"KEEP_VERSIONS": "1"}), capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip


def test_a_bundle_whose_directories_the_group_may_write_is_promoted_and_removed_in_its_time(root: Path) -> None:
    prepare(root)
    for version in ("v1", "v2"):
        give(stage(root, version), mode=0o2775)
        looked = look(root)
        assert looked.returncode == 0, looked.stdout + looked.stderr
        assert (root / "current").readlink() == Path(version)
    assert not (root / "v1").exists()


def test_a_directory_that_the_group_may_not_write_stops_the_promotion_until_it_may(root: Path) -> None:
    prepare(root)
    staging = stage(root, "v1")
    give(staging, mode=0o755)
    looked = look(root)
    assert looked.returncode == 1
    assert "event=blocked" in looked.stdout
    assert not (root / "current").is_symlink()
    for directory in [path for path in root.rglob("*") if path.is_dir() and path.stat().st_uid == WRITER]:
        directory.chmod(0o2775)
    assert look(root).returncode == 0
    assert (root / "current").readlink() == Path("v1")
