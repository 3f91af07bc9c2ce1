"""The measurement proper: rounds in which every server takes its turn, alone on the machine.

Servers that idle beside the measured one would cost it up to a quarter of two cores: Ray's processes and LitServe's
queues never sleep.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil

from tests.benchmarks.contenders import Contender
from tests.benchmarks.cpu_time import cpu_seconds, difference
from tests.benchmarks.measurements import Sample, TargetFacts, reason
from tests.benchmarks.servers import Server, ServerFailedError
from tests.benchmarks.targets import Target, WrongAnswerError
from tests.benchmarks.wrk import LoadError, put_under_load

WARM_UP_S = 1
WARM_UP_CONNECTIONS = 32
BETWEEN_S = 0.6
"""What one visit takes beside the load: finding the processes, and waiting until the server is quiet again."""
QUIET_CORES = 0.4
"""Above what any of the servers uses while nobody asks it anything."""
QUIET_WINDOW_S = 0.25
QUIET_WITHIN_S = 5.0
IDLE_WINDOW_S = 3.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: int
    connections: tuple[int, ...]

    def takes_s(self, target_count: int) -> float:
        """Say how long the load will take, without starting and stopping."""
        visit_s = len(self.connections) * (self.seconds + BETWEEN_S)
        return self.rounds * target_count * (visit_s + WARM_UP_S + BETWEEN_S) + IDLE_WINDOW_S * target_count


@dataclass(slots=True)
class Result:
    """What became of the contenders so far, by the names of their targets."""

    facts: dict[str, TargetFacts]
    samples: list[Sample]

    def drop(self, facts: TargetFacts, problem: str) -> None:
        """Forget what was measured of a target, and say why."""
        self.facts[facts.name] = facts.model_copy(update={"problem": problem})
        self.samples = [sample for sample in self.samples if sample.target != facts.name]


def turns(rounds: int, contender_count: int) -> Iterator[tuple[int, int]]:
    """Return (round, contender) in order; each round begins with another contender than the one before."""
    for round_ in range(1, rounds + 1):
        for place in range(contender_count):
            yield round_, (place + round_ - 1) % contender_count


def measure(contenders: Sequence[Contender], plan: Plan, tell: Callable[[str], None]) -> Result:
    """Let every contender take its turns. One that fails is left out from then on and says why.

    Raises:
        ServerFailedError, WrongAnswerError, LoadError: The one failed without which there is nothing to compare.
    """
    result = Result({}, [])
    for round_, index in turns(plan.rounds, len(contenders)):
        contender = contenders[index]
        absent = contender.facts_if_absent
        if absent is not None and (known := result.facts.get(absent.name)) is not None and known.problem is not None:
            continue
        tell(f"round {round_}/{plan.rounds}: {contender.title}")
        try:
            with contender.running() as targets:
                _take_turn(targets, round_, plan, result, tell)
        except (ServerFailedError, WrongAnswerError, LoadError) as error:
            if absent is None:
                raise
            tell(f"  left out: {error}")
            result.drop(absent, reason(error))
    return result


def _take_turn(targets: Sequence[Target], round_: int, plan: Plan, result: Result, tell: Callable[[str], None]) -> None:
    for target in targets:
        put_under_load(target.request, connections=WARM_UP_CONNECTIONS, seconds=WARM_UP_S)
        _wait_until_quiet(target.server)
    for target in targets:
        if target.facts.name not in result.facts:
            idle = {"idle_cores": round(_idle_cores(target.server), 3)}
            result.facts[target.facts.name] = target.facts.model_copy(update=idle)
    for connections in plan.connections:
        for target in targets:
            sample = _visit(target, round_, connections, plan.seconds)
            _wait_until_quiet(target.server)
            result.samples.append(sample)
            tell(f"  {connections:>2} connections, {target.facts.title}: {_told(sample)}")


def _visit(target: Target, round_: int, connections: int, seconds: int) -> Sample:
    before = cpu_seconds(target.server.processes())
    load = put_under_load(target.request, connections=connections, seconds=seconds)
    after = cpu_seconds(target.server.processes())
    return Sample(
        target=target.facts.name, connections=connections, round=round_, load=load, cpu_s=difference(before, after)
    )


def _told(sample: Sample) -> str:
    load = sample.load
    wrong = f", {load.error_count:,} errors" if load.error_count else ""
    return f"{load.good_per_s:,.0f}/s, p50 {load.p50_ms:.2f} ms, p99 {load.p99_ms:.2f} ms{wrong}"


def _wait_until_quiet(server: Server) -> None:
    """Wait until the server has finished what wrk left behind, which would cost what is measured next."""
    deadline = time.monotonic() + QUIET_WITHIN_S
    processes = server.processes()
    while time.monotonic() < deadline and _cores_used(processes, QUIET_WINDOW_S) > QUIET_CORES:
        pass


def _idle_cores(server: Server) -> float:
    return _cores_used(server.processes(), IDLE_WINDOW_S)


def _cores_used(processes: Sequence[psutil.Process], window_s: float) -> float:
    before = cpu_seconds(processes)
    time.sleep(window_s)
    return difference(before, cpu_seconds(processes)) / window_s
