"""Writes the table in `docs/mlflow.md` from `docs/mlflow-figures.json`; nothing in the table comes from elsewhere.

python -m tests.benchmarks.registry_report [JSON] [PAGE]
"""

from pathlib import Path
from typing import Annotated

import typer

from tests.benchmarks.registry_figures import Moves, Outages, RegistryRun
from tests.benchmarks.report import BUSY_LOAD

JSON_FILE = Path("docs/mlflow-figures.json")
PAGE = Path("docs/mlflow.md")
BEGIN, END = "<!-- figures: python -m tests.benchmarks.registry -->", "<!-- end of figures -->"
LONGEST_S = 2.0
"""What a new version may take beyond the interval, or after a webhook."""


class NoMarkersError(Exception):
    """The page has no place for the table."""


def table(run: RegistryRun) -> str:
    """Write what stands between the markers."""
    rows = [
        ("what", "median", "longest", "aim", "met", "failed requests"),
        ("---",) * 6,
        _row(f"alias moved, polled every {run.polling.interval_s:g} s", run.polling, f"interval + {LONGEST_S:g} s"),
        _row("alias moved, told by webhook", run.webhook, f"{LONGEST_S:g} s"),
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    n_moves = len(run.polling.first_answers_s)
    busy = f"; **the machine was not idle**, its load was {run.load_before:g}" if run.load_before > BUSY_LOAD else ""
    said = (
        f"Seconds from the call that moves the alias to the first answer by the new version, {n_moves} moves each to a "
        f"version never seen before, at {run.rate_per_s:g} requests/s. {run.started_at}, code {run.code}, MLflow "
        f"{run.mlflow}, {run.cpu}, {run.cores} cores{busy}."
    )
    return "\n".join([said, "", *lines, "", _outages(run.outages)])


def _row(what: str, moves: Moves, aim: str) -> tuple[str, ...]:
    met = "yes" if moves.beyond_interval_s <= LONGEST_S else "**no**"
    longest = f"{max(moves.first_answers_s):.2f} s"
    return what, f"{moves.median_s:.2f} s", longest, aim, met, f"{moves.failed} of {moves.requests:,}"


def _outages(outages: Outages) -> str:
    storm = "each in one change" if outages.changes == outages.answering else f"**in {outages.changes} changes**"
    end = "the one that the alias names" if outages.is_last_right else "**another than the alias names**"
    return (
        f"The registry killed and started again {outages.kills} times in {outages.seconds:.0f} s, the alias moved "
        f"before each kill: {outages.failed} of {outages.requests:,} requests failed, the longest answer took "
        f"{outages.longest_ms:.0f} ms. {outages.answering} of the {outages.kills} versions were taken up, {storm}; "
        f"the last one is {end}."
    )


def put_into(page: str, text: str) -> str:
    """Return the page with the text between its markers.

    Raises:
        NoMarkersError: It has none.
    """
    begin, end = page.find(BEGIN), page.find(END)
    if begin < 0 or end < begin:
        raise NoMarkersError(f"expected {BEGIN} and {END} in this order")
    return f"{page[: begin + len(BEGIN)]}\n{text}\n{page[end:]}"


def main(
    json_file: Annotated[Path, typer.Argument(help="What a run wrote.")] = JSON_FILE,
    page: Annotated[Path, typer.Argument(help="The page to write into.")] = PAGE,
) -> None:
    """Write the table again from the figures of a run."""
    run = RegistryRun.model_validate_json(json_file.read_text())
    page.write_text(put_into(page.read_text(), table(run)))


if __name__ == "__main__":
    typer.run(main)
