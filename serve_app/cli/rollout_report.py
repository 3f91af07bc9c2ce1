"""The command `rollout report`: what a rollout or an experiment has found, for the terminal, as a page or as a plot."""

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markdown import Markdown

from serve_app.cli.admin_api import AdminApi, AdminApiError
from serve_app.cli.control import TokenFileOption, UrlOption, admin_api
from serve_app.cli.lifecycle import DEFAULT_STATE_DIR, StateDirOption, console, errors_told
from serve_app.cli.printed import plain, wide_console
from serve_app.domain.experiment_report import ExperimentReport
from serve_app.usecases.draw_report import plot_of
from serve_app.usecases.write_report import page_of

PLOT_SUFFIX: Final = ".svg"


def report(
    family: Annotated[str, typer.Argument(help="The family; default: the only one that has a rollout.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it, as JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print it as a page in Markdown.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write the confidence sequences over time to this SVG file.")
    ] = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Tell what a rollout or an experiment has found: effects over time, exposure, segments, moves."""
    with errors_told(), admin_api(state_dir, url, token_file) as api:
        if as_json and as_markdown:
            raise AdminApiError("--json and --markdown are two ways to print it; choose one")
        if plot is not None and plot.suffix.lower() != PLOT_SUFFIX:
            raise AdminApiError(f"expected a plot in a file that ends with {PLOT_SUFFIX}, got {plot}")
        told = _report(api, family)
        if plot is not None:
            _write(plot, plot_of(told))
            console.print(plain(f"wrote {plot}"))
        if as_json:
            typer.echo(told.model_dump_json(indent=2))
        elif as_markdown:
            typer.echo(page_of(told, plot=plot.as_posix() if plot is not None else None), nl=False)
        elif plot is None:
            wide_console().print(Markdown(page_of(told), hyperlinks=False))


def _report(api: AdminApi, family: str) -> ExperimentReport:
    return api.rollout_report(family or api.only_rollout().family)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AdminApiError(f"the plot cannot be written to {file}: {error.strerror}") from error
