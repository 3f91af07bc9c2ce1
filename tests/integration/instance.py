"""A server of the tests' own: its state directory, port and config, acted on by the public commands."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from serve_app.cli import processes
from serve_app.cli.ports import choose_free
from serve_app.cli.state_dir import RunRecord, StateDir

REPOSITORY = Path(__file__).parents[2]
UP_TIMEOUT_S = 180.0
SERVE_APP = (sys.executable, "-c", "from serve_app.cli import app; app()")


@dataclass(frozen=True)
class Instance:
    """A state directory, a port, a config and an environment of its own, and the command line to act on them."""

    state: StateDir
    port: int
    config: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def record(self) -> RunRecord:
        record = self.state.read_record()
        assert record is not None
        return record

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("up", "--config", str(self.config), "--port", str(self.port), *options)

    def run(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        python_path = f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        return subprocess.run(
            [*SERVE_APP, command, *options, "--state-dir", str(self.state.path)],
            env={**os.environ, **self.environment, "PYTHONPATH": python_path},
            capture_output=True,
            text=True,
            timeout=UP_TIMEOUT_S + 60,
            check=False,
        )


def shipped_config(name: str) -> dict[str, Any]:
    """Return a document of `configs/`, for a test to change."""
    document: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs" / name).read_text())
    return document


@contextmanager
def running(
    directory: Path,
    document: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> Iterator[tuple[Instance, httpx.Client]]:
    """Start a server of a config, with its state in `<directory>/state`; end it afterwards.

    Requests of the client that is returned with it may take `timeout_s`.
    """
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(document))
    (port,) = choose_free(1)
    instance = Instance(StateDir.at(directory / "state"), port, config, environment or {})
    started = instance.up()
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        with httpx.Client(base_url=instance.address, trust_env=False, timeout=timeout_s) as http:
            yield instance, http
    finally:
        instance.run("down")


def processes_of(instance: Instance, title: str) -> list[psutil.Process]:
    """Return the processes of an instance whose title begins so."""
    found = []
    for process in processes.find(instance.record.runtime_dir):
        try:
            shown = process.cmdline() or [process.name()]
        except psutil.NoSuchProcess:
            continue
        if shown[0].startswith(title) or process.name() == title:
            found.append(process)
    return found


def await_that(condition: Callable[[], bool], *, timeout_s: float) -> None:
    """Wait until a condition holds; fail when it does not within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout_s} s"
        time.sleep(0.1)
