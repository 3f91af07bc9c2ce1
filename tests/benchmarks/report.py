"""Writes `docs/benchmarks.md` from `docs/benchmarks.json`; nothing in the page comes from elsewhere.

python -m tests.benchmarks.report [JSON] [PAGE]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tests.benchmarks.measurements import Kind, Run, TargetFacts
from tests.benchmarks.summary import Row, Verdict, row_of_kind, rows, verdicts

JSON_FILE = Path("docs/benchmarks.json")
PAGE = Path("docs/benchmarks.md")
BUSY_LOAD = 0.5
"""A one-minute load average above this, before anything was started, is said on the page."""


def render(run: Run) -> str:
    """Write the whole page."""
    parts = [
        _introduction(run),
        "## Aims\n",
        _table(("aim", "found", "met"), [_verdict_cells(verdict) for verdict in verdicts(run)]),
    ]
    for connections in run.connections:
        parts += [f"## {_counted(connections, 'connection')}\n", _results(rows(run, connections))]
    parts += ["## How each was set up\n", _setups(run.targets), _trials(run.targets)]
    return "\n".join(part for part in parts if part) + "\n"


def _introduction(run: Run) -> str:
    machine = run.machine
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` from [benchmarks.json](benchmarks.json). Every server has the same forest of 100",
        "trees on iris and must first give scikit-learn's own answers; then it is asked for one row a request. In",
        "each round every server is started, measured alone on the machine at each number of connections for",
        f"{run.seconds} s, and stopped. Each figure is the median of {_counted(run.rounds, 'round')}.",
        "Only good answers count as requests/s. CPU is user and system time of all processes of a server; wrk, with",
        "one thread, runs on the same cores.",
        "",
        f"- {run.started_at}, code {run.code}, `{run.command}`",
        f"- {machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, {machine.system},"
        f" Python {machine.python}, wrk {machine.wrk}",
    ]
    if machine.load_before > BUSY_LOAD:
        lines.append(
            f"- **The machine was not idle**: its load average was {machine.load_before:g} before anything was started."
        )
    return "\n".join([*lines, ""])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _verdict_cells(verdict: Verdict) -> tuple[str, ...]:
    met = {True: "yes", False: "**no**", None: "–"}[verdict.met]
    return verdict.aim, verdict.found, met


def _results(found: Sequence[Row]) -> str:
    ours = row_of_kind(found, Kind.OURS)
    heads = ("server", "requests/s", "spread", "p50 ms", "p99 ms", "CPU s per 1,000", "ours is", "errors")
    return _table(heads, [_result_cells(row, ours) for row in found])


def _result_cells(row: Row, ours: Row | None) -> tuple[str, ...]:
    times = f"{ours.good_per_s / row.good_per_s:.2f} ×" if ours and row.good_per_s else "–"
    return (
        f"**{row.target.title}**" if row.target.kind is Kind.OURS else row.target.title,
        f"{row.good_per_s:,.0f}",
        f"{row.spread:.0%}",
        f"{row.p50_ms:.2f}",
        f"{row.p99_ms:.2f}",
        "–" if row.cpu_s_per_1000 is None else f"{row.cpu_s_per_1000:.2f}",
        "" if row.target.kind is Kind.OURS else times,
        f"**{row.errors:,}**" if row.errors else "0",
    )


def _setups(targets: Sequence[TargetFacts]) -> str:
    heads = ("server", "versions", "configuration", "cores used when idle")
    return _table(
        heads,
        [
            (
                target.title,
                ", ".join(f"{name} {version}" for name, version in target.versions.items()),
                target.configuration if target.problem is None else f"**not measured**: {target.problem}",
                "–" if target.idle_cores is None else f"{target.idle_cores:.2f}",
            )
            for target in targets
        ],
    )


def _trials(targets: Sequence[TargetFacts]) -> str:
    tried = [(target, trial) for target in targets for trial in target.trials]
    if not tried:
        return ""
    counts = sorted({connections for _, trial in tried for connections in trial.good_per_s})
    cells = [
        (
            target.title,
            f"`{trial.setting or 'defaults'}`",
            *(f"{trial.good_per_s[n]:,.0f}" if n in trial.good_per_s else "–" for n in counts),
            trial.problem or "",
        )
        for target, trial in tried
    ]
    heads = ("server", "setting", *(f"requests/s at {connections}" for connections in counts), "problem")
    introduction = (
        "Settings tried for each peer, alone on the machine; the one with the highest product of the figures"
        " was measured.\n"
    )
    return f"### Settings tried\n\n{introduction}\n{_table(heads, cells)}"


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [
        heads,
        ["---"] * len(heads),
        *([text.replace("|", "\\|").replace("\n", " ") for text in row] for row in cells),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(
    json_file: Annotated[Path, typer.Argument(help="What a run wrote.")] = JSON_FILE,
    page: Annotated[Path, typer.Argument(help="The page to write.")] = PAGE,
) -> None:
    """Write the page again from the figures of a run."""
    page.write_text(render(Run.model_validate_json(json_file.read_text())))


if __name__ == "__main__":
    typer.run(main)
