import re

import pytest

from tests.benchmarks.measurements import Trial
from tests.benchmarks.peers import PEERS, Peer
from tests.benchmarks.servers import ServerFailedError
from tests.benchmarks.tuning import best_setting, shown

PINNED = re.compile(r"^[A-Za-z0-9._-]+(\[[a-z,]+\])?==[A-Za-z0-9.!+]+$")


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_an_environment_is_pinned_exactly_and_names_no_address(peer: Peer) -> None:
    lines = [line for line in peer.requirements.read_text().splitlines() if line and not line.startswith("#")]

    assert [line for line in lines if not PINNED.match(line)] == []
    assert set(peer.packages) <= {re.split(r"[\[=]", line)[0].lower() for line in lines}
    assert peer.program.is_file()


def test_every_peer_has_the_same_scikit_learn() -> None:
    pins = {
        line
        for peer in PEERS
        for line in peer.requirements.read_text().splitlines()
        if line.startswith("scikit-learn==")
    }

    assert len(pins) == 1


def peer_with(*settings: tuple[str, ...]) -> Peer:
    return Peer(
        name="p",
        title="P",
        configuration="",
        packages=(),
        ready_path="/",
        path="/",
        answer_at=(),
        settings=settings or ((),),
    )


def test_the_best_setting_gives_away_neither_promptness_nor_throughput() -> None:
    peer = peer_with(("--timer", "20"), ("--timer", "5"), ("--timer", "0"))
    trials = [
        Trial(setting="--timer 20", good_per_s={1: 40, 32: 1100}),
        Trial(setting="--timer 5", good_per_s={1: 100, 32: 1000}),
        Trial(setting="--timer 0", good_per_s={1: 150, 32: 500}),
    ]

    assert shown(best_setting(peer, trials)) == "--timer 5"


def test_a_setting_that_failed_is_never_the_best() -> None:
    peer = peer_with(("--a",), ("--b",))
    trials = [Trial(setting="--a", good_per_s={}, problem="it ended"), Trial(setting="--b", good_per_s={1: 1, 32: 1})]

    assert best_setting(peer, trials) == ("--b",)


def test_a_peer_of_which_no_setting_works_says_why() -> None:
    with pytest.raises(ServerFailedError, match="no such port"):
        best_setting(peer_with(("--a",)), [Trial(setting="--a", good_per_s={}, problem="no such port")])
