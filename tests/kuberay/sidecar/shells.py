"""Runs the sidecar under the shells it is written for, each with the tools that come with it."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

SIDECAR = Path(__file__).parents[3] / "kuberay" / "sidecar"
SCRIPT = SIDECAR / "sidecar.sh"
GENERATOR = SIDECAR / "generate_manifest.sh"
RULES = SIDECAR / "manifest.awk"
TIMEOUT_S = 20

QUICK = {"SETTLE_SECONDS": "0", "RELOAD_URL": "", "RELOAD_RETRY_SECONDS": "0.1"}
"""What most tests want: a verdict at once, and nobody to call."""


@dataclass(frozen=True)
class Shell:
    """A shell, and the directories with its tools."""

    name: str
    command: tuple[str, ...]
    path: str

    def environment(self, root: Path, settings: Mapping[str, str]) -> dict[str, str]:
        return {"PATH": self.path, "MODELS_ROOT": str(root)} | QUICK | dict(settings)

    def once(self, root: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Let the sidecar look once."""
        return subprocess.run(
            [*self.command, str(SCRIPT), "--once", *arguments],
            env=self.environment(root, settings),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def start(self, root: Path, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start the sidecar; it is the caller's to end. What it says goes to `log_of(root)`, for a pipe outlives it.

        A shell cannot trap what was ignored when it began, as the interrupt is below a job in the background.
        """
        with log_of(root).open("a") as log:
            return subprocess.Popen(
                [*self.command, str(SCRIPT), *arguments],
                env=self.environment(root, settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def judge(self, raw: bytes) -> tuple[bool, str]:
        """Say whether the rules accept a manifest, and what they print."""
        judged = subprocess.run(
            [*self.command, "-c", f"od -An -v -tu1 | awk -f '{RULES}'"],
            input=raw,
            env={"PATH": self.path, "LC_ALL": "C"},
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        text = judged.stdout.decode("ascii")
        assert judged.stderr == b""
        assert (judged.returncode == 0) == text.endswith("end\n") == ("problem" not in text.split()), text
        return judged.returncode == 0, text


def log_of(root: Path) -> Path:
    """Return the file with what started sidecars say."""
    return root.parent / "sidecar.log"


def dash() -> Shell:
    need("dash", "jq")
    return Shell("dash", ("dash",), os.environ["PATH"])


def busybox(tools: Path) -> Shell:
    """Return busybox with its own applets first, and of the rest what it lacks: flock (in Debian's), jq, curl."""
    need("busybox", "jq", "flock")
    found = shutil.which("busybox")
    assert found is not None
    tools.mkdir()
    subprocess.run([found, "--install", "-s", str(tools)], check=True, capture_output=True)
    for name in ("flock", "jq", "curl"):
        if (tool := shutil.which(name)) and not (tools / name).exists():
            (tools / name).symlink_to(tool)
    return Shell("busybox", (found, "sh"), str(tools))


def need(*tools: str) -> None:
    """Skip the test where a tool is missing."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is missing; on Debian: apt-get install {' '.join(missing)}")


def with_first(shell: Shell, directory: Path) -> Shell:
    """Return the shell with a directory before its tools."""
    return Shell(shell.name, shell.command, f"{directory}:{shell.path}")


def lines(output: str, event: str) -> Iterator[dict[str, str]]:
    """Read the lines of one event; values keep their quotes."""
    for line in output.splitlines():
        facts = dict(fact.split("=", 1) for fact in line.split(" ") if "=" in fact)
        if facts.get("event") == event:
            yield facts
