"""The measurement proper: rounds that visit every target in turn."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.benchmarks.cpu_time import cpu_seconds, difference
from tests.benchmarks.measurements import Sample
from tests.benchmarks.servers import Server
from tests.benchmarks.targets import Target
from tests.benchmarks.wrk import put_under_load

WARM_UP_S = 1
WARM_UP_CONNECTIONS = 32
BETWEEN_S = 0.6
"""What one visit takes beside the load: finding the processes, and waiting until the server is quiet again."""
QUIET_CORES = 0.15
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
        """Say how long it will take."""
        visits = self.rounds * len(self.connections) * target_count
        return visits * (self.seconds + BETWEEN_S) + target_count * WARM_UP_S


def visits(plan: Plan, target_count: int) -> Iterator[tuple[int, int, int]]:
    """Return (round, connections, target) in the order of measuring.

    Every round visits all targets at each number of connections before it goes on to the next, so that a machine that
    slows down does it to all; each round begins with another target, so that nobody always follows the same one.
    """
    for round_ in range(1, plan.rounds + 1):
        for connections in plan.connections:
            for place in range(target_count):
                yield round_, connections, (place + round_ - 1) % target_count


def idle_cores(servers: Sequence[Server]) -> list[float]:
    """Measure what servers use while nobody asks anything, all in the same window."""
    before = [cpu_seconds(server.processes()) for server in servers]
    time.sleep(IDLE_WINDOW_S)
    after = [cpu_seconds(server.processes()) for server in servers]
    return [difference(*pair) / IDLE_WINDOW_S for pair in zip(before, after, strict=True)]


def measure(targets: Sequence[Target], plan: Plan, tell: Callable[[str], None]) -> list[Sample]:
    """Warm all targets up, then visit them."""
    for target in targets:
        put_under_load(target.request, connections=WARM_UP_CONNECTIONS, seconds=WARM_UP_S)
        _wait_until_quiet(target)
    samples: list[Sample] = []
    total = plan.rounds * len(plan.connections) * len(targets)
    for number, (round_, connections, index) in enumerate(visits(plan, len(targets)), start=1):
        sample = _visit(targets[index], round_, connections, plan.seconds)
        _wait_until_quiet(targets[index])
        samples.append(sample)
        load = sample.load
        wrong = f", {load.error_count:,} errors" if load.error_count else ""
        tell(
            f"{number:>3}/{total} round {round_}, {connections:>2} connections, {targets[index].facts.title}: "
            f"{load.good_per_s:,.0f}/s, p50 {load.p50_ms:.2f} ms, p99 {load.p99_ms:.2f} ms{wrong}"
        )
    return samples


def _visit(target: Target, round_: int, connections: int, seconds: int) -> Sample:
    before = cpu_seconds(target.server.processes())
    load = put_under_load(target.request, connections=connections, seconds=seconds)
    after = cpu_seconds(target.server.processes())
    return Sample(
        target=target.facts.name, connections=connections, round=round_, load=load, cpu_s=difference(before, after)
    )


def _wait_until_quiet(target: Target) -> None:
    """Wait until the server has finished what wrk left behind, which would cost whoever comes next."""
    limit = (target.facts.idle_cores or 0.0) + QUIET_CORES
    deadline = time.monotonic() + QUIET_WITHIN_S
    processes = target.server.processes()
    while time.monotonic() < deadline:
        before = cpu_seconds(processes)
        time.sleep(QUIET_WINDOW_S)
        if difference(before, cpu_seconds(processes)) <= limit * QUIET_WINDOW_S:
            return
