"""The commands `up`, `down`, `deploy` and `env`: the server on this machine, from nothing to ready."""

import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from serve_app.cli import local_cluster, ports, processes
from serve_app.cli.example_request import curl, write_example_request
from serve_app.cli.phases import Phases
from serve_app.cli.profile import Profile, choose_profile, client_environment
from serve_app.cli.registry_record import registry_environment
from serve_app.cli.serve_api import ServeApi, ServeApiError, ServeStatus
from serve_app.cli.serve_config import default_model_root, localise, port_of, read_config
from serve_app.cli.state_dir import RunRecord, StateDir, shown
from serve_app.domain.errors import ServeAppError

DEFAULT_STATE_DIR = Path(".serve-app")
POLL_INTERVAL_S = 0.25
INTERRUPTED_EXIT_CODE = 130

ConfigOption = Annotated[Path, typer.Option("--config", help="Serve config file to deploy.")]
StateDirOption = Annotated[Path, typer.Option("--state-dir", help="Directory of what the server writes.")]
PortOption = Annotated[int | None, typer.Option("--port", help="Port on 127.0.0.1; default: the config's, or 8000.")]
ProfileOption = Annotated[
    Profile | None, typer.Option("--profile", help="How Ray starts; default: the fastest this machine can run.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout-s", min=1, help="Seconds until the server must be ready.")]

console = Console(soft_wrap=True, highlight=False)
error_console = Console(stderr=True, soft_wrap=True, highlight=False)


class NotReadyError(ServeAppError):
    """The server did not become ready; the message says what Serve says of it."""


class PortTakenError(ServeAppError):
    """Somebody else listens where the server should."""

    def __init__(self, port: int, holder: str) -> None:
        self.port = port
        self.holder = holder
        super().__init__(f"port {port} on 127.0.0.1 is taken by {holder}; end it or choose another one with --port")


def up(
    config: ConfigOption = Path("configs/local.yaml"),
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    port: PortOption = None,
    profile: ProfileOption = None,
    timeout_s: TimeoutOption = 180.0,
) -> None:
    """Start Ray on this machine, deploy the config and wait until the server is ready."""
    started = time.monotonic()
    state = StateDir.at(state_dir)
    with errors_told():
        document = read_config(config)
        chosen = choose_profile(profile)
        state.prepare()
        with state.lock():
            if running := _running(state):
                console.print(f"already running at {running.address}, nothing changed")
                return
            _clear_up_leftovers(state)
            wanted = port if port is not None else port_of(document)
            if not ports.is_free(wanted):
                raise PortTakenError(wanted, ports.holder(wanted))
            record = _bring_up(state, document, profile=chosen, port=wanted, deadline=started + timeout_s)
    _tell_how_to_use(state, document, record, took_s=time.monotonic() - started)


def down(state_dir: StateDirOption = DEFAULT_STATE_DIR) -> None:
    """Stop all that `up` started, and nothing else. Models, data and the admin token stay."""
    state = StateDir.at(state_dir)
    with errors_told():
        if not state.path.is_dir():
            console.print(f"nothing runs: there is no {state_dir}")
            return
        with state.lock():
            record = state.read_record()
            if record is None:
                console.print("nothing runs")
                return
            started = time.monotonic()
            with console.status("stopping"):
                ended = local_cluster.stop(state, record)
            _tell_what_ended(record, ended, took_s=time.monotonic() - started)


def deploy(
    config: Annotated[Path, typer.Argument(help="Serve config file; it replaces what is deployed.")],
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    timeout_s: TimeoutOption = 180.0,
) -> None:
    """Deploy a config to the running server, with the same treatment of paths and ports as `up`."""
    state = StateDir.at(state_dir)
    with errors_told():
        document = read_config(config)
        record = expect_running(state)
        with Phases(console) as phases:
            _deploy(state, record, document, phases, deadline=time.monotonic() + timeout_s)
    console.print(f"deployed {config} at {record.address}")


def env(state_dir: StateDirOption = DEFAULT_STATE_DIR) -> None:
    """Print what `ray` and `serve` need to talk to the running server: eval "$(serve-app env)"."""
    with errors_told():
        record = expect_running(StateDir.at(state_dir))
    for name, value in ray_client_environment(record).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def ray_client_environment(record: RunRecord) -> dict[str, str]:
    """Return the variables that let a program join the instance's Ray and call its REST API."""
    return {
        **client_environment(record.ray_token_file),
        "RAY_ADDRESS": record.ray_address,
        "RAY_API_SERVER_ADDRESS": record.dashboard_address,
        "RAY_DASHBOARD_ADDRESS": record.dashboard_address,
    }


