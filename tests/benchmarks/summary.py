"""From samples to the figures that are reported: medians over the rounds, ratios, and whether the aims are met."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.measurements import Kind, Run, Sample, TargetFacts

BUSY_CONNECTIONS = (32, 64)
SINGLE = 1
TIMES_THE_BEST_PEER = 4.0
SHARE_OF_BEST_P50 = 0.4
SHARE_OF_EMPTY_ROUTE = 0.7


@dataclass(frozen=True, slots=True)
class Row:
    """One target at one number of connections; each figure is the median over the rounds."""

    target: TargetFacts
    good_per_s: float
    spread: float
    """Highest minus lowest of the rounds' requests/s, as a share of the median."""
    p50_ms: float
    p99_ms: float
    cpu_s_per_1000: float | None
    """None when nothing was answered."""
    errors: int
    """Of all rounds together."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One aim; `met` is None when what it compares was not measured."""

    aim: str
    found: str
    met: bool | None


def row_of(target: TargetFacts, samples: Sequence[Sample]) -> Row:
    """Summarise the rounds of one target at one number of connections; there is at least one."""
    rates = [sample.load.good_per_s for sample in samples]
    middle = median(rates)
    costs = [cost for sample in samples if (cost := _cost(sample)) is not None]
    return Row(
        target=target,
        good_per_s=middle,
        spread=(max(rates) - min(rates)) / middle if middle else 0.0,
        p50_ms=median(sample.load.p50_ms for sample in samples),
        p99_ms=median(sample.load.p99_ms for sample in samples),
        cpu_s_per_1000=median(costs) if costs else None,
        errors=sum(sample.load.error_count for sample in samples),
    )


def rows(run: Run, connections: int) -> list[Row]:
    """Summarise what was measured at one number of connections, in the order of the targets."""
    found = []
    for target in run.targets:
        samples = [s for s in run.samples if s.target == target.name and s.connections == connections]
        if samples:
            found.append(row_of(target, samples))
    return found


def row_of_kind(found: Sequence[Row], kind: Kind) -> Row | None:
    """Return the one row of a kind that has only one target."""
    return next((row for row in found if row.target.kind is kind), None)


def fastest_peer(found: Sequence[Row]) -> Row | None:
    """Return the peer that answers the most requests well."""
    return max(_peers(found), key=lambda row: row.good_per_s, default=None)


def promptest_peer(found: Sequence[Row]) -> Row | None:
    """Return the peer with the lowest median latency; one with errors does not count, since refusing is quick."""
    return min((row for row in _peers(found) if not row.errors), key=lambda row: row.p50_ms, default=None)


def verdicts(run: Run) -> list[Verdict]:
    """Hold the run against each aim for the forest."""
    found = {connections: rows(run, connections) for connections in run.connections}
    return [
        *(_against_fastest(found.get(connections, []), connections) for connections in BUSY_CONNECTIONS),
        _against_promptest(found.get(SINGLE, [])),
        *(_against_empty_route(found.get(connections, []), connections) for connections in BUSY_CONNECTIONS),
    ]


def _against_fastest(found: Sequence[Row], connections: int) -> Verdict:
    aim = f"{connections} connections: at least {TIMES_THE_BEST_PEER:g} × the requests/s of the best peer"
    ours, best = row_of_kind(found, Kind.OURS), fastest_peer(found)
    if ours is None or best is None or not best.good_per_s:
        return Verdict(aim, "not measured", None)
    ratio = ours.good_per_s / best.good_per_s
    return Verdict(
        aim,
        f"{ratio:.2f} × ({ours.good_per_s:,.0f} against {best.good_per_s:,.0f} of {best.target.title})",
        _clean(ours) and ratio >= TIMES_THE_BEST_PEER,
    )


def _against_promptest(found: Sequence[Row]) -> Verdict:
    aim = f"1 connection: p50 at most {SHARE_OF_BEST_P50:g} × that of the best peer"
    ours, best = row_of_kind(found, Kind.OURS), promptest_peer(found)
    if ours is None or best is None:
        return Verdict(aim, "not measured", None)
    ratio = ours.p50_ms / best.p50_ms
    return Verdict(
        aim,
        f"{ratio:.2f} × ({ours.p50_ms:.2f} ms against {best.p50_ms:.2f} ms of {best.target.title})",
        _clean(ours) and ratio <= SHARE_OF_BEST_P50,
    )


def _against_empty_route(found: Sequence[Row], connections: int) -> Verdict:
    aim = f"{connections} connections: at least {SHARE_OF_EMPTY_ROUTE:.0%} of the requests/s of the empty route"
    ours, empty = row_of_kind(found, Kind.OURS), row_of_kind(found, Kind.CEILING)
    if ours is None or empty is None or not empty.good_per_s:
        return Verdict(aim, "not measured", None)
    ratio = ours.good_per_s / empty.good_per_s
    return Verdict(
        aim,
        f"{ratio:.0%} ({ours.good_per_s:,.0f} against {empty.good_per_s:,.0f})",
        _clean(ours) and ratio >= SHARE_OF_EMPTY_ROUTE,
    )


def _clean(row: Row) -> bool:
    """A rate that came with errors proves nothing."""
    return row.errors == 0


def _peers(found: Sequence[Row]) -> list[Row]:
    return [row for row in found if row.target.kind is Kind.PEER]


def _cost(sample: Sample) -> float | None:
    good = sample.load.requests - sample.load.errors["status"]
    return sample.cpu_s / good * 1000 if good else None
