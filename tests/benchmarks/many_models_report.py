"""Writes `docs/many-models.md` from `docs/many-models.json`; nothing in the page comes from elsewhere.

python -m tests.benchmarks.many_models_report
"""

from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.measurements import Frozen, Machine

JSON_FILE = Path("docs/many-models.json")
PAGE = Path("docs/many-models.md")
COMMAND = "python -m tests.benchmarks.many_models"


class Latencies(Frozen):
    """What some requests took."""

    requests: int
    p50_ms: float
    p99_ms: float
    longest_ms: float


class Steady(Frozen):
    """The steady stream for the family's own model while something else went on."""

    what: str
    seconds: float
    failed: int
    latencies: Latencies


class Memory(Frozen):
    """Resident memory of the model replica at one moment."""

    when: str
    replica_mib: float


class ManyModelsRun(Frozen):
    """One run, as it lies in the JSON file."""

    started_at: str
    command: str
    code: str
    machine: Machine
    seconds: float
    models: int
    versions: int
    resident: int
    trees: int
    exponent: float
    shuffle_every: int
    client_per_s: float
    steady_per_s: float
    steady: tuple[Steady, ...]
    first: Latencies
    reloads: Latencies
    hits: Latencies
    hit_rate: float
    not_ok: int
    loads: int
    evictions: int
    most_resident: int
    memory: tuple[Memory, ...]


def write(run: ManyModelsRun, smoke_directory: Path | None) -> tuple[Path, Path]:
    """Write figures and page, a smoke run's into its own directory; return both files."""
    json_file, page = JSON_FILE, PAGE
    if smoke_directory is not None:
        json_file, page = smoke_directory / "part.json", smoke_directory / "part.md"
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(run.model_dump_json(indent=1) + "\n")
    page.write_text(render(run))
    return json_file, page


def render(run: ManyModelsRun) -> str:
    """Write the whole page."""
    alone = run.steady[0].latencies
    parts = [
        "# Many models behind one family",
        f"Written by `{COMMAND}`; the figures are in `{JSON_FILE.name}`. One model replica holds at most "
        f"{run.resident} versions of {run.models} registered models with {run.versions} versions each "
        f"(forests of {run.trees} trees, from a real MLflow server). "
        f"One client asks for them by name, {run.client_per_s:g} times a second; the one of rank r is chosen with "
        f"weight r^-{run.exponent:g}, and the ranks are shuffled every {run.shuffle_every} requests. "
        f"Beside it {run.steady_per_s:g} requests a second ask for the family's own model.",
        _machine(run),
        "## Changing traffic",
        _table(
            ("requests", "hit rate", "loads", "evictions", "versions in memory at the end", "not answered with 200"),
            [[run.hits.requests + run.reloads.requests, f"{run.hit_rate:.1%}", run.loads, run.evictions,
              run.most_resident, run.not_ok]],
        ),
        "## What a request takes",
        "A first request waits for the copy from the registry, the trial in a process of its own, and the load. A "
        "version that was let go of needs the load only. Nothing in an answer says that it had to wait for one, so of "
        "the changing traffic the slowest requests are taken, as many as there were loads.",
        _table(
            ("request for", "requests", "p50 ms", "p99 ms", "longest ms"),
            [_cells("a version never seen before", run.first), _cells("one that was let go of", run.reloads),
             _cells("one in memory", run.hits)],
        ),
        "## The own model meanwhile",
        "Latencies count from when a request was due, so that a stall is seen in full.",
        _table(
            ("stream", "seconds", "requests", "failed", "p50 ms", "p99 ms", "longest ms", "p99 against alone"),
            [
                [steady.what, steady.seconds, steady.latencies.requests, steady.failed, steady.latencies.p50_ms,
                 steady.latencies.p99_ms, steady.latencies.longest_ms,
                 f"{steady.latencies.p99_ms / alone.p99_ms:.2f}" if alone.p99_ms else "—"]
                for steady in run.steady
            ],
        ),
        "## Memory of the model replica",
        _table(("when", "resident MiB"), [[memory.when, memory.replica_mib] for memory in run.memory]),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _machine(run: ManyModelsRun) -> str:
    machine = run.machine
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {machine.system}, Python {machine.python}; "
        f"load before: {machine.load_before}. Code {run.code}, {run.started_at}, {run.seconds:.0f} s."
    )


def _cells(what: str, latencies: Latencies) -> list[object]:
    return [what, latencies.requests, latencies.p50_ms, latencies.p99_ms, latencies.longest_ms]


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(render(ManyModelsRun.model_validate_json(JSON_FILE.read_text())))
