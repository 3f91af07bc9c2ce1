"""Events of a real server, through HAProxy: a reload is told while it happens, and a listener goes on where it was."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serve_app.domain.events import Event, EventKind
from tests.bad_bundles import write_iris
from tests.integration import iris
from tests.integration.conftest import Server

pytestmark = pytest.mark.ray

PATH = "/admin/events"


@contextmanager
def listening(server: Server, **headers: str) -> Iterator[Iterator[Event]]:
    asked = server.admin | {"Accept": "text/event-stream"} | headers
    with server.http.stream("GET", PATH, params={"family": "iris"}, headers=asked) as answer:
        assert answer.status_code == 200, answer.read()
        lines = answer.iter_lines()
        assert next(lines).startswith("retry:")  # it is open: what happens from now on is told
        yield (event_of(line) for line in lines if line.startswith("data:"))


def event_of(line: str) -> Event:
    document = json.loads(line.removeprefix("data:"))
    del document["sentence"]
    return Event.model_validate(document)


def test_a_reload_is_told_while_it_happens_and_again_to_who_was_cut_off(server: Server) -> None:
    newest = server.http.get(PATH, headers=server.admin | {"Accept": "application/json"}).json()["newest"]
    write_iris(server.models / "iris", "told-1")
    with listening(server, **{"Last-Event-ID": str(newest)}) as told:
        assert iris.reload(server, "told-1")["success"] is True
        begun, committed = next(told), next(told)
    assert (begun.kind, committed.kind) == (EventKind.RELOAD_BEGUN, EventKind.RELOAD_COMMITTED)
    assert (begun.version, committed.version) == ("told-1", "told-1")
    with listening(server, **{"Last-Event-ID": str(begun.id)}) as told:
        assert next(told) == committed
