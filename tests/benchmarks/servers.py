"""Starting and stopping what is measured."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from serve_app.cli import processes
from serve_app.cli.state_dir import RunRecord, StateDir
from tests.benchmarks.cpu_time import tree
from tests.benchmarks.peers import Peer, Setting

START_WITHIN_S = 120.0
STOP_WITHIN_S = 20.0
POLL_S = 0.1

PEER_VARIABLES = {
    # Despite its name this is what lets a Ray of one machine stay on 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Nothing is reported to anybody.
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
}


class ServerFailedError(Exception):
    """A server did not start, or does not answer."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it answers, and a way to find all its processes now."""

    address: str
    processes: Callable[[], Sequence[psutil.Process]]
    profile: str = ""


@contextmanager
def running_peer(peer: Peer, setting: Setting, *, python: Path, model: Path, directory: Path) -> Iterator[Server]:
    """Run a peer on free ports of 127.0.0.1; what it writes, its log included, lies below `directory`."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    port, *spare = (str(port) for port in free_ports(3))
    command = [str(python), str(peer.program), "--model", str(model), "--directory", str(directory)]
    command += ["--port", port, "--spare-ports", *spare, *setting]
    with (directory / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=_peer_environment(), stdout=log, stderr=log, start_new_session=True
        )
    root = psutil.Process(process.pid)
    try:
        server = Server(f"http://127.0.0.1:{port}", lambda: tree(root))
        _wait_until_ready(server.address + peer.ready_path, has_ended=lambda: process.poll() is not None)
        yield server
    finally:
        _stop(process, tree(root))


@contextmanager
def running_ours(config: Path, state_dir: Path) -> Iterator[Server]:
    """Run this server by its public commands, on a free port."""
    program = Path(sys.executable).with_name("serve-app")
    port = free_ports(1)[0]
    with ExitStack() as stack:
        stack.callback(_call, str(program), "down", "--state-dir", str(state_dir))
        _call(str(program), "up", "--config", str(config), "--state-dir", str(state_dir), "--port", str(port))
        yield attached(f"http://127.0.0.1:{port}", state_dir)


def attached(address: str, state_dir: Path) -> Server:
    """Return this server as it already runs at `address`, started with `state_dir`.

    Raises:
        ServerFailedError: That state directory knows of no server at this address.
    """
    record = StateDir.at(state_dir).read_record()
    if record is None or record.address != address.rstrip("/"):
        known = "nothing that runs" if record is None else record.address
        raise ServerFailedError(f"expected a server at {address}, but {state_dir} knows of {known}")
    return Server(record.address, lambda: _ours(record), profile=record.profile)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _ours(record: RunRecord) -> list[psutil.Process]:
    return processes.find(record.runtime_dir, record.processes)


def _peer_environment() -> dict[str, str]:
    # What is set for this project's Ray or Python must not reach a peer's.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "PYTHON")) and name != "VIRTUAL_ENV"
    }
    return {**inherited, **PEER_VARIABLES}


def _wait_until_ready(url: str, *, has_ended: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline:
        if has_ended():
            raise ServerFailedError("it ended while starting; its server.log says why")
        try:
            if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:  # nobody listens yet
            pass
        time.sleep(POLL_S)
    raise ServerFailedError(f"it was not ready within {START_WITHIN_S:.0f} s; its server.log may say why")


def _stop(process: subprocess.Popen[bytes], family: Sequence[psutil.Process]) -> None:
    """End a peer: politely its first process, then whatever is left of its tree."""
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_WITHIN_S)
    for member in alive:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=STOP_WITHIN_S)
    process.wait()


def _call(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise ServerFailedError(f"`{Path(command[0]).name} {' '.join(command[1:3])} …` failed:\n{tail}")
