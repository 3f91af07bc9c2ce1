"""The command `events`: what has happened, one line each, up to now or as it goes on."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Final

import httpx
import typer

from serve_app.cli.admin_api import AdminApi, AdminApiError
from serve_app.cli.control import TokenFileOption, UrlOption, admin_api
from serve_app.cli.lifecycle import DEFAULT_STATE_DIR, StateDirOption, errors_told
from serve_app.cli.printed import plain
from serve_app.domain.event_forms import sentence_of
from serve_app.domain.events import Event

RECONNECT_S: Final = 2.0
_DATA: Final = "data:"


def events_command(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")] = False,
    family: Annotated[str | None, typer.Option("--family", help="Default: all families.")] = None,
    after: Annotated[int | None, typer.Option(min=0, help="Id of the event after which to begin.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many that have happened; default 20.")] = 20,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Show what has happened: reloads, rollbacks, rollouts, sources that went away."""
    with errors_told(), admin_api(state_dir, url, token_file) as api:
        page = api.events(family, after=after, limit=limit)
        for event in page.events:
            typer.echo(line_of(event))
        if not follow:
            return
        seen = page.events[-1].id if page.events and after is not None else page.newest
        for event in _followed(api, family, after=seen):
            typer.echo(line_of(event))


def line_of(event: Event) -> str:
    """Return the line of an event; what would move the cursor is replaced, and a line break would."""
    when = datetime.fromtimestamp(event.at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return str(plain(f"{when}  {event.id:>5}  {event.kind.value:<18}  {sentence_of(event)}")).replace("\n", " ")


def _followed(api: AdminApi, family: str | None, *, after: int) -> Iterator[Event]:
    """Give events as they happen; after a break the stream is opened again where it was."""
    is_told = False
    while True:
        try:
            with api.event_stream(family, after=after) as lines:
                is_told = False
                for line in lines:
                    if line.startswith(_DATA):
                        event = _event_of(line.removeprefix(_DATA))
                        after = event.id
                        yield event
        except httpx.HTTPError as error:
            if not is_told:
                typer.echo(f"the server does not answer ({type(error).__name__}), trying again", err=True)
            is_told = True
        time.sleep(RECONNECT_S)


def _event_of(data: str) -> Event:
    try:
        document = json.loads(data)
        document.pop("sentence", None)
        return Event.model_validate(document)
    except (ValueError, AttributeError, TypeError) as error:
        raise AdminApiError(f"the server told something else than an event: {data[:200]}") from error
