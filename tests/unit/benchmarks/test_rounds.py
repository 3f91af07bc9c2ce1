from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest

from tests.benchmarks.contenders import Contender
from tests.benchmarks.rounds import Plan, Result, measure, turns
from tests.benchmarks.servers import ServerFailedError
from tests.benchmarks.targets import Target
from tests.unit.benchmarks.builders import facts, load, sample

PLAN = Plan(rounds=2, seconds=1, connections=(1, 32))


def test_every_contender_has_one_turn_a_round() -> None:
    order = list(turns(3, 4))

    assert len(order) == len(set(order)) == 3 * 4
    assert [round_ for round_, _ in order] == sorted(round_ for round_, _ in order)


def test_each_round_begins_with_another_contender() -> None:
    order = list(turns(3, 3))

    assert [order[start][1] for start in (0, 3, 6)] == [0, 1, 2]


def test_the_plan_knows_how_long_it_takes() -> None:
    assert Plan(rounds=3, seconds=4, connections=(1, 8, 32, 64)).takes_s(9) < 600
    assert Plan(rounds=6, seconds=4, connections=(1, 8, 32, 64)).takes_s(9) > 600


def failing(starts: list[str]) -> Callable[[], AbstractContextManager[Sequence[Target]]]:
    """Make a server that notes each start and never gets ready."""

    @contextmanager
    def running() -> Iterator[Sequence[Target]]:
        starts.append("started")
        raise ServerFailedError("it ended while starting; see /home/somebody/server.log")
        yield []

    return running


def test_a_peer_that_fails_is_left_out_from_then_on_and_says_why() -> None:
    starts: list[str] = []
    broken = Contender("Broken", failing(starts), facts("broken"))
    idle = Contender("Idle", lambda: nullcontext([]), facts("idle"))

    result = measure([broken, idle], PLAN, lambda line: None)

    assert starts == ["started"]
    assert result.facts["broken"].problem == "it ended while starting; see …"
    assert list(result.facts) == ["broken"]


def test_without_the_server_itself_there_is_no_measurement() -> None:
    with pytest.raises(ServerFailedError):
        measure([Contender("serve-app", failing([]), None)], PLAN, lambda line: None)


def test_what_was_measured_of_a_peer_before_it_failed_is_forgotten() -> None:
    result = Result({"a": facts("a"), "b": facts("b")}, [sample("a", load()), sample("b", load())])

    result.drop(facts("a"), "it ended")

    assert [each.target for each in result.samples] == ["b"]
    assert result.facts["a"].problem == "it ended"
