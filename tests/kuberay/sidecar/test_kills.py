"""Killed at any moment, the sidecar leaves a whole bundle live and loses no READY; started again, it finishes."""

import os
import random
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from serve_app.adapters.sources.local_directory import LocalDirectorySource
from tests.kuberay.sidecar.bundles import BAD, GOOD, MODEL, make_live, stage
from tests.kuberay.sidecar.shells import SCRIPT, TIMEOUT_S, Shell, log_of, with_first

STEPS: Final = ("mv", "ln", "rm", "mkdir", "cp", "sync")
"""The commands that change something."""
MOST_STEPS = 80
RANDOM_KILLS = 20

SHIM: Final = """#!/bin/sh
# Counts the steps of the shell that calls it, and kills that shell after the one that was chosen.
count=$(($(cat "$KILL_DIRECTORY/count") + 1))
echo "$count" >"$KILL_DIRECTORY/count"
REAL "$@"
status=$?
[ "$KILL_AT" != "$count" ] || kill -9 "$PPID"
exit "$status"
"""


@pytest.fixture
def killing(shell: Shell, tmp_path: Path) -> Callable[..., bool]:
    """Returns a function that runs the sidecar up to a step, and tells whether it was killed there."""
    shims = tmp_path / "shims"
    shims.mkdir()
    for step in STEPS:
        real = shutil.which(step, path=shell.path)
        assert real is not None
        (shims / step).write_text(SHIM.replace("REAL", real))
        (shims / step).chmod(0o755)
    shimmed = with_first(shell, shims)

    def run(root: Path, at: int) -> bool:
        (tmp_path / "count").write_text("0")
        settings = {"KILL_DIRECTORY": str(tmp_path), "KILL_AT": str(at), "KEEP_VERSIONS": "1"}
        return shimmed.once(root, **settings).returncode == -signal.SIGKILL

    return run


def started_over(root: Path, version: str = "v2") -> None:
    """Make a volume where v1 is live and v2 is staged."""
    shutil.rmtree(root)
    root.mkdir()
    make_live(root, "v1")
    stage(root, version)


def marks(root: Path) -> list[Path]:
    """Where READY is, under any of its names."""
    names = ("staging/READY", ".sidecar/incoming/READY", ".sidecar/build/.promoting")
    return [path for name in names if (path := root / name).exists()] + [
        path for path in root.glob("*/.promoting") if not path.parent.is_symlink()
    ]


def whole_versions(root: Path) -> set[str]:
    """Return what is visible as a version; each must be whole."""
    source = LocalDirectorySource(root)
    return {source.fetch(ref.version).manifest.model_version for ref in source.versions()}


def test_kill_at_every_step_of_a_promotion(killing: Callable[..., bool], shell: Shell, root: Path) -> None:
    steps = 0
    for at in range(1, MOST_STEPS):
        started_over(root)
        GOOD["links_inside"](root / "staging")
        was_killed = killing(root, at)
        source = LocalDirectorySource(root)
        current = source.fetch("current").manifest.model_version
        assert current in {"v1", "v2"}
        assert whole_versions(root) <= {"v1", "v2"}
        assert current == "v2" or len(marks(root)) == 1, f"READY is lost after step {at}"
        if not was_killed:
            break
        steps += 1
        again = shell.once(root, KEEP_VERSIONS="1")
        assert again.returncode == 0, again.stdout
        assert source.fetch("current").manifest.model_version == "v2"
        assert marks(root) == []
        # A kill between the last mark and the pruning leaves the old version for the next promotion to prune.
        assert {path.name for path in root.iterdir()} - {"v1"} == {".sidecar", "current", "staging", "v2"}
        assert not (root / ".sidecar" / "incoming").exists()
    assert was_killed is False
    assert steps > 20


