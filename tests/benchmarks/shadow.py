"""Measures what live requests notice of a shadow that gets copies of all of them; writes `docs/shadow.md`.

python -m tests.benchmarks.shadow [--quick]
"""

import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console

from serve_app.cli import processes
from tests.benchmarks import machine, shadow_report, wrk
from tests.benchmarks.reload_changes import Effort, peak
from tests.benchmarks.reload_server import BODY, FAMILY, ReloadServer
from tests.benchmarks.shadow_report import Copies, FullRate, HalfRate, Idle, ShadowRun
from tests.benchmarks.splits import TWIN, rolled_out, twins
from tests.benchmarks.wrk import Request, put_under_load
from tests.traffic import Answer, Traffic, quantile

STATE_DIR = Path(".serve-app/bench-shadow")
CONNECTIONS = 32
SHARE_OF_PEAK = 0.5
SETTLE_S = 1.0
NOTHING = Copies(sent=0, failed=0, dropped=0)
PLAN = {"strategy": "shadow", "shadow_first": {"hold_s": 86_000, "sample": 100}}

console = Console(soft_wrap=True, highlight=False, markup=False)


def main(
    state_dir: Annotated[Path, typer.Option(help="Where this run keeps its state.")] = STATE_DIR,
    quick: Annotated[bool, typer.Option("--quick", help="Smoke run: one short round, docs stay as they are.")] = False,
) -> None:
    """Measure, and write the figures and the page."""
    load_before, began_s = os.getloadavg()[0], time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    directory = state_dir.resolve()
    rounds, seconds, idle_s = (1, 2, 2) if quick else (20, 2, 15)
    with twins(directory) as server:
        found = peak(server, connections=CONNECTIONS, effort=Effort(attempts=1, peak_s=seconds))
        rate = SHARE_OF_PEAK * found.driver_per_s
        console.print(f"peak: {found.wrk_per_s:,.0f}/s by wrk, {found.driver_per_s:,.0f}/s by the driver")
        without = cores(server, idle_s)
        with rolled_out(server, PLAN, family=TWIN):
            idle = Idle(without_cores=without, with_cores=cores(server, idle_s))
            console.print(f"{idle}")
            half, full = measure_rounds(server, rate, rounds=rounds, seconds=seconds)
    run = ShadowRun(
        started_at=started_at, command=shadow_report.COMMAND + (" --quick" if quick else ""), code=machine.commit(),
        machine=machine.describe(wrk.version(), load_before), seconds=round(time.monotonic() - began_s),
        connections=CONNECTIONS, peak_per_s=found.wrk_per_s, half_per_s=rate, half=half, full=full, idle=idle,
    )  # fmt: skip
    json_file, page = shadow_report.write(run, directory if quick else None)
    console.print(f"wrote {page.name} from {json_file.name} after {run.seconds:.0f} s")


def measure_rounds(
    server: ReloadServer, rate: float, *, rounds: int, seconds: int
) -> tuple[tuple[HalfRate, ...], tuple[FullRate, ...]]:
    """Ask two families of one server in turn, which differ in nothing but that one of them has a shadow.

    The machine's speed changes within seconds, so windows are short and each round has both; which comes first changes.
    """
    half, full = [], []
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder, "body.json")
        body.write_bytes(BODY)
        urls = {False: server.url, True: server.url.replace(FAMILY, TWIN)}
        for round_ in range(rounds):
            order = (True, False) if round_ % 2 else (False, True)
            before = copies(server)
            answers = {is_shadowed: at_rate(urls[is_shadowed], rate, seconds) for is_shadowed in order}
            between = copies(server)
            loads = {
                is_shadowed: put_under_load(Request(urls[is_shadowed], body), connections=CONNECTIONS, seconds=seconds)
                for is_shadowed in order
            }
            half.append(_half(answers[False], answers[True], between.since(before)))
            full.append(
                FullRate(
                    without_per_s=loads[False].good_per_s, with_per_s=loads[True].good_per_s,
                    failed=sum(load.error_count for load in loads.values()), copies=copies(server).since(between),
                )
            )  # fmt: skip
            console.print(f"p99 × {half[-1].ratio:.2f}, throughput × {full[-1].ratio:.2f}: {half[-1]} {full[-1]}")
    return tuple(half), tuple(full)


def at_rate(url: str, rate: float, seconds: int) -> list[Answer]:
    """Send requests at fixed times, and return the answers of a window."""
    with Traffic.started(url, BODY, connections=CONNECTIONS, rate=rate) as traffic:
        time.sleep(SETTLE_S)
        start_s = time.monotonic()
        time.sleep(seconds)
        end_s = time.monotonic()
    return traffic.between(start_s, end_s)


def copies(server: ReloadServer) -> Copies:
    """Return what became of the copies since the shadow began."""
    told = server.http.get(f"/admin/rollouts/{TWIN}/shadow", headers=server.admin)
    if told.status_code == 404:  # no gateway has told of it yet
        return NOTHING
    diff: dict[str, Any] = told.json()["diff"]
    return Copies(sent=diff["copied"], failed=diff["failed"], dropped=diff["dropped"])


def cores(server: ReloadServer, seconds: float) -> float:
    """Return how many cores all processes of the server use while nobody asks it anything."""
    before = _processor_times(server)
    time.sleep(seconds)
    after = _processor_times(server)
    return sum(used_s - before[pid] for pid, used_s in after.items() if pid in before) / seconds


def _processor_times(server: ReloadServer) -> dict[int, float]:
    """Return the processor time of each process of the server so far, in seconds."""
    found = {}
    for process in processes.find(server.instance.record.runtime_dir):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        found[process.pid] = times.user + times.system
    return found


def _half(without: list[Answer], shadowed: list[Answer], sent: Copies) -> HalfRate:
    return HalfRate(
        without_p50_ms=1e3 * quantile(without, 0.5), without_p99_ms=1e3 * quantile(without, 0.99),
        with_p50_ms=1e3 * quantile(shadowed, 0.5), with_p99_ms=1e3 * quantile(shadowed, 0.99),
        failed=sum(answer.status != 200 for answer in [*without, *shadowed]), copies=sent,
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
