"""The command `status`: what runs, which version answers for each family, and what every replica holds."""

import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Group, RenderableType
from rich.live import Live

from serve_app.cli.lifecycle import DEFAULT_STATE_DIR, StateDirOption, errors_told, expect_running
from serve_app.cli.printed import plain, table_of, wide_console
from serve_app.cli.serve_api import ServeApi, ServeApiError, ServeStatus
from serve_app.cli.state_dir import RunRecord, StateDir, shown
from serve_app.domain.following import CURRENT

HEALTH_TIMEOUT_S: Final = 5.0
SHOWN_FAILURES: Final = 3
DEPLOYMENT_COLUMNS: Final = ("application", "deployment", "status", "replicas", "message")
FAMILY_COLUMNS: Final = ("family", "answers", "generation", "last error")
REPLICA_COLUMNS: Final = ("family", "replica", "pool", "wanted", "resident", "loading", "failed")


def status(
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    interval_s: Annotated[float, typer.Option("--interval-s", min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Say whether the server runs, which versions answer, and what every replica holds, loads and refuses."""
    state = StateDir.at(state_dir)
    console = wide_console()
    with errors_told():
        record = expect_running(state)
        with ServeApi(record) as serve, httpx.Client(trust_env=False, timeout=HEALTH_TIMEOUT_S) as http:
            if not watch:
                console.print(_view(state, record, serve.status(), _health(http, record)))
                return
            with Live(_look(state, record, serve, http), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(interval_s)
                    live.update(_look(state, record, serve, http), refresh=True)


def _look(state: StateDir, record: RunRecord, serve: ServeApi, http: httpx.Client) -> RenderableType:
    """Look once; whoever watches wants to go on watching while something does not answer."""
    try:
        said: ServeStatus | str = serve.status()
    except ServeApiError as error:
        said = str(error)
    return _view(state, record, said, _health(http, record))


def _view(
    state: StateDir, record: RunRecord, serve: ServeStatus | str, health: Mapping[str, Any] | None
) -> RenderableType:
    parts: list[RenderableType] = [
        plain(f"running at {record.address} (profile {record.profile}, logs in {shown(state.logs)})"),
        plain(serve) if isinstance(serve, str) else table_of(DEPLOYMENT_COLUMNS, _deployment_rows(serve)),
        "",
        plain(health_line(health)),
    ]
    if health is not None:
        parts += [
            "",
            table_of(FAMILY_COLUMNS, family_rows(health)),
            "",
            table_of(REPLICA_COLUMNS, replica_rows(health)),
        ]
    return Group(*parts)


def health_line(health: Mapping[str, Any] | None) -> str:
    """Say in one line how the server fares."""
    if health is None:
        return "/health does not answer"
    ready = "ready" if health.get("ready") else "not ready"
    return f"health: {health.get('status', 'unknown')}, {ready}, generation {health.get('generation', 'unknown')}"


def family_rows(health: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Return for each family the version that answers, since which generation, and what last went wrong."""
    return [
        (name, family.get("model_version") or "nothing yet", family.get("generation"), family.get("last_error"))
        for name, family in _families(health).items()
    ]


def replica_rows(health: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Return for each replica its wish, what it holds (what answers by default with a star), loads and refuses."""
    rows: list[tuple[object, ...]] = []
    for name, family in _families(health).items():
        active = family.get("model_version")
        replicas = family.get("replicas") or []
        for replica in replicas:
            held = [f"{version}*" if version == active else version for version in replica.get("loaded", ())]
            loading = [f"{version}: {stage}" for version, stage in (replica.get("loading") or {}).items()]
            row = (name, replica.get("replica"), replica.get("pool"), _wish(replica.get("wanted")))
            rows.append((*row, "\n".join(held), "\n".join(loading), _failures(replica.get("failed") or {})))
        if not replicas:
            rows.append((name, "none has reported", *[""] * (len(REPLICA_COLUMNS) - 2)))
    return rows


def _families(health: Mapping[str, Any]) -> Mapping[str, Any]:
    return health.get("families") or {}


def _wish(wanted: str | None) -> str:
    return f"pinned to {wanted}" if wanted and wanted != CURRENT else wanted or ""


def _failures(failed: Mapping[str, str]) -> str:
    """Tell the last few bundles that were refused, the newest first, each by the beginning of its digest."""
    newest = [f"{digest[:12]}: {reason}" for digest, reason in reversed(list(failed.items()))]
    more = len(newest) - SHOWN_FAILURES
    return "\n".join(newest[:SHOWN_FAILURES] + ([f"and {more} earlier"] if more > 0 else []))


def _deployment_rows(serve: ServeStatus) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for deployment in serve.deployments:
        others = ", ".join(f"{n} {state}" for state, n in deployment.replicas.items() if state != "RUNNING")
        counts = f"{deployment.running}/{deployment.target} RUNNING{', ' + others if others else ''}"
        rows.append((deployment.application, deployment.name, deployment.status, counts, deployment.message))
    return rows


def _health(http: httpx.Client, record: RunRecord) -> Mapping[str, Any] | None:
    try:
        body = http.get(f"{record.address}/health").json()
    except (httpx.HTTPError, ValueError):
        return None
    return body if isinstance(body, dict) else None
