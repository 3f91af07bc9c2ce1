"""The console script `serve-app`: the server on this machine, and the operator's commands."""

import typer

from serve_app.cli import control, lifecycle, replay
from serve_app.cli.bundle import bundle_app
from serve_app.cli.drift import drift
from serve_app.cli.events import events_command
from serve_app.cli.kuberay import kuberay_app
from serve_app.cli.registry import registry_app
from serve_app.cli.rollout import rollout_app
from serve_app.cli.status import status

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="A model server on Ray Serve.", pretty_exceptions_enable=False
)
app.command()(lifecycle.up)
app.command()(lifecycle.down)
app.command()(status)
app.command()(drift)
app.command()(lifecycle.deploy)
app.command()(lifecycle.env)
app.command("reload")(control.reload_command)
app.command()(control.rollback)
app.command()(control.audit)
app.command()(replay.replay)
app.command("events")(events_command)
rollout_app.command()(replay.shadow)
app.add_typer(bundle_app, name="bundle")
app.add_typer(kuberay_app, name="kuberay")
app.add_typer(registry_app, name="registry")
app.add_typer(rollout_app, name="rollout")
