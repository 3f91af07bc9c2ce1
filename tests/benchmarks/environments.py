"""An environment of its own for each peer: made once, made anew when its requirements change."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks.peers import Peer

STAMP = "made-from"


class EnvironmentFailedError(Exception):
    """An environment could not be made."""


def python_of(peer: Peer, root: Path) -> Path:
    """Return the peer's Python below `root`, making its environment if it is missing or out of date.

    Raises:
        EnvironmentFailedError: pip could not install what the requirements say.
    """
    directory = root / peer.name
    python, stamp = directory / "bin" / "python", directory / STAMP
    wanted = hashlib.sha256(peer.requirements.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(directory, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(directory))
    _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(peer.requirements))
    stamp.write_text(wanted)
    return python


def versions(python: Path, packages: tuple[str, ...]) -> Mapping[str, str]:
    """Ask an environment which versions of these packages it has."""
    program = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", program, *packages], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentFailedError("\n".join((done.stderr or done.stdout).splitlines()[-5:]))
