"""The commands `registry up` and `registry down`: an MLflow server of one's own on this machine, for a first try.

A registry that others use is run by itself; `tracking_uri` in the configuration or MLFLOW_TRACKING_URI names it.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import typer

from serve_app.cli import ports, processes
from serve_app.cli.lifecycle import DEFAULT_STATE_DIR, PortTakenError, StateDirOption, console, errors_told
from serve_app.cli.ports import LOOPBACK
from serve_app.cli.registry_record import RegistryRecord, registry_directory, registry_record_file, running_registry
from serve_app.cli.state_dir import StateDir, shown
from serve_app.domain.errors import ServeAppError

DEFAULT_PORT = 5000
START_TIMEOUT_S = 120.0
POLL_INTERVAL_S = 0.1
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A further process that runs evaluations, of no use to a registry.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

registry_app = typer.Typer(no_args_is_help=True, help="A local MLflow server, for a first try.")


class RegistryNotStartedError(ServeAppError):
    """The MLflow server did not start; the message ends with its last words."""


@registry_app.command("up")
def registry_up(
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    port: Annotated[int, typer.Option("--port", help=f"Port on {LOOPBACK}.")] = DEFAULT_PORT,
) -> None:
    """Start an MLflow server that keeps everything in the state directory, and wait until it answers."""
    state = StateDir.at(state_dir)
    with errors_told():
        state.prepare()
        with state.lock():
            if (record := running_registry(state)) is not None:
                console.print(f"MLflow already runs at {record.uri}, nothing changed")
                return
            if not ports.is_free(port):
                raise PortTakenError(port, ports.holder(port))
            started_s = time.monotonic()
            with console.status("starting MLflow"):
                record = _start(state, port)
    console.print(f"MLflow at {record.uri} after {time.monotonic() - started_s:.0f} s")
    console.print(f"  data         {shown(registry_directory(state))}", markup=False)


@registry_app.command("uri")
def registry_uri(state_dir: StateDirOption = DEFAULT_STATE_DIR) -> None:
    """Print the tracking URI of the local MLflow server."""
    with errors_told():
        record = running_registry(StateDir.at(state_dir))
        if record is None:
            raise ServeAppError(f"no MLflow server runs for {state_dir}; `serve-app registry up` starts it")
    typer.echo(record.uri)


@registry_app.command("down")
def registry_down(state_dir: StateDirOption = DEFAULT_STATE_DIR) -> None:
    """Stop the MLflow server that `registry up` started, and nothing else. What was registered stays."""
    state = StateDir.at(state_dir)
    with errors_told():
        if not state.path.is_dir():
            console.print(f"no MLflow server runs: there is no {state_dir}")
            return
        with state.lock():
            record = running_registry(state)
            if record is not None:
                processes.end_tree(record.process)
            registry_record_file(state).unlink(missing_ok=True)
    console.print("no MLflow server runs" if record is None else f"stopped MLflow (pid {record.process.pid})")


def _start(state: StateDir, port: int) -> RegistryRecord:
    directory = registry_directory(state)
    directory.mkdir(parents=True, exist_ok=True)
    log_file = directory / "server.log"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{directory / 'mlflow.db'}"),
        *("--artifacts-destination", str(directory / "artifacts")),
    ]
    with log_file.open("wb") as log:
        server = subprocess.Popen(
            command,
            env={**os.environ, **QUIET},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in this terminal must not reach it, now or later
        )
    process = processes.record_of(psutil.Process(server.pid))
    record = RegistryRecord(port=port, process=process)
    try:
        _wait_until_it_answers(record, server, log_file)
    except BaseException:
        processes.end_tree(process)
        raise
    registry_record_file(state).write_text(record.model_dump_json(indent=2) + "\n")
    return record


def _wait_until_it_answers(record: RegistryRecord, server: subprocess.Popen[bytes], log_file: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(record):
        if server.poll() is not None:
            raise RegistryNotStartedError(f"MLflow ended with {server.returncode}:\n{_tail(log_file)}")
        if time.monotonic() > deadline:
            raise RegistryNotStartedError(f"MLflow did not answer within {START_TIMEOUT_S:g} s:\n{_tail(log_file)}")
        time.sleep(POLL_INTERVAL_S)


def _answers(record: RegistryRecord) -> bool:
    try:
        return httpx.get(f"{record.uri}/health", timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
