"""One Ray on this machine for one state directory: started with a profile, ended by its own processes."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from serve_app.cli import processes
from serve_app.cli.ports import LOOPBACK, choose_free
from serve_app.cli.processes import ProcessRecord
from serve_app.cli.profile import (
    Profile,
    ProxyPorts,
    haproxy_on_loopback,
    server_environment,
)
from serve_app.cli.state_dir import RunRecord, StateDir, write_secret
from serve_app.domain.errors import ServeAppError

# The path of a unix socket ends at 107 characters and Ray's own part takes up to 80, so this is no subdirectory of the
# state directory, which may lie anywhere, nor of the system's idea of a temporary one, which is long on macOS.
RUNTIME_PARENT = Path("/tmp")  # noqa: S108  mkdtemp makes a directory that nobody else can foresee or enter
RAY_START_TIMEOUT_S = 120
OBJECT_STORE_BYTES = 200_000_000  # requests do not go through the object store; Ray's default is 30 % of the memory


class RayStartError(ServeAppError):
    """Ray did not start; the message ends with its last words."""


def allot(state: StateDir, *, profile: Profile, port: int) -> tuple[RunRecord, dict[str, str], list[str]]:
    """Make the runtime directory and choose the ports: the record, the environment and the command that starts Ray.

    Nothing runs yet; the record is already on disk, so that `down` clears up after a start that was cut off.
    """
    runtime_dir = Path(tempfile.mkdtemp(prefix="sa-", dir=RUNTIME_PARENT))
    gcs, dashboard, agent, agent_grpc, runtime_env, metrics, client, *for_proxies = choose_free(
        11, taken=frozenset({port})
    )
    record = RunRecord(
        runtime_dir=runtime_dir,
        profile=profile,
        host=LOOPBACK,
        port=port,
        gcs_port=gcs,
        dashboard_port=dashboard,
        started_at_s=time.time(),
    )
    state.write_record(record)
    write_secret(record.ray_token_file, secrets.token_hex(32))
    ports = ProxyPorts(*for_proxies)
    if profile is Profile.THROUGHPUT:
        _write_haproxy_start(runtime_dir, ports)
    own = server_environment(profile, runtime_dir=runtime_dir, token_file=record.ray_token_file, ports=ports)
    command = [
        # This very interpreter, so that the workers find what the virtual environment holds.
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"),
        *("--node-ip-address", LOOPBACK, "--port", str(gcs), "--temp-dir", str(runtime_dir / "r")),
        *("--include-dashboard", "true", "--dashboard-host", LOOPBACK, "--dashboard-port", str(dashboard)),
        *("--dashboard-agent-listen-port", str(agent), "--dashboard-agent-grpc-port", str(agent_grpc)),
        *("--runtime-env-agent-port", str(runtime_env), "--metrics-export-port", str(metrics)),
        *("--ray-client-server-port", str(client), "--min-worker-port", "0", "--max-worker-port", "0"),
        *("--object-store-memory", str(OBJECT_STORE_BYTES), "--num-cpus", str(_num_cpus())),
        # Neither has work on a single machine: one copies workers' output to drivers, the other adds and removes nodes.
        *("--include-log-monitor", "false", "--no-monitor"),
    ]
    # Variables of another Ray must not reach this one.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return record, {**inherited, **own}, command


def start_ray(record: RunRecord, environment: dict[str, str], command: Sequence[str]) -> None:
    """Start Ray and wait until it is up.

    Raises:
        RayStartError: It is not. What did start is left for `stop`.
    """
    log_file = record.runtime_dir / "ray-start.log"
    with log_file.open("wb") as log:
        try:
            # Of its own session: a Ctrl-C in this terminal must not reach Ray, now or later.
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                timeout=RAY_START_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RayStartError(f"Ray did not start within {RAY_START_TIMEOUT_S} s:\n{_tail(log_file)}") from error
    if done.returncode != 0:
        raise RayStartError(f"`ray start` ended with {done.returncode}:\n{_tail(log_file)}")


def stop(state: StateDir, record: RunRecord) -> list[ProcessRecord]:
    """End all processes of the instance, keep its logs in the state directory, forget it."""
    ended = processes.end_all(record.runtime_dir, record.processes)
    _keep_logs(state, record)
    shutil.rmtree(record.runtime_dir, ignore_errors=True)
    state.forget_record()
    return ended


def link_logs(state: StateDir, record: RunRecord) -> None:
    """Let `<state-dir>/logs` lead to the logs of the running instance."""
    _remove(state.logs)
    state.logs.symlink_to(record.session_logs)


def _keep_logs(state: StateDir, record: RunRecord) -> None:
    if not record.session_logs.is_dir():
        return
    _remove(state.logs)
    shutil.copytree(record.session_logs, state.logs, symlinks=True)
    start_log = record.runtime_dir / "ray-start.log"
    if start_log.exists():
        shutil.copy(start_log, state.logs)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _write_haproxy_start(runtime_dir: Path, ports: ProxyPorts) -> None:
    script = runtime_dir / "haproxy"
    script.write_text(haproxy_on_loopback(ports))
    script.chmod(0o700)


def _num_cpus() -> int:
    """CPUs that Ray may hand out; at least 2, since they only bound what Serve places and one machine holds it all."""
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(2, usable)


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
