"""The commands `rollout …`: start a rollout, watch it, and tell it what to do, over a server's admin routes."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.live import Live

from serve_app.cli.admin_api import AdminApi, AdminApiError
from serve_app.cli.control import FamilyOption, TokenFileOption, UrlOption, admin_api
from serve_app.cli.lifecycle import DEFAULT_STATE_DIR, StateDirOption, console, errors_told
from serve_app.cli.printed import plain, wide_console
from serve_app.cli.rollout_report import report
from serve_app.cli.rollout_view import list_view, phase_of, rollout_view
from serve_app.domain.rollout_record import RolloutReport

rollout_app = typer.Typer(no_args_is_help=True, help="Bring a new version to its traffic step by step.")

FamilyArgument = Annotated[str, typer.Argument(help="The family; default: the only one that has a rollout.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]


@rollout_app.command()
def start(
    version: Annotated[str | None, typer.Argument(help="Default: what the source calls current.")] = None,
    family: FamilyOption = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="YAML or JSON file of the plan; default: the family's own.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Try a bundle again that was refused before.")] = False,
    reason: ReasonOption = "",
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Start a rollout; it goes on by itself."""
    with errors_told(), admin_api(state_dir, url, token_file) as api:
        document = _read_plan(plan) if plan is not None else None
        _tell(api.start_rollout(family, version=version, plan=document, force=force, reason=reason))


@rollout_app.command()
def status(
    family: FamilyArgument = "",
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    interval_s: Annotated[float, typer.Option("--interval-s", min=0.1, help="Seconds between two looks.")] = 1.0,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Show how rollouts stand: all of them, or one with its metrics and moves."""
    with errors_told(), admin_api(state_dir, url, token_file) as api:
        if not watch:
            wide_console().print(_look(api, family))
            return
        with Live(_look(api, family), console=wide_console(), auto_refresh=False) as live:
            while True:
                time.sleep(interval_s)
                live.update(_look(api, family), refresh=True)


rollout_app.command()(report)


def _look(api: AdminApi, family: str) -> Any:
    reports = [one for one in api.rollouts() if family in ("", one.family)]
    if family and not reports:
        return rollout_view(api.rollout(family))  # which says what is wrong
    return rollout_view(reports[0]) if len(reports) == 1 else list_view(reports)


def _one(api: AdminApi, family: str) -> RolloutReport:
    return api.rollout(family) if family else api.only_rollout()


def _add(name: str, told: str) -> None:
    """Add one of the commands that only say what is to become of a rollout."""

    @rollout_app.command(name, help=told)
    def command(
        family: FamilyArgument = "",
        reason: ReasonOption = "",
        url: UrlOption = None,
        token_file: TokenFileOption = None,
        state_dir: StateDirOption = DEFAULT_STATE_DIR,
    ) -> None:
        with errors_told(), admin_api(state_dir, url, token_file) as api:
            _tell(api.command_rollout(family or _one(api, family).family, name, reason=reason))


for _name, _told in {
    "promote": "Give the candidate all traffic now, whatever the verdicts say.",
    "pause": "Hold it as it is: traffic stays, nothing goes on.",
    "resume": "Go on after a pause; the time of the step begins anew.",
    "abort": "Give all traffic back to the stable version, and let the candidate go.",
    "skip": "Go to the next step at once.",
    "retry": "Begin again after an abort or a failure, from the first step.",
}.items():
    _add(_name, _told)


def _tell(report: RolloutReport) -> None:
    state = report.state
    line = f"{report.family}: {state.stable.version} → {state.candidate.version}, {phase_of(state)}"
    console.print(plain(f"{line}, {report.weight:g} % of the traffic"))


def _read_plan(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AdminApiError(f"the plan {path} cannot be read: {error}") from error
