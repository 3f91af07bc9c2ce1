"""Measures how fast a moved alias is followed and what outages of the registry cost; writes into `docs/mlflow.md`.

    python -m tests.benchmarks.registry [--moves 10] [--kills 10]

A server of ours and one of MLflow run on this machine, started for it and stopped after it.
"""

import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tests.benchmarks import machine, registry_report
from tests.benchmarks.registry_figures import Moves, Outages, RegistryRun
from tests.integration import registry
from tests.integration.registry import FLOWERS, HOOKED, INTERVAL_S, RegistryServer, first_answer_s, now_s
from tests.mlflow_server import MlflowServer, free_port, webhook_settings
from tests.traffic import Answer

RATE_PER_S = 100.0
SEED = 11

console = Console(soft_wrap=True, highlight=False, markup=False)


def main(
    moves: Annotated[int, typer.Option(min=1, help="Moves of the alias by polling, and again by webhook.")] = 10,
    kills: Annotated[int, typer.Option(min=1, help="Kills of the registry.")] = 10,
) -> None:
    """Measure, and write the figures and the table."""
    load_before = round(os.getloadavg()[0], 2)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as folder:
        mlflow = MlflowServer(Path(folder, "mlflow"), free_port(), environment=webhook_settings())
        mlflow.start()
        try:
            with registry.running(Path(folder), mlflow) as server:
                polling = _moves(server, FLOWERS, moves, interval_s=INTERVAL_S)
                outages = _outages(server, kills)
                with server.webhook():  # last, for it tells of every model
                    webhook = _moves(server, HOOKED, moves, interval_s=None)
        finally:
            mlflow.kill()
    run = RegistryRun(
        started_at=started_at,
        command=" ".join(["python -m tests.benchmarks.registry", *sys.argv[1:]]),
        code=machine.commit(),
        mlflow=version("mlflow"),
        cpu=machine.cpu_model(Path("/proc/cpuinfo")),
        cores=os.cpu_count() or 1,
        load_before=load_before,
        rate_per_s=RATE_PER_S,
        polling=polling,
        webhook=webhook,
        outages=outages,
    )
    registry_report.JSON_FILE.write_text(run.model_dump_json(indent=1) + "\n")
    registry_report.main(registry_report.JSON_FILE, registry_report.PAGE)
    console.print(registry_report.table(run))


def _moves(server: RegistryServer, family: str, count: int, *, interval_s: float | None) -> Moves:
    """Move an alias at any moment between two looks, each time when the last move has been followed."""
    dice = random.Random(SEED)
    versions = registry.register_copies(server.mlflow, family, count)
    moved_s = []
    with server.traffic(family, rate=RATE_PER_S) as traffic:
        for number in versions:
            time.sleep(dice.uniform(0, INTERVAL_S))  # else all moves would come just after a look
            moved_s.append(now_s())
            server.mlflow.set_alias(family, number)
            server.await_version(family, number)
    taken_s = tuple(
        round(first_answer_s(traffic.answers, number, since_s), 3)
        for number, since_s in zip(versions, moved_s, strict=True)
    )
    console.print(f"{family}: {', '.join(f'{taken:.2f}' for taken in taken_s)} s")
    return Moves(
        interval_s=interval_s, first_answers_s=taken_s, requests=len(traffic.answers), failed=len(traffic.failed())
    )


def _outages(server: RegistryServer, kills: int) -> Outages:
    versions = registry.register_copies(server.mlflow, FLOWERS, kills)
    n_before, began_s = len(server.audit(FLOWERS)), now_s()
    traffic = registry.moved_under_kills(server, versions)
    seconds = now_s() - began_s
    answering = _answering(traffic.answers, versions)
    return Outages(
        kills=kills,
        seconds=round(seconds, 1),
        requests=len(traffic.answers),
        failed=len(traffic.failed()),
        longest_ms=round(1000 * max(answer.latency_s for answer in traffic.answers), 1),
        answering=answering,
        changes=len(server.audit(FLOWERS)) - n_before,
        is_last_right=server.current(FLOWERS) == versions[-1],
    )


def _answering(answers: Sequence[Answer], versions: Sequence[str]) -> int:
    return len({answer.version for answer in answers} & set(versions))


if __name__ == "__main__":
    typer.run(main)
