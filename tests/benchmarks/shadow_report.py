"""Writes `docs/shadow.md` from `docs/shadow.json`; nothing in the page comes from elsewhere.

python -m tests.benchmarks.shadow_report
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.benchmarks.measurements import Frozen, Machine

JSON_FILE = Path("docs/shadow.json")
PAGE = Path("docs/shadow.md")
COMMAND = "python -m tests.benchmarks.shadow"


class Copies(Frozen):
    """What became of the copies while the server was under load."""

    sent: int
    failed: int
    dropped: int

    @property
    def share_sent(self) -> float:
        """Share of the copies that were sent."""
        return self.sent / max(self.sent + self.dropped, 1)

    def since(self, before: "Copies") -> "Copies":
        """Return what has come to those of an earlier moment."""
        return Copies(
            sent=self.sent - before.sent, failed=self.failed - before.failed, dropped=self.dropped - before.dropped
        )


class Idle(Frozen):
    """Cores that the whole server uses while nobody asks it anything, without a rollout and with one under way."""

    without_cores: float
    with_cores: float


class HalfRate(Frozen):
    """One round at half the peak rate: latencies of the live answers, without and with the shadow."""

    without_p50_ms: float
    without_p99_ms: float
    with_p50_ms: float
    with_p99_ms: float
    failed: int
    copies: Copies

    @property
    def ratio(self) -> float:
        """The p99 with the shadow against that without."""
        return self.with_p99_ms / self.without_p99_ms


class FullRate(Frozen):
    """One round of as many requests as the server answers, without and with the shadow."""

    without_per_s: float
    with_per_s: float
    failed: int
    copies: Copies

    @property
    def ratio(self) -> float:
        """The throughput with the shadow against that without."""
        return self.with_per_s / self.without_per_s


class ShadowRun(Frozen):
    """One run, as it lies in the JSON file."""

    started_at: str
    command: str
    code: str
    machine: Machine
    seconds: float
    connections: int
    peak_per_s: float
    half_per_s: float
    half: tuple[HalfRate, ...]
    full: tuple[FullRate, ...]
    idle: Idle


def rendered(run: ShadowRun) -> str:
    """Return the page."""
    machine = run.machine
    half_ratio = median(one.ratio for one in run.half)
    full_ratio = median(one.ratio for one in run.full)
    lines = [
        "# What a shadow costs",
        "",
        f"Written by `{run.command}`; the figures are in `{JSON_FILE.name}`. The iris forest answers one row a request "
        f"over {run.connections} connections, as two families of one server. One of them has a shadow, the same forest "
        "as another version, which gets a copy of every request (100 %) that live requests leave time for. The "
        "machine's speed changes within seconds: windows are short, each round has one of either family, and ratios "
        "are taken within rounds.",
        "",
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {machine.system}, Python {machine.python}; "
        f"load before: {machine.load_before}. Code {run.code}, {run.started_at}, {run.seconds:.0f} s.",
        "",
        f"## At half the peak rate: {run.half_per_s:,.0f} requests/s",
        "",
        "| round | p50 without | p50 with | p99 without | p99 with | ratio of p99 | copies sent | failed requests |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_half_row(str(i), [one]) for i, one in enumerate(run.half, 1)),
        _half_row("median", run.half),
        "",
        f"In ms, from the time a request was due. p99 with the shadow against without, the median of all rounds: "
        f"{half_ratio:.2f} (to reach: at most 1.1). {_spread('p99', [one.without_p99_ms for one in run.half], 'ms')}",
        "",
        f"## At full rate: {run.peak_per_s:,.0f} requests/s",
        "",
        "| round | requests/s without | requests/s with | ratio | copies sent | failed requests |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_full_row(str(i), [one]) for i, one in enumerate(run.full, 1)),
        _full_row("median", run.full),
        "",
        f"Throughput with the shadow against without, the median of all rounds: {full_ratio:.2f} (to reach: at least "
        f"0.95). "
        f"{_spread('throughput', [one.without_per_s for one in run.full], 'requests/s')}",
        "",
        "## Beside requests",
        "",
        "The rollout is under way while either family is asked. What it costs by itself, the evidence that is pulled "
        "and saved once a second, is seen while nobody asks: all processes of the server use "
        f"{run.idle.with_cores:.3f} cores with it and {run.idle.without_cores:.3f} without.",
        "",
    ]
    return "\n".join(lines)


def _half_row(name: str, rounds: Sequence[HalfRate]) -> str:
    times = (
        median(one.without_p50_ms for one in rounds),
        median(one.with_p50_ms for one in rounds),
        median(one.without_p99_ms for one in rounds),
        median(one.with_p99_ms for one in rounds),
    )
    cells = [name, *(f"{time:.2f}" for time in times), f"{median(one.ratio for one in rounds):.2f}"]
    return _row([*cells, _share([one.copies for one in rounds]), str(sum(one.failed for one in rounds))])


def _full_row(name: str, rounds: Sequence[FullRate]) -> str:
    rates = (median(one.without_per_s for one in rounds), median(one.with_per_s for one in rounds))
    cells = [name, *(f"{rate:,.0f}" for rate in rates), f"{median(one.ratio for one in rounds):.2f}"]
    return _row([*cells, _share([one.copies for one in rounds]), str(sum(one.failed for one in rounds))])


def _spread(what: str, values: Sequence[float], unit: str) -> str:
    """Say how far rounds differ by themselves: what is smaller than that is not told apart."""
    return f"Without a shadow the {what} was {min(values):,.1f} to {max(values):,.1f} {unit}, from round to round."


def _share(copies: Sequence[Copies]) -> str:
    return f"{100 * median(one.share_sent for one in copies):.0f} %"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write(run: ShadowRun, directory: Path | None = None) -> tuple[Path, Path]:
    """Write the figures and the page, into `directory` instead of `docs/` where one is given."""
    json_file, page = (JSON_FILE, PAGE) if directory is None else (directory / JSON_FILE.name, directory / PAGE.name)
    json_file.write_text(run.model_dump_json(indent=1) + "\n")
    page.write_text(rendered(run))
    return json_file, page


if __name__ == "__main__":
    PAGE.write_text(rendered(ShadowRun.model_validate_json(JSON_FILE.read_text())))
