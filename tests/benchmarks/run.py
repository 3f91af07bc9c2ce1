"""Measures this server against its peers and writes `docs/benchmarks.md`.

    python -m tests.benchmarks.run [--quick] [--only mlserver,litserve] [--ours-url http://127.0.0.1:8000]

Everything runs on this machine and talks over loopback.
"""

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serve_app.domain.errors import ServeAppError
from tests.benchmarks import machine, report, wrk
from tests.benchmarks.contenders import Bench, assemble
from tests.benchmarks.measurements import Run
from tests.benchmarks.peers import PEERS, Peer
from tests.benchmarks.rounds import Plan, measure
from tests.benchmarks.servers import ServerFailedError
from tests.benchmarks.targets import WrongAnswerError

STATE_DIR = Path(".serve-app/bench")
OUR_TARGETS = 3
LONGEST_S = 600
QUICK = Plan(rounds=1, seconds=2, connections=(1, 8, 32, 64))

console = Console(soft_wrap=True, highlight=False, markup=False)


def main(
    state_dir: Annotated[Path, typer.Option(help="Where environments, models and logs are kept.")] = STATE_DIR,
    rounds: Annotated[int, typer.Option(min=1, help="How often each server is visited.")] = 3,
    seconds: Annotated[int, typer.Option(min=1, help="How long each visit is.")] = 4,
    connections: Annotated[str, typer.Option(help="Numbers of connections.")] = "1,8,32,64",
    only: Annotated[str, typer.Option(help="Peers to measure, by name; default: all.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Smoke run: 1 round of 2 s, docs stay as they are.")] = False,
    tune: Annotated[bool, typer.Option(help="Try each peer's settings first and keep its best.")] = True,
    ours_url: Annotated[str | None, typer.Option(help="Measure the server that already runs there.")] = None,
    ours_state_dir: Annotated[Path, typer.Option(help="State directory of the server at --ours-url.")] = Path(
        ".serve-app"
    ),
) -> None:
    """Measure this server against its peers; write the figures and the page."""
    load_before = os.getloadavg()[0]
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    plan = QUICK if quick else Plan(rounds, seconds, tuple(int(number) for number in connections.split(",")))
    bench = Bench(
        state_dir=state_dir.resolve(),
        ours_url=ours_url,
        ours_state_dir=(ours_state_dir if ours_url else state_dir / "ours").resolve(),
        peers=chosen(only),
        tune=tune and not quick,
    )
    expect_bounded(plan, OUR_TARGETS + len(bench.peers))
    try:
        wrk_version = wrk.version()
        contenders, absent = assemble(bench, console.print)
        result = measure(contenders, plan, console.print)
    except (wrk.LoadError, ServerFailedError, WrongAnswerError, ServeAppError) as error:
        console.print(f"error: {error}")
        raise typer.Exit(code=1) from error
    run = Run(
        started_at=started_at,
        command=shown_command(sys.argv[1:]),
        code=machine.commit(),
        machine=machine.describe(wrk_version, load_before),
        rounds=plan.rounds,
        seconds=plan.seconds,
        connections=plan.connections,
        targets=(*result.facts.values(), *absent),
        samples=tuple(result.samples),
    )
    _write(run, bench.state_dir if quick else None)
    if missing := [facts for facts in run.targets if facts.problem is not None]:
        console.print("not measured: " + "; ".join(f"{facts.title}: {facts.problem}" for facts in missing))
        raise typer.Exit(code=1)


def chosen(only: str) -> tuple[Peer, ...]:
    """Return the peers of a comma-separated list of names, all of them for an empty one.

    Raises:
        typer.BadParameter: There is no peer of that name.
    """
    known = {peer.name: peer for peer in PEERS}
    wanted = [name for name in only.split(",") if name]
    if unknown := [name for name in wanted if name not in known]:
        raise typer.BadParameter(f"there is no peer {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(known[name] for name in wanted) if wanted else PEERS


def expect_bounded(plan: Plan, target_count: int) -> None:
    """Refuse a plan that would keep the machine busy for too long.

    Raises:
        typer.BadParameter: The measuring part would take more than ten minutes.
    """
    takes_s = plan.takes_s(target_count)
    if takes_s > LONGEST_S:
        raise typer.BadParameter(
            f"measuring would take {takes_s:.0f} s, at most {LONGEST_S} s: fewer rounds or seconds"
        )


def shown_command(arguments: Sequence[str]) -> str:
    """Write the command line; of a path only its name, since the rest is this machine's."""
    safe = [Path(part).name if part.startswith(("/", "~")) else part for part in arguments]
    return " ".join(["python -m tests.benchmarks.run", *safe])


def _write(run: Run, smoke_directory: Path | None) -> None:
    json_file, page = report.JSON_FILE, report.PAGE
    if smoke_directory is not None:
        json_file, page = smoke_directory / "quick.json", smoke_directory / "quick.md"
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(run.model_dump_json(indent=1) + "\n")
    page.write_text(report.render(run))
    console.print(f"wrote {page} from {json_file}")


if __name__ == "__main__":
    typer.run(main)
