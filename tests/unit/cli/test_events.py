"""The command `events` against a server that is reached over a real socket; its control plane is a fake one."""

import json

import pytest

from serve_app.cli import events as command
from serve_app.cli.admin_api import AdminApiError
from serve_app.domain.events import Event, EventKind
from tests.unit.cli.test_control import Operator
from tests.unit.cli.test_control import operator as operator  # a fixture
from tests.unit.ingress.serving import FAMILY
from tests.unit.usecases.eventful import event


def tell(operator: Operator, n: int = 1, family: str = FAMILY) -> None:
    told = operator.served.plane.told
    for _ in range(n):
        told.append(event(EventKind.RELOAD_FAILED, id=len(told) + 1, family=family, reason="bad\x1b[2J\nweights"))


def test_events_are_one_line_each_that_cannot_move_the_cursor(operator: Operator) -> None:
    tell(operator, 3)
    result = operator.run("events", "--limit", "2")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split()[2] for line in lines] == ["2", "3"]
    assert lines[0].startswith("2026-01-30 09:00:00      2  reload.failed       forecaster: v2 was not taken up")
    assert "\x1b" not in result.output


def test_one_family_can_be_asked_for_and_an_unknown_one_is_refused(operator: Operator) -> None:
    tell(operator, family="iris")
    tell(operator)
    assert operator.run("events", "--family", "iris").output.count("\n") == 1
    assert operator.run("events", "--family", "nobody").exit_code == 1


def test_follow_goes_on_where_the_list_ends_and_after_a_break_where_it_was(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(operator, 2)
    shown: list[int] = []
    breaks: list[int] = []
    line_of, feed = command.line_of, operator.served.api_feed
    monkeypatch.setattr(command, "RECONNECT_S", 0.01)

    async def is_leaving() -> bool:
        if len(shown) >= 3 and not breaks:
            breaks.append(len(shown))
            return True
        return False

    monkeypatch.setattr(feed, "_is_leaving", is_leaving)

    def shown_line(told: Event) -> str:
        shown.append(told.id)
        if len(shown) < 5:
            tell(operator)
        elif len(shown) == 5:
            raise KeyboardInterrupt
        return line_of(told)

    monkeypatch.setattr(command, "line_of", shown_line)
    operator.run("events", "--follow", "--limit", "1")
    assert shown == [2, 3, 4, 5, 6]
    assert breaks


def test_what_is_no_event_is_an_error_in_one_sentence() -> None:
    for data in ("[]", "nonsense", json.dumps({"kind": "x"})):
        with pytest.raises(AdminApiError, match="something else than an event"):
            command._event_of(data)
