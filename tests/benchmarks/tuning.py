"""Gives each peer its best: tries its settings one by one, alone on the machine, and keeps the winner."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.measurements import TargetFacts, Trial, reason
from tests.benchmarks.peers import Peer, Setting
from tests.benchmarks.servers import ServerFailedError, running_peer
from tests.benchmarks.targets import Example, WrongAnswerError, peer_target
from tests.benchmarks.wrk import LoadError, put_under_load

TRIED_AT = (1, 32)
TRIAL_S = 2
WARM_UP_S = 1


def try_settings(
    peer: Peer,
    facts: TargetFacts,
    *,
    python: Path,
    model: Path,
    examples: Sequence[Example],
    directory: Path,
    tell: Callable[[str], None],
) -> list[Trial]:
    """Measure every setting of a peer for a moment."""
    trials = []
    for number, setting in enumerate(peer.settings, start=1):
        home = directory / f"{peer.name}-{number}"
        trial = _try(peer, setting, facts, python=python, model=model, examples=examples, directory=home)
        told = ", ".join(f"{rate:,.0f}/s at {connections}" for connections, rate in trial.good_per_s.items())
        tell(f"{peer.title} {trial.setting}: {trial.problem or told}")
        trials.append(trial)
    return trials


def best_setting(peer: Peer, trials: Sequence[Trial]) -> Setting:
    """Choose the setting with the highest product of rates, so that neither promptness nor throughput is given away.

    Raises:
        ServerFailedError: No setting worked.
    """
    working = [trial for trial in trials if trial.problem is None]
    if not working:
        raise ServerFailedError("; ".join(trial.problem or "" for trial in trials) or "there is no setting")
    best = max(working, key=lambda trial: math.prod(trial.good_per_s.values()))
    return next(setting for setting in peer.settings if shown(setting) == best.setting)


def shown(setting: Setting) -> str:
    """Write a setting as one types it."""
    return " ".join(setting)


def _try(
    peer: Peer,
    setting: Setting,
    facts: TargetFacts,
    *,
    python: Path,
    model: Path,
    examples: Sequence[Example],
    directory: Path,
) -> Trial:
    rates: Mapping[int, float] = {}
    try:
        with running_peer(peer, setting, python=python, model=model, directory=directory) as server:
            request = peer_target(peer, server, examples, facts, directory).request
            put_under_load(request, connections=max(TRIED_AT), seconds=WARM_UP_S)
            rates = {
                connections: put_under_load(request, connections=connections, seconds=TRIAL_S).good_per_s
                for connections in TRIED_AT
            }
    except (ServerFailedError, WrongAnswerError, LoadError) as error:
        return Trial(setting=shown(setting), good_per_s=rates, problem=reason(error))
    return Trial(setting=shown(setting), good_per_s=rates)
