"""Simulates rollouts, and writes `docs/statistics.md`.

    python -m tests.simulations.rollouts [--quick]

It needs some minutes of two cores. The same seed gives the same figures, however many cores there are.
"""

import os
import platform
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from tests.benchmarks import machine
from tests.simulations import plots, report
from tests.simulations.figures import Found, SimulationRun, summed_up
from tests.simulations.scenarios import (
    ANALYSIS,
    BASE_ERROR_RATE,
    CANARY_REQUESTS,
    EQUAL,
    EQUAL_HALVES,
    ERRORS_AT_MARGIN,
    HARMFUL,
    LATENCY_AT_MARGIN,
    N_LOOKS,
    Scenario,
)
from tests.simulations.simulated import Course, run

SEED = 20_260_206
N_EQUAL = 10_000
N_EQUAL_HALVES = 1_000
N_AT_MARGIN = 2_000
N_HARMFUL = 1_000
CHUNK = 25
QUICK_DIVISOR = 50
SMOKE_DIRECTORY = Path(".bench/statistics")

console = Console(soft_wrap=True, highlight=False, markup=False)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Smoke run: few rollouts, docs stay as they are.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = SEED,
    processes: Annotated[int, typer.Option(help="How many at once; default: one a core.")] = 0,
) -> None:
    """Simulate, and write the figures, the plots and the page."""
    began_s, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    sizes = [(EQUAL, N_EQUAL), (EQUAL_HALVES, N_EQUAL_HALVES), (ERRORS_AT_MARGIN, N_AT_MARGIN)]
    sizes += [(LATENCY_AT_MARGIN, N_AT_MARGIN), *((harmful, N_HARMFUL) for harmful in HARMFUL)]
    divisor = QUICK_DIVISOR if quick else 1
    found = []
    with ProcessPoolExecutor(processes or os.cpu_count() or 1) as pool:
        for number, (scenario, n) in enumerate(sizes):
            found.append(simulate(scenario, n // divisor, pool, seed=seed, number=number))
            console.print(f"{scenario.name}: {n // divisor:,} rollouts, {time.monotonic() - began_s:.0f} s so far")
    whole = SimulationRun(
        started_at=started_at,
        command="python -m tests.simulations.rollouts" + (" --quick" if quick else ""),
        code=machine.commit(),
        machine=f"{os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}",
        seconds=round(time.monotonic() - began_s),
        seed=seed,
        alpha=ANALYSIS.alpha,
        side_alpha=ANALYSIS.side_alpha,
        looks=N_LOOKS,
        canary_requests=CANARY_REQUESTS,
        base_error_rate=BASE_ERROR_RATE,
        found=tuple(found),
    )
    directory = SMOKE_DIRECTORY if quick else report.DOCS
    plots.draw(whole, directory)
    console.print(f"wrote {report.write(whole, directory)} after {whole.seconds:.0f} s")


def simulate(scenario: Scenario, n: int, pool: Executor, *, seed: int, number: int) -> Found:
    """Simulate n rollouts; the seed of each follows from `seed`, the number of the scenario and its own."""
    starts = range(0, n, CHUNK)
    chunks = pool.map(_chunk, *zip(*((scenario, seed, number, k, min(k + CHUNK, n)) for k in starts), strict=True))
    courses = [course for chunk in chunks for course in chunk]
    return summed_up(scenario, courses, [metric.name for metric in ANALYSIS.metrics])


def _chunk(scenario: Scenario, seed: int, number: int, begin: int, end: int) -> list[Course]:
    return [run(scenario, np.random.default_rng((seed, number, k))) for k in range(begin, end)]


if __name__ == "__main__":
    typer.run(main)