def _bring_up(
    state: StateDir, document: Mapping[str, Any], *, profile: Profile, port: int, deadline: float
) -> RunRecord:
    """Start and deploy; on any failure, a Ctrl-C included, end again what was started."""
    record, environment, command = local_cluster.allot(state, profile=profile, port=port)
    environment = {**registry_environment(state), **environment}  # one that the shell names comes first
    try:
        with Phases(console) as phases:
            with phases.phase("ray", f"profile {profile}"):
                local_cluster.start_ray(record, environment, command)
                local_cluster.link_logs(state, record)
            _deploy(state, record, dict(document), phases, deadline=deadline)
        alive = processes.find(record.runtime_dir)
        record = record.model_copy(update={"processes": tuple(processes.record_of(process) for process in alive)})
        state.write_record(record)
    except BaseException:
        error_console.print("not ready; stopping what was started")
        local_cluster.stop(state, record)
        error_console.print(f"the logs are in {shown(state.logs)} (those of the replicas in its folder serve)")
        raise
    return record


def _deploy(state: StateDir, record: RunRecord, document: dict[str, Any], phases: Phases, *, deadline: float) -> None:
    with ServeApi(record) as api:
        with phases.phase("deploy", "Serve's controller and proxy"):
            api.deploy(localise(document, port=record.port, state_dir=state.path))
        with phases.phase("replicas") as phase:
            for serve in _statuses(api, deadline):
                running, target = serve.replicas
                phase.report(f"{running}/{target} running", done=running, total=target or None)
                if set(serve.applications.values()) == {"RUNNING"}:
                    break
    with phases.phase("ready", "GET /ready"), httpx.Client(trust_env=False, timeout=5.0) as http:
        _wait_for_ready(http, record, deadline)


def _statuses(api: ServeApi, deadline: float) -> Iterator[ServeStatus]:
    """Yield Serve's status again and again, until `deadline` or until an application has failed for good."""
    told = "Serve has not said anything yet"
    while time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
        try:
            serve = api.status()
        except ServeApiError as error:  # the dashboard is slow while the replicas start
            told = str(error)
            continue
        told = serve.last_message
        if serve.failed:
            raise NotReadyError(f"Serve cannot deploy {', '.join(serve.failed)}:\n{told}")
        yield serve
    raise NotReadyError(f"the replicas did not start in time; Serve says:\n{told}")


def _wait_for_ready(http: httpx.Client, record: RunRecord, deadline: float) -> None:
    told = "no answer"
    while time.monotonic() < deadline:
        try:
            answer = http.get(f"{record.address}/ready")
        except httpx.HTTPError as error:
            told = repr(error)
        else:
            if answer.is_success:
                return
            told = f"{answer.status_code} {answer.text.strip()[:2000]}"
        time.sleep(POLL_INTERVAL_S)
    raise NotReadyError(f"GET {record.address}/ready did not become 200 in time; the last answer was {told}")


def _running(state: StateDir) -> RunRecord | None:
    """Return the record of a server that was ready once and whose main processes live."""
    record = state.read_record()
    if record is None or not record.processes:
        return None
    return record if processes.is_complete(processes.find(record.runtime_dir, record.processes)) else None


def expect_running(state: StateDir) -> RunRecord:
    """Return the record of the server that runs.

    Raises:
        ServeAppError: None does.
    """
    record = _running(state)
    if record is None:
        raise ServeAppError(f"nothing runs in {shown(state.path)}; `serve-app up` starts it")
    return record


def _clear_up_leftovers(state: StateDir) -> None:
    record = state.read_record()
    if record is not None:
        ended = local_cluster.stop(state, record)
        console.print(f"cleared up after an earlier start that was cut off ({len(ended)} processes)")


def _tell_how_to_use(state: StateDir, document: dict[str, Any], record: RunRecord, *, took_s: float) -> None:
    console.print(f"[green]ready[/] at {record.address} after {took_s:.0f} s (profile {record.profile})")
    found = default_model_root(document, state.path)
    if found is not None and write_example_request(state, found[1]):
        console.print(f"  predict      {curl(state, record, found[0])}", markup=False)
    console.print(f"  interface    {record.address}/docs")
    console.print(f"  admin token  {shown(state.admin_token_file)}", markup=False)
    console.print(f"  logs         {shown(state.logs)}", markup=False)
    is_default = state == StateDir.at(DEFAULT_STATE_DIR)
    console.print(
        f"  stop         {'make down' if is_default else f'serve-app down --state-dir {shown(state.path)}'}",
        markup=False,
    )


def _tell_what_ended(record: RunRecord, ended: list[processes.ProcessRecord], *, took_s: float) -> None:
    if not ended:
        console.print("nothing runs any more; forgot the earlier start")
        return
    console.print(f"stopped {len(ended)} processes in {took_s:.1f} s:")
    for process in ended:
        console.print(f"  {process.pid:>7}  {process.name}", markup=False)
    if not ports.is_free(record.port):
        error_console.print(f"port {record.port} is held by {ports.holder(record.port)}, which is none of them")


@contextmanager
def errors_told() -> Iterator[None]:
    """Turn our errors into one message and exit code 1, and a Ctrl-C into its customary code."""
    try:
        yield
    except ServeAppError as error:
        error_console.print("[red]error[/]", escape(str(error)))
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED_EXIT_CODE) from error
