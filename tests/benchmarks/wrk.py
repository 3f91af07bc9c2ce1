"""The load: wrk, one thread, one fixed request."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.measurements import Load, load_from_wrk

SCRIPT = Path(__file__).with_name("load.lua")
ANSWER_WITHIN_S = 10
SPARE_S = 30


class LoadError(Exception):
    """wrk is missing, or did not do its work."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked again and again; a request with a body file is a POST."""

    url: str
    body_file: Path | None = None

    @property
    def arguments(self) -> list[str]:
        """What `load.lua` is given."""
        return ["GET"] if self.body_file is None else ["POST", str(self.body_file)]


def version() -> str:
    """Return wrk's version.

    Raises:
        LoadError: It is not installed.
    """
    if shutil.which("wrk") is None:
        raise LoadError("wrk makes the load and is not installed: apt-get install wrk")
    # `wrk -v` prints its version and its usage, and exits with 1.
    shown = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)
    return (shown.stdout + shown.stderr).splitlines()[0].partition(" [")[0].removeprefix("wrk ")


def put_under_load(request: Request, *, connections: int, seconds: int) -> Load:
    """Ask for `seconds` over `connections` kept-alive connections, each with one request in flight.

    One thread of wrk sends more than any server here answers, and a second one would take its core from the server.

    Raises:
        LoadError: wrk failed.
    """
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", f"{ANSWER_WITHIN_S}s", "--script", str(SCRIPT), request.url, "--", *request.arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + SPARE_S)
    if done.returncode:
        raise LoadError(f"wrk exited with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return load_from_wrk(last_json_line(done.stdout))


def last_json_line(output: str) -> dict[str, Any]:
    """Find the line that `load.lua` printed last.

    Raises:
        LoadError: There is none.
    """
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            document: dict[str, Any] = json.loads(line)
            return document
    raise LoadError(f"wrk printed no result: {output.strip()!r}")
