"""Measures what clients notice of a change of version, and writes `docs/reload.md`.

    python -m tests.benchmarks.reload [--quick] [--long] [--many] [--only changes,full,small,peer,kills]

Everything runs on this machine and talks over loopback, in servers started for it and stopped after it.
"""

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from serve_app.domain.errors import ServeAppError
from tests.benchmarks import machine, reload_report, wrk
from tests.benchmarks.measurements import reason
from tests.benchmarks.reload_changes import (
    QUICK,
    SHARE_OF_PEAK,
    THOROUGH,
    Effort,
    all_changes,
    good_ones,
    peak,
    told_of,
)
from tests.benchmarks.reload_figures import Change, ReloadRun
from tests.benchmarks.reload_kills import kill_each
from tests.benchmarks.reload_peer import measure_peer
from tests.benchmarks.reload_series import flips, many_reloads
from tests.benchmarks.reload_server import ReloadServer, layout, our_server
from tests.benchmarks.servers import ServerFailedError

STATE_DIR = Path(".serve-app/bench-reload")
CONNECTIONS = 32
SHARE_FOR_KILLS = 0.4
"""Of the peak of one gateway and one model replica: half of each doubled must carry it, on the same processors."""
MANY_RELOADS = 200
MANY_PER_S = 400.0
PARTS = ("changes", "full", "small", "peer", "kills")

console = Console(soft_wrap=True, highlight=False, markup=False)


def main(
    state_dir: Annotated[Path, typer.Option(help="Where the servers of this run keep their state.")] = STATE_DIR,
    quick: Annotated[bool, typer.Option("--quick", help="Smoke run: short windows, docs stay as they are.")] = False,
    long: Annotated[bool, typer.Option("--long", help=f"Also {MANY_RELOADS} reloads in a row, with memory.")] = False,
    many: Annotated[bool, typer.Option("--many", help="Also 8 model replicas and 4 gateways together.")] = False,
    only: Annotated[str, typer.Option(help="Parts of the run, by name; default: all.")] = ",".join(PARTS),
) -> None:
    """Measure, and write the figures and the page."""
    load_before, began_s = os.getloadavg()[0], time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    parts = set(only.split(","))
    if unknown := parts - set(PARTS):
        raise typer.BadParameter(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    effort = QUICK if quick else THOROUGH
    found: dict[str, Any] = {}
    problem = ""
    try:
        wrk_version = wrk.version()
        _measure(found, state_dir.resolve(), effort, parts, long=long, many=many)
    except (wrk.LoadError, ServerFailedError, ServeAppError, OSError) as error:
        console.print(f"error: {error}")
        problem = reason(error)
        if "peak" not in found:
            raise typer.Exit(code=1) from error
    run = ReloadRun(
        started_at=started_at,
        command=_shown_command(),
        code=machine.commit(),
        machine=machine.describe(wrk_version, load_before),
        seconds=round(time.monotonic() - began_s),
        connections=CONNECTIONS,
        share_of_peak=SHARE_OF_PEAK,
        problem=problem,
        **found,
    )
    is_whole = not quick and not problem and parts == set(PARTS)
    json_file, page = reload_report.write(run, None if is_whole else state_dir)
    console.print(f"wrote {page} from {json_file} after {run.seconds:.0f} s")
    if problem:
        raise typer.Exit(code=1)


def _measure(
    found: dict[str, Any], directory: Path, effort: Effort, parts: set[str], *, long: bool, many: bool
) -> None:
    """Measure the parts one after the other and put each into `found` as soon as it is whole."""
    console.print("this server")
    with our_server(directory / "ours") as server:
        found["peak"] = peak(server, connections=CONNECTIONS, effort=effort)
        driver_per_s = found["peak"].driver_per_s
        console.print(f"  peak: wrk {found['peak'].wrk_per_s}/s, driver {driver_per_s}/s")
        if "changes" in parts:
            rate = SHARE_OF_PEAK * driver_per_s
            console.print(f"changes at {rate:,.0f} requests/s")
            found["at_share"] = tuple(
                all_changes(
                    server, label="share", connections=CONNECTIONS, rate=rate, effort=effort, tell=console.print
                )
            )
        if "full" in parts:
            console.print("changes at full load")
            found["at_full"] = _at_full(server, effort)
        if "small" in parts:
            console.print("a good bundle with one connection")
            found["small_model"] = _small_model(server, effort)
        if long:
            console.print(f"{MANY_RELOADS} reloads in a row")
            found["series"] = tuple(many_reloads(server, MANY_RELOADS, tell=console.print))
        if "kills" in parts:
            console.print("kill -9, with 2 model replicas and 2 gateways")
            server.deploy(_config_file(directory, "two", model_replicas=2, gateways=2, num_cpus=0.1))
            rate = SHARE_FOR_KILLS * driver_per_s
            found["kills"] = tuple(kill_each(server, connections=CONNECTIONS, rate=rate, tell=console.print))
            found["kill_layout"] = "2 model replicas, 2 gateways"
        if many:
            console.print("8 model replicas and 4 gateways")
            server.deploy(_config_file(directory, "many", model_replicas=8, gateways=4, num_cpus=0.01))
            found["flips"] = tuple(flips(server, connections=CONNECTIONS, rate=MANY_PER_S, tell=console.print))
            found["flip_layout"] = "8 model replicas, 4 gateways"
    if "peer" in parts:
        console.print("plain Ray Serve")
        found["peer"] = tuple(
            measure_peer(
                directory / "ray", connections=CONNECTIONS, share=SHARE_OF_PEAK, effort=effort, tell=console.print
            )
        )


def _at_full(server: ReloadServer, effort: Effort) -> tuple[Change, ...]:
    once = Effort(attempts=1, peak_s=effort.peak_s)
    return tuple(all_changes(server, label="full", connections=CONNECTIONS, rate=None, effort=once, tell=console.print))


def _small_model(server: ReloadServer, effort: Effort) -> tuple[Change, ...]:
    some = Effort(attempts=effort.attempts, peak_s=effort.peak_s)
    change = good_ones(server, label="small", connections=1, rate=None, effort=some)
    console.print(told_of(change))
    return (change,)


def _config_file(directory: Path, name: str, **replicas: Any) -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(layout(**replicas)))
    return path


def _shown_command() -> str:
    """Write the command line; of a path only its name, since the rest is this machine's."""
    safe = [Path(part).name if part.startswith(("/", "~")) else part for part in sys.argv[1:]]
    return " ".join(["python -m tests.benchmarks.reload", *safe])


if __name__ == "__main__":
    typer.run(main)
