"""Measures what live requests notice of a shadow that gets copies of all of them; writes `docs/shadow.md`.

python -m tests.benchmarks.shadow [--quick]
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from serve_app.domain.rollout_state import Phase
from tests.benchmarks import machine, shadow_report, wrk
from tests.benchmarks.measurements import Load
from tests.benchmarks.reload_changes import Effort, peak
from tests.benchmarks.reload_server import BODY, FAMILY, ReloadServer, our_server, wait_until
from tests.benchmarks.servers import ServerFailedError
from tests.benchmarks.shadow_report import Copies, FullRate, HalfRate, ShadowRun
from tests.benchmarks.wrk import Request, put_under_load
from tests.traffic import Answer, Traffic, quantile

STATE_DIR = Path(".serve-app/bench-shadow")
CANDIDATE = "v2"
CONNECTIONS = 32
SHARE_OF_PEAK = 0.5
SETTLE_S = 1.0
MOVED_WITHIN_S = 60.0
PLAN = {
    "strategy": "shadow", "shadow_first": {"hold_s": 86_000, "sample": 100}, "analysis": None, "deadline_s": 86_400,
}  # fmt: skip
OVER = {phase.value for phase in Phase if phase.is_over}

console = Console(soft_wrap=True, highlight=False, markup=False)


def main(
    state_dir: Annotated[Path, typer.Option(help="Where this run keeps its state.")] = STATE_DIR,
    quick: Annotated[bool, typer.Option("--quick", help="Smoke run: one short round, docs stay as they are.")] = False,
) -> None:
    """Measure, and write the figures and the page."""
    load_before, began_s = os.getloadavg()[0], time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    directory = state_dir.resolve()
    rounds, seconds = (1, 2) if quick else (9, 3)
    half, full = [], []
    with our_server(directory) as server, tempfile.TemporaryDirectory() as folder:
        server.write(CANDIDATE)
        body = Path(folder, "body.json")
        body.write_bytes(BODY)
        found = peak(server, connections=CONNECTIONS, effort=Effort(attempts=1, peak_s=seconds))
        rate = SHARE_OF_PEAK * found.driver_per_s
        console.print(f"peak: {found.wrk_per_s:,.0f}/s by wrk, {found.driver_per_s:,.0f}/s by the driver")
        for round_ in range(rounds):
            pair: dict[bool, tuple[list[Answer], Load, Copies, Copies]] = {}
            for is_shadowed in (True, False) if round_ % 2 else (False, True):
                with shadowed(server) if is_shadowed else nullcontext():
                    before = copies(server) if is_shadowed else None
                    answers = at_rate(server, rate, seconds)
                    between = copies(server) if is_shadowed else None
                    load = put_under_load(Request(server.url, body), connections=CONNECTIONS, seconds=seconds)
                    after = copies(server) if is_shadowed else None
                pair[is_shadowed] = answers, load, _since(before, between), _since(between, after)
            half.append(_half(pair[False][0], pair[True][0], pair[True][2]))
            full.append(_full(pair[False][1], pair[True][1], pair[True][3]))
            console.print(f"p99 × {half[-1].ratio:.2f}, throughput × {full[-1].ratio:.2f}: {half[-1]} {full[-1]}")
    run = ShadowRun(
        started_at=started_at, command=shadow_report.COMMAND + (" --quick" if quick else ""), code=machine.commit(),
        machine=machine.describe(wrk.version(), load_before), seconds=round(time.monotonic() - began_s),
        connections=CONNECTIONS, peak_per_s=found.wrk_per_s, half_per_s=rate, half=tuple(half), full=tuple(full),
    )  # fmt: skip
    json_file, page = shadow_report.write(run, directory if quick else None)
    console.print(f"wrote {page.name} from {json_file.name} after {run.seconds:.0f} s")


def at_rate(server: ReloadServer, rate: float, seconds: int) -> list[Answer]:
    """Send requests at fixed times, and return the answers of a window."""
    with Traffic.started(server.url, BODY, connections=CONNECTIONS, rate=rate) as traffic:
        time.sleep(SETTLE_S)
        start_s = time.monotonic()
        time.sleep(seconds)
        end_s = time.monotonic()
    return traffic.between(start_s, end_s)


@contextmanager
def shadowed(server: ReloadServer) -> Iterator[None]:
    """Have the candidate get a copy of every request, and nothing else."""
    wish = {"family": FAMILY, "version": CANDIDATE, "plan": PLAN}
    told = server.http.post("/admin/rollouts", json=wish, headers=server.admin)
    if not told.is_success:
        raise ServerFailedError(f"the shadow was refused: {told.text}")
    _await(server, {Phase.SHADOW.value})
    try:
        yield
    finally:
        server.http.post(f"/admin/rollouts/{FAMILY}/abort", headers=server.admin)
        _await(server, OVER)


def copies(server: ReloadServer) -> Copies:
    """Return what became of the copies since the shadow began."""
    told = server.http.get(f"/admin/rollouts/{FAMILY}/shadow", headers=server.admin)
    if told.status_code == 404:  # no gateway has told of it yet
        return Copies(sent=0, failed=0, dropped=0)
    diff: dict[str, Any] = told.json()["diff"]
    return Copies(sent=diff["copied"], failed=diff["failed"], dropped=diff["dropped"])


def _since(before: Copies | None, after: Copies | None) -> Copies:
    if before is None or after is None:
        return Copies(sent=0, failed=0, dropped=0)
    return Copies(
        sent=after.sent - before.sent, failed=after.failed - before.failed, dropped=after.dropped - before.dropped
    )


def _half(without: list[Answer], shadowed_: list[Answer], sent: Copies) -> HalfRate:
    return HalfRate(
        without_p50_ms=1e3 * quantile(without, 0.5), without_p99_ms=1e3 * quantile(without, 0.99),
        with_p50_ms=1e3 * quantile(shadowed_, 0.5), with_p99_ms=1e3 * quantile(shadowed_, 0.99),
        failed=sum(answer.status != 200 for answer in [*without, *shadowed_]), copies=sent,
    )  # fmt: skip


def _full(without: Load, shadowed_: Load, sent: Copies) -> FullRate:
    return FullRate(
        without_per_s=without.good_per_s, with_per_s=shadowed_.good_per_s,
        failed=without.error_count + shadowed_.error_count, copies=sent,
    )  # fmt: skip


def _await(server: ReloadServer, phases: set[str]) -> None:
    def is_so() -> bool:
        told: dict[str, Any] = server.http.get(f"/admin/rollouts/{FAMILY}", headers=server.admin).json()
        return told["state"]["phase"] in phases

    if not wait_until(is_so, timeout_s=MOVED_WITHIN_S):
        raise ServerFailedError(f"the rollout was not {' or '.join(sorted(phases))} within {MOVED_WITHIN_S:.0f} s")


if __name__ == "__main__":
    typer.run(main)