@pytest.mark.parametrize("shell", ["dash"], indirect=True)
def test_kill_at_every_step_of_a_refusal(killing: Callable[..., bool], shell: Shell, root: Path) -> None:
    for at in range(1, MOST_STEPS):
        started_over(root)
        BAD["missing_file"](root / "staging")
        was_killed = killing(root, at)
        assert LocalDirectorySource(root).fetch("current").manifest.model_version == "v1"
        refused = list((root / "staging").glob("rejected-*/reason.txt"))
        assert len(marks(root)) + len(refused) >= 1
        if not was_killed:
            break
        shell.once(root)
        assert marks(root) == []
        assert LocalDirectorySource(root).fetch("current").manifest.model_version == "v1"
        (kept,) = (root / "staging").glob("rejected-*")
        assert next(kept.rglob(MODEL)).exists(), "what was refused can be looked at"
    assert was_killed is False


@pytest.mark.parametrize("shell", ["dash"], indirect=True)
def test_kill_of_a_bundle_that_comes_again(killing: Callable[..., bool], shell: Shell, root: Path) -> None:
    """The version exists already, whole. The first steps are those of any promotion."""
    for at in range(12, MOST_STEPS):
        started_over(root)
        shutil.copytree(root / "staging", root / "v2")
        (root / "v2" / "READY").unlink()
        was_killed = killing(root, at)
        assert LocalDirectorySource(root).fetch("current").manifest.model_version in {"v1", "v2"}
        if not was_killed:
            break
        assert shell.once(root).returncode == 0
        assert LocalDirectorySource(root).fetch("current").manifest.model_version == "v2"
        assert marks(root) == []
    assert was_killed is False


def test_kills_at_random_moments(shell: Shell, root: Path) -> None:
    """Wherever the clock strikes, with all that it started: as a container that is killed."""
    source = random.Random(11)
    started_over(root)
    whole_s = _seconds_of_one(shell, root)
    kills = 0
    for i in range(3 * RANDOM_KILLS):
        started_over(root)
        process = subprocess.Popen(
            [*shell.command, str(SCRIPT), "--once"],
            env=shell.environment(root, {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(source.uniform(0.0, 1.2 * whole_s))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        current = LocalDirectorySource(root).fetch("current").manifest.model_version
        assert current == "v2" or len(marks(root)) == 1, f"READY is lost in run {i}"
        assert whole_versions(root) <= {"v1", "v2"}
        assert shell.once(root).returncode == 0
        assert LocalDirectorySource(root).fetch("current").manifest.model_version == "v2"
        assert marks(root) == []
        if kills == RANDOM_KILLS:
            return
    pytest.fail(f"expected {RANDOM_KILLS} kills, found time for {kills}")


def _seconds_of_one(shell: Shell, root: Path) -> float:
    since = time.perf_counter()
    assert shell.once(root).returncode == 0
    return time.perf_counter() - since


def test_full_disk_is_no_verdict(shell: Shell, root: Path, tmp_path: Path) -> None:
    """A command that cannot write must leave the bundle where it is, and no bad word about it."""
    shims = tmp_path / "full"
    shims.mkdir()
    (shims / "sha256sum").write_text("#!/bin/sh\ncat >/dev/null\necho 'No space left on device' >&2\nexit 1\n")
    (shims / "sha256sum").chmod((shims / "sha256sum").stat().st_mode | stat.S_IXUSR)
    started_over(root)
    blocked = with_first(shell, shims).once(root)
    assert blocked.returncode == 1
    assert "event=blocked" in blocked.stdout
    assert marks(root) == [root / "staging" / "READY"]
    assert shell.once(root).returncode == 0


def test_two_sidecars_take_turns(shell: Shell, root: Path) -> None:
    """Both look at the same moment; one promotes, the other finds nothing left to do."""
    started_over(root)
    both = [shell.start(root, "--once") for _ in range(2)]
    assert [process.wait(TIMEOUT_S) for process in both] == [0, 0]
    assert log_of(root).read_text().count("event=promoted") == 1
