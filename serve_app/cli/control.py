"""The commands `reload`, `rollback` and `audit`: they ask a server, here or elsewhere, over its admin routes."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from serve_app.cli.admin_api import AdminApi, AdminApiError, read_token
from serve_app.cli.lifecycle import DEFAULT_STATE_DIR, StateDirOption, console, errors_told, expect_running
from serve_app.cli.printed import plain, table_of, wide_console
from serve_app.cli.state_dir import StateDir
from serve_app.domain.reload import AuditEntry, Operation, Outcome

STILL_RUNNING_EXIT_CODE: Final = 3
DEFAULT_WAIT_S: Final = 120.0
AUDIT_COLUMNS: Final = ("when (UTC)", "family", "who", "what", "from", "to", "outcome", "generation", "why")

FamilyOption = Annotated[str | None, typer.Option("--family", help="Default: the default family.")]
UrlOption = Annotated[str | None, typer.Option("--url", help="Address of the server; default: the one that runs here.")]
TokenFileOption = Annotated[
    Path | None,
    typer.Option("--token-file", help="File of the admin token; without --url that of the state dir."),
]
WaitOption = Annotated[float, typer.Option("--timeout-s", min=0, help="Seconds to wait for the end of the change.")]


def reload_command(
    family: FamilyOption = None,
    version: Annotated[str | None, typer.Option(help="Default: what the source calls current.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Try a bundle again that was refused before.")] = False,
    timeout_s: WaitOption = DEFAULT_WAIT_S,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Take up a version. Exit code 1: refused or failed, all stays as it was; 3: not finished yet."""
    with errors_told(), admin_api(state_dir, url, token_file) as api:
        with console.status("reloading"):
            operation = api.reload(family, version=version, force=force, wait_s=timeout_s)
        _tell(operation)


def rollback(
    family: FamilyOption = None,
    to: Annotated[str | None, typer.Option(help="Version to go to; default: the last good one.")] = None,
    timeout_s: WaitOption = DEFAULT_WAIT_S,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Go back to an earlier version. Exit code 1: refused or failed, all stays as it was; 3: not finished yet."""
    with errors_told(), admin_api(state_dir, url, token_file) as api:
        with console.status("rolling back"):
            operation = api.rollback(family, to=to, wait_s=timeout_s)
        _tell(operation)


def audit(
    family: Annotated[str | None, typer.Option("--family", help="Default: all families.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many entries, from the newest on.")] = 20,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Show who changed what, newest first."""
    with errors_told(), admin_api(state_dir, url, token_file) as api:
        entries = api.audit(family, limit=limit)
    if entries:
        wide_console().print(table_of(AUDIT_COLUMNS, [_audit_row(entry) for entry in entries]))
    else:
        console.print("nothing was changed yet")


def admin_api(state_dir: Path, url: str | None, token_file: Path | None) -> AdminApi:
    """Return a client of the server at `url`, or of the one that runs here.

    The token of this state directory goes to its own server only: whoever listens at `url` must not learn it.
    """
    token = read_token(token_file) if token_file is not None else None
    if url is not None:
        return AdminApi(url, token, trust_env=True)
    state = StateDir.at(state_dir)
    record = expect_running(state)
    return AdminApi(record.address, token or read_token(state.admin_token_file))


def _tell(operation: Operation) -> None:
    name, to, stays = operation.family or "default family", operation.to_version, operation.from_version
    match operation.outcome:
        case Outcome.RELOADED:
            took_s = (operation.ended_at_s or operation.started_at_s) - operation.started_at_s
            line = f"{name}: {stays or 'nothing'} → {to}, generation {operation.generation}, after {took_s:.1f} s"
            console.print(plain(line))
        case Outcome.UNCHANGED:
            console.print(plain(f"{name}: {to} answers already, nothing changed"))
        case Outcome.FAILED:
            left = f"{stays} stays" if stays else "there is no model yet"
            raise AdminApiError(f"{name}: {to} was not taken up, {left}: {operation.detail}")
        case Outcome.RUNNING:
            phase = f" ({operation.phase})" if operation.phase else ""
            console.print(plain(f"{name}: the change to {to} goes on{phase}; `serve-app audit` shows how it ends"))
            raise typer.Exit(STILL_RUNNING_EXIT_CODE)


def _audit_row(entry: AuditEntry) -> tuple[object, ...]:
    when = datetime.fromtimestamp(entry.at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    why = f"{entry.reason}: {entry.detail}" if entry.detail else entry.reason
    return (
        when, entry.family, entry.actor, entry.action, entry.from_version, entry.to_version, entry.outcome,
        entry.generation, why,
    )  # fmt: skip
