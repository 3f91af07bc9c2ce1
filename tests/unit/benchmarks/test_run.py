import pytest
import typer

from tests.benchmarks.peers import PEERS
from tests.benchmarks.rounds import Plan
from tests.benchmarks.run import chosen, expect_bounded, shown_command


def test_all_peers_take_part_unless_some_are_named() -> None:
    assert chosen("") == PEERS
    assert [peer.name for peer in chosen("mlflow,mlserver")] == ["mlflow", "mlserver"]


def test_an_unknown_peer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(typer.BadParameter, match="no peer triton; there are mlserver, litserve"):
        chosen("mlserver,triton")


def test_a_plan_over_ten_minutes_is_refused() -> None:
    expect_bounded(Plan(rounds=3, seconds=4, connections=(1, 8, 32, 64)), 9)
    with pytest.raises(typer.BadParameter, match="at most 600 s"):
        expect_bounded(Plan(rounds=9, seconds=4, connections=(1, 8, 32, 64)), 9)


def test_the_shown_command_hides_where_things_lie() -> None:
    shown = shown_command(["--rounds", "3", "--state-dir", "/home/somebody/secret/bench"])

    assert shown == "python -m tests.benchmarks.run --rounds 3 --state-dir bench"
