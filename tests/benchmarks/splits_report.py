"""Writes `docs/splits.md` from `docs/splits.json`; nothing in the page comes from elsewhere.

python -m tests.benchmarks.splits_report
"""

import math
from pathlib import Path
from statistics import median, quantiles

from tests.benchmarks.measurements import Frozen, Load, Machine

JSON_FILE = Path("docs/splits.json")
PAGE = Path("docs/splits.md")
COMMAND = "python -m tests.benchmarks.splits"


class Decision(Frozen):
    """What the choice of a target took, in nanoseconds; `place` is where the targeting key stood."""

    place: str
    best_ns: float
    median_ns: float


class Pair(Frozen):
    """One round of the main benchmark: without a split, and with one of `weight` percent."""

    weight: float
    connections: int
    without: Load
    split: Load


class Share(Frozen):
    """All keys asked for once while the candidate had `weight` percent of them.

    `flipped` were answered by another version when they were asked for again at the same weight, `left` had been the
    candidate's at the weight before and no longer were.
    """

    weight: float
    keys: int
    candidate: int
    flipped: int
    left: int

    @property
    def expected(self) -> float:
        """Keys that the weight asks for."""
        return self.keys * self.weight / 100

    @property
    def bound(self) -> float:
        """Keys by which a fair draw misses that in 1 of 1,000 cases (3.29 standard deviations)."""
        share = self.weight / 100
        return 3.29 * math.sqrt(self.keys * share * (1 - share))

    @property
    def is_within(self) -> bool:
        """True when the share is one that a fair draw gives."""
        return abs(self.candidate - self.expected) <= self.bound


class SplitsRun(Frozen):
    """One run, as it lies in the JSON file."""

    started_at: str
    command: str
    code: str
    machine: Machine
    seconds: float
    decisions: tuple[Decision, ...]
    pairs: tuple[Pair, ...]
    shares: tuple[Share, ...]


def rendered(run: SplitsRun) -> str:
    """Return the page."""
    machine = run.machine
    lines = [
        "# What a split costs, and how well it is kept",
        "",
        f"Written by `{run.command}`; the figures are in `{JSON_FILE.name}`.",
        "",
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {machine.system}, Python {machine.python}, "
        f"wrk {machine.wrk}; load before: {machine.load_before}. Code {run.code}, {run.started_at}, "
        f"{run.seconds:.0f} s.",
        "",
        "## The choice of a target",
        "",
        "From the headers and the body of a request to the version that answers it, counted as evidence.",
        "",
        "| targeting key | best, µs | median, µs |",
        "| --- | --- | --- |",
        *(f"| {one.place} | {one.best_ns / 1e3:.1f} | {one.median_ns / 1e3:.1f} |" for one in run.decisions),
        "",
        "## Throughput with a split on",
        "",
        "The main benchmark's request against one server that has the same forest as two families, one of them with a "
        "split: two seconds of load on one, two on the other, which comes first in turn. The key is in no header, so "
        "each request is assigned by weight. Medians over the rounds, and of the ratio the quartiles.",
        "",
        "| split | connections | rounds | without, 1/s | with, 1/s | with / without | quartiles | not answered |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *_pair_rows(run.pairs),
        "",
        "## Keys",
        "",
        "Each key is asked for twice at each weight over HTTP, while one rollout goes from step to step. *Flipped* "
        "keys were answered by different versions at one weight, *left* ones went back to the stable version while the "
        "weight grew. A fair draw misses the asked share by more than the bound in 1 of 1,000 cases.",
        "",
        "| weight | keys | to the candidate | asked | bound | flipped | left |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {one.weight:g} % | {one.keys:,} | {one.candidate:,} ({100 * one.candidate / one.keys:.2f} %) "
            f"| {one.expected:,.0f} | ± {one.bound:.0f}{'' if one.is_within else ' **(missed)**'} "
            f"| {one.flipped} | {one.left} |"
            for one in run.shares
        ),
    ]
    return "\n".join(lines) + "\n"


def _pair_rows(pairs: tuple[Pair, ...]) -> list[str]:
    rows = []
    for weight, connections in sorted({(pair.weight, pair.connections) for pair in pairs}):
        found = [pair for pair in pairs if (pair.weight, pair.connections) == (weight, connections)]
        without, split = (median(load.good_per_s for load in loads) for loads in _sides(found))
        ratios = [pair.split.good_per_s / pair.without.good_per_s for pair in found]
        low, ratio, high = quantiles(ratios, n=4, method="inclusive")
        errors = sum(pair.without.error_count + pair.split.error_count for pair in found)
        rows.append(
            f"| {weight:g} % | {connections} | {len(found)} | {without:,.0f} | {split:,.0f} | {ratio:.3f} "
            f"| {low:.2f} to {high:.2f} | {errors} |"
        )
    return rows


def _sides(pairs: list[Pair]) -> tuple[list[Load], list[Load]]:
    return [pair.without for pair in pairs], [pair.split for pair in pairs]


def write(run: SplitsRun, directory: Path | None = None) -> tuple[Path, Path]:
    """Write the figures and the page, into `docs/` or another directory; return both files."""
    json_file, page = (JSON_FILE, PAGE) if directory is None else (directory / JSON_FILE.name, directory / PAGE.name)
    json_file.write_text(run.model_dump_json(indent=2) + "\n")
    page.write_text(rendered(run))
    return json_file, page


def main() -> None:
    """Write the page again."""
    PAGE.write_text(rendered(SplitsRun.model_validate_json(JSON_FILE.read_text())))


if __name__ == "__main__":
    main()
