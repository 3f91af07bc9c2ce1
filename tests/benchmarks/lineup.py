"""Who takes part: makes what each server needs, starts all of them side by side and checks their answers."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.environments import EnvironmentFailedError, python_of, versions
from tests.benchmarks.measurements import Kind, TargetFacts
from tests.benchmarks.peers import Peer, Setting
from tests.benchmarks.rounds import idle_cores
from tests.benchmarks.servers import Server, ServerFailedError, attached, running_ours, running_peer
from tests.benchmarks.targets import (
    Example,
    Target,
    WrongAnswerError,
    empty_route_target,
    forecaster_examples,
    forest_examples,
    model_facts,
    our_target,
    peer_target,
)
from tests.benchmarks.tuning import best_setting, shown, try_settings
from tests.benchmarks.wrk import LoadError

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
class Ready:
    """A peer whose environment is made and whose setting is chosen."""

    peer: Peer
    python: Path
    setting: Setting
    facts: TargetFacts


@dataclass(frozen=True, slots=True)
class Lineup:
    """All who run now, and those who could not take part, with the reason in their facts."""

    targets: tuple[Target, ...]
    absent: tuple[TargetFacts, ...]


@contextmanager
def side_by_side(bench: Bench, tell: Tell) -> Iterator[Lineup]:
    """Run this server and all peers at once.

    A peer that fails is left out and says why; without this server there is nothing to compare.

    Raises:
        ServerFailedError: This server does not run.
        WrongAnswerError: This server answers something else than the model.
    """
    bench.bodies.mkdir(parents=True, exist_ok=True)
    _train(bench, tell)
    examples = forest_examples(bench.model)
    prepared = [_prepare(bench, peer, examples, tell) for peer in bench.peers]
    with ExitStack() as stack:
        ours = _start_ours(bench, examples, stack, tell)
        peers = [
            _start_peer(bench, each, examples, stack, tell) if isinstance(each, Ready) else each for each in prepared
        ]
        running = [*ours, *(each for each in peers if isinstance(each, Target))]
        absent = tuple(each for each in peers if isinstance(each, TargetFacts))
        yield Lineup(tuple(_with_idle_cores(running)), absent)


def _train(bench: Bench, tell: Tell) -> None:
    """Make the forest and, for a server that is started here, the forecaster too."""
    models = bench.state_dir / "ours" / "models"
    if not (bench.model.exists() and (models / "iris" / "current").exists()):
        tell("training the forest")
        _train_with("train_iris_forest", "--joblib", str(bench.model), "--out", str(models / "iris"))
    if bench.ours_url is None:
        tell("training the forecaster, if it is missing")
        _train_with("train_forecaster", "--if-missing", "--out", str(bench.ours_state_dir / "models" / "forecaster"))


def _train_with(program: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"training.{program}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise ServerFailedError(f"training.{program} failed:\n{done.stdout}")


def _prepare(bench: Bench, peer: Peer, examples: Sequence[Example], tell: Tell) -> Ready | TargetFacts:
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
        return facts.model_copy(update={"problem": str(error)})
    chosen = f"{peer.configuration}: `{shown(setting)}`" if setting else peer.configuration
    return Ready(peer, python, setting, facts.model_copy(update={"configuration": chosen}))


def _start_ours(bench: Bench, examples: Sequence[Example], stack: ExitStack, tell: Tell) -> list[Target]:
    tell("starting this server")
    if bench.ours_url is None:
        server = stack.enter_context(running_ours(CONFIG, bench.ours_state_dir))
        configuration = f"`serve-app up --config {CONFIG}`, profile {server.profile}"
    else:
        server = attached(bench.ours_url, bench.ours_state_dir)
        configuration = f"already running, profile {server.profile}"
    found = {name: version(name) for name in OUR_PACKAGES}

    def facts(name: str, title: str, kind: Kind, how: str) -> TargetFacts:
        return TargetFacts(name=name, title=title, kind=kind, configuration=how, versions=found)

    forest, forecaster = (f"{configuration}, engine {_engine(server, name)}" for name in ("iris", "forecaster"))
    return [
        our_target(server, "iris", examples, facts("ours", "serve-app", Kind.OURS, forest), bench.bodies),
        empty_route_target(server, facts("live", "serve-app, /live", Kind.CEILING, configuration)),
        our_target(
            server,
            "forecaster",
            forecaster_examples(bench.ours_state_dir / "models"),
            facts("forecaster", "serve-app, forecaster", Kind.FORECASTER, forecaster),
            bench.bodies,
        ),
    ]


def _engine(server: Server, family: str) -> str:
    return str(model_facts(server, family)["engine"])


def _start_peer(
    bench: Bench, ready: Ready, examples: Sequence[Example], stack: ExitStack, tell: Tell
) -> Target | TargetFacts:
    tell(f"starting {ready.peer.title}")
    try:
        server = stack.enter_context(
            running_peer(
                ready.peer,
                ready.setting,
                python=ready.python,
                model=bench.model,
                directory=bench.state_dir / "runs" / ready.peer.name,
            )
        )
        return peer_target(ready.peer, server, examples, ready.facts, bench.bodies)
    except (ServerFailedError, WrongAnswerError, LoadError) as error:
        return ready.facts.model_copy(update={"problem": str(error)})


def _with_idle_cores(targets: Sequence[Target]) -> list[Target]:
    used = idle_cores([target.server for target in targets])
    return [
        replace(target, facts=target.facts.model_copy(update={"idle_cores": round(cores, 3)}))
        for target, cores in zip(targets, used, strict=True)
    ]
