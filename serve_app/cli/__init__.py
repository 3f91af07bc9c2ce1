"""The console script `serve-app`: the server on this machine, and the operator's commands."""

import typer

from serve_app.cli import lifecycle
from serve_app.cli.bundle import bundle_app

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="A model server on Ray Serve.", pretty_exceptions_enable=False
)
app.command()(lifecycle.up)
app.command()(lifecycle.down)
app.command()(lifecycle.status)
app.command()(lifecycle.deploy)
app.command()(lifecycle.env)
app.add_typer(bundle_app, name="bundle")
