"""The commands `replay` and `rollout shadow`: how a version would have answered, over a server's admin routes."""

from typing import Annotated

import typer

from serve_app.cli.control import TokenFileOption, UrlOption, admin_api
from serve_app.cli.lifecycle import DEFAULT_STATE_DIR, StateDirOption, console, errors_told
from serve_app.cli.printed import wide_console
from serve_app.cli.shadow_view import replay_view, shadow_view

JsonOption = Annotated[bool, typer.Option("--json", help="Print all that is known, as JSON.")]


def replay(
    family: Annotated[str, typer.Argument(help="A family that records requests (families.<name>.record).")],
    version: Annotated[str, typer.Argument(help="A version that its source has; it need not be loaded.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest requests; default: all.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Run a version on recorded requests, beside serving, and compare with what was answered then."""
    with errors_told(), admin_api(state_dir, url, token_file) as api:
        with console.status("replaying"):
            report = api.replay(family, version=version, limit=limit)
        if as_json:
            typer.echo(report.model_dump_json(indent=2))
        else:
            wide_console().print(replay_view(report))


def shadow(
    family: Annotated[str, typer.Argument(help="The family.")],
    as_json: JsonOption = False,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Show how the answers of a rollout's shadow differ from the live ones."""
    with errors_told(), admin_api(state_dir, url, token_file) as api:
        told = api.shadow(family)
        if as_json:
            typer.echo(told.model_dump_json(indent=2))
        else:
            wide_console().print(shadow_view(told))
