"""Who takes part: makes what each server needs, and says how to run it for a turn."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.environments import EnvironmentFailedError, python_of, versions
from tests.benchmarks.measurements import Kind, TargetFacts, reason
from tests.benchmarks.peers import Peer, Setting
from tests.benchmarks.servers import Server, ServerFailedError, attached, running_ours, running_peer
from tests.benchmarks.targets import (
    Example,
    Target,
    empty_route_target,
    forecaster_examples,
    forest_examples,
    model_facts,
    our_target,
    peer_target,
)
from tests.benchmarks.tuning import best_setting, shown, try_settings

CONFIG = Path("configs/bench.yaml")
OUR_PACKAGES = ("ray", "scikit-learn", "treelite", "numpy", "fastapi")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Bench:
    """Where things lie, and who is measured; all paths are absolute."""

    state_dir: Path
    ours_url: str | None
    """None: this server is started here."""
    ours_state_dir: Path
    peers: tuple[Peer, ...]
    tune: bool

    @property
    def model(self) -> Path:
        """The forest that every peer loads."""
        return self.state_dir / "forest.joblib"

    @property
    def bodies(self) -> Path:
        """Where the requests lie that wrk sends."""
        return self.state_dir / "requests"


@dataclass(frozen=True, slots=True)
class Contender:
    """A server that takes its turns. `running` starts it, checks its answers, yields what to ask it, and stops it."""

    title: str
    running: Callable[[], AbstractContextManager[Sequence[Target]]]
    facts_if_absent: TargetFacts | None
    """What to say of it if it fails; None when nothing can be compared without it."""


def assemble(bench: Bench, tell: Tell) -> tuple[list[Contender], list[TargetFacts]]:
    """Make models, environments and settings; return who can take part, and the facts of who cannot.

    Raises:
        ServerFailedError: The models cannot be trained.
    """
    bench.bodies.mkdir(parents=True, exist_ok=True)
    _train(bench, tell)
    examples = forest_examples(bench.model)
    prepared = [_prepare(bench, peer, examples, tell) for peer in bench.peers]
    ours = Contender("serve-app", partial(_running_ours, bench, examples), None)
    return (
        [ours, *(each for each in prepared if isinstance(each, Contender))],
        [each for each in prepared if isinstance(each, TargetFacts)],
    )


def _train(bench: Bench, tell: Tell) -> None:
    """Make the forest and, for a server that is started here, the forecaster too."""
    models = bench.state_dir / "ours" / "models"
    if not (bench.model.exists() and (models / "iris" / "current").exists()):
        tell("training the forest")
        _train_with("train_iris_forest", "--joblib", str(bench.model), "--out", str(models / "iris"))
    if bench.ours_url is None:
        tell("training the forecaster, if it is missing")
        _train_with("train_forecaster", "--if-missing", "--out", str(models / "forecaster"))


def _train_with(program: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"training.{program}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise ServerFailedError(f"training.{program} failed:\n{done.stdout}")


def _prepare(bench: Bench, peer: Peer, examples: Sequence[Example], tell: Tell) -> Contender | TargetFacts:
    facts = TargetFacts(name=peer.name, title=peer.title, kind=Kind.PEER, configuration=peer.configuration, versions={})
    tell(f"environment of {peer.title}")
    try:
        python = python_of(peer, bench.state_dir / "environments")
        facts = facts.model_copy(update={"versions": versions(python, peer.packages)})
        setting = peer.settings[0]
        if bench.tune and len(peer.settings) > 1:
            trials = try_settings(
                peer,
                facts,
                python=python,
                model=bench.model,
                examples=examples,
                directory=bench.state_dir / "trials",
                tell=tell,
            )
            facts = facts.model_copy(update={"trials": tuple(trials)})
            setting = best_setting(peer, trials)
    except (EnvironmentFailedError, ServerFailedError) as error:
        return facts.model_copy(update={"problem": reason(error)})
    chosen = f"{peer.configuration}: `{shown(setting)}`" if setting else peer.configuration
    facts = facts.model_copy(update={"configuration": chosen})
    return Contender(peer.title, partial(_running_peer, bench, peer, setting, python, examples, facts), facts)


@contextmanager
def _running_peer(
    bench: Bench, peer: Peer, setting: Setting, python: Path, examples: Sequence[Example], facts: TargetFacts
) -> Iterator[Sequence[Target]]:
    home = bench.state_dir / "runs" / peer.name
    with running_peer(peer, setting, python=python, model=bench.model, directory=home) as server:
        yield [peer_target(peer, server, examples, facts, bench.bodies)]


@contextmanager
def _running_ours(bench: Bench, examples: Sequence[Example]) -> Iterator[Sequence[Target]]:
    if bench.ours_url is None:
        how = f"`serve-app up --config {CONFIG}`"
        running: AbstractContextManager[Server] = running_ours(CONFIG, bench.ours_state_dir)
    else:
        how = "a server that ran already, all the time"
        running = nullcontext(attached(bench.ours_url, bench.ours_state_dir))
    with running as server:
        yield _our_targets(bench, server, examples, f"{how}, profile {server.profile}")


def _our_targets(bench: Bench, server: Server, examples: Sequence[Example], how: str) -> list[Target]:
    found = {name: version(name) for name in OUR_PACKAGES}

    def facts(name: str, title: str, kind: Kind, configuration: str) -> TargetFacts:
        return TargetFacts(name=name, title=title, kind=kind, configuration=configuration, versions=found)

    forest, forecaster = (f"{how}, engine {_engine(server, name)}" for name in ("iris", "forecaster"))
    return [
        our_target(server, "iris", examples, facts("ours", "serve-app", Kind.OURS, forest), bench.bodies),
        empty_route_target(server, facts("live", "serve-app, /live", Kind.CEILING, how)),
        our_target(
            server,
            "forecaster",
            forecaster_examples(bench.ours_state_dir / "models"),
            facts("forecaster", "serve-app, forecaster", Kind.FORECASTER, forecaster),
            bench.bodies,
        ),
    ]


def _engine(server: Server, family: str) -> str:
    return ", ".join(sorted(set(model_facts(server, family)["engine"].values())))
