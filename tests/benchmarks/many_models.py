"""Measures one family that serves many registered models by name, and writes `docs/many-models.md`.

    python -m tests.benchmarks.many_models [--quick]

A real MLflow server and a real server of ours are started for it on this machine and stopped after it. Requests choose
models by a Zipf-like law whose order is shuffled again and again, so what is used most keeps changing. Beside them a
steady stream asks for the family's own model: alone, beside requests for loaded models, and while models are loaded.
"""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console

from serve_app.cli import processes
from tests.benchmarks import machine, many_models_report
from tests.benchmarks.many_models_report import Latencies, ManyModelsRun, Memory, Steady
from tests.integration.many_models import BODY, FAMILY, OWN_MODEL, ManyModels, running
from tests.integration.registry import register_copies
from tests.mlflow_server import MlflowServer, free_port
from tests.traffic import Traffic

STATE_DIR = Path(".serve-app/bench-many-models")
N_MODELS, N_VERSIONS, N_RESIDENT, N_TREES = 20, 5, 20, 100
EXPONENT = 1.1
SHUFFLE_EVERY = 150
"""Requests after which other models become the ones that are asked for most."""
CLIENT_PER_S = 20.0
STEADY_PER_S = 200.0
FIRST_REQUESTS_AT_MOST_S = 100.0
STEADY_CONNECTIONS = 4
MODEL_REPLICA = f"ray::ServeReplica:serve-app:{FAMILY}-cpu"

console = Console(soft_wrap=True, highlight=False, markup=False)
Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for a model by name."""

    seconds: float
    status: int


def main(
    state_dir: Annotated[Path, typer.Option(help="Where the servers of this run keep their state.")] = STATE_DIR,
    quick: Annotated[bool, typer.Option("--quick", help="Smoke run: short windows, docs stay as they are.")] = False,
) -> None:
    """Measure, and write the figures and the page."""
    load_before, began_s = os.getloadavg()[0], time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    directory = state_dir.resolve()
    shutil.rmtree(directory, ignore_errors=True)
    with registry(directory / "mlflow") as mlflow:
        names = publish(mlflow)
        console.print(f"{N_MODELS} models of {N_VERSIONS} versions registered")
        with running(directory, mlflow, max_versions=N_RESIDENT, interval_s=30.0) as server:
            measured = measure(server, names, window_s=4.0 if quick else 12.0)
    run = ManyModelsRun(
        started_at=started_at,
        command="python -m tests.benchmarks.many_models" + (" --quick" if quick else ""),
        code=machine.commit(),
        machine=machine.describe("", load_before),
        seconds=round(time.monotonic() - began_s),
        models=N_MODELS,
        versions=N_VERSIONS,
        resident=N_RESIDENT,
        trees=N_TREES,
        exponent=EXPONENT,
        shuffle_every=SHUFFLE_EVERY,
        client_per_s=CLIENT_PER_S,
        steady_per_s=STEADY_PER_S,
        **measured,
    )
    json_file, page = many_models_report.write(run, directory if quick else None)
    console.print(f"wrote {page.name} from {json_file.name} after {run.seconds:.0f} s")


@contextmanager
def registry(directory: Path) -> Iterator[MlflowServer]:
    """Run an MLflow server for as long as the block runs."""
    mlflow = MlflowServer(directory, free_port())
    mlflow.start()
    try:
        yield mlflow
    finally:
        mlflow.kill()


def publish(mlflow: MlflowServer) -> list[Name]:
    """Register the family's own model and the others; the versions of a model share their files in the registry."""
    from mlflow.models import infer_signature
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    rows, species = load_iris(return_X_y=True, as_frame=True)
    rows.columns = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    forest = RandomForestClassifier(N_TREES, random_state=0).fit(rows, species)
    signature = infer_signature(rows, forest.predict(rows))
    mlflow.register(OWN_MODEL, forest, alias="champion", signature=signature)
    names = []
    for i in range(N_MODELS):
        model = f"zoo-{i:02}"
        first = mlflow.register(model, forest, signature=signature)
        names += [(model, version) for version in (first, *register_copies(mlflow, model, N_VERSIONS - 1))]
    return names


def measure(server: ManyModels, names: Sequence[Name], *, window_s: float) -> dict[str, Any]:
    """Measure the stream for the own model alone, beside first requests, beside warm models and beside loads."""
    dice = random.Random(1)
    memory = [memory_of(server, "one model")]
    alone = steady(server, "alone", lambda: time.sleep(window_s))
    cold: list[Asked] = []
    beside_cold = steady(
        server,
        "beside first requests (copy, trial, load)",
        lambda: cold.extend(ask_each(server, names, FIRST_REQUESTS_AT_MOST_S)),
    )
    names = names[: len(cold)]
    console.print(f"{len(cold)} first requests, {sum(asked.status == 200 for asked in cold)} answered well")
    warm_names = names[-(N_RESIDENT - 1) :]
    for name in warm_names:
        ask(server, name)
    memory.append(memory_of(server, f"{N_RESIDENT} models, after {len(names)} loads"))
    warm: list[Asked] = []
    beside_warm = steady(
        server,
        "beside requests for loaded models",
        lambda: warm.extend(ask_by_chance(server, warm_names, dice, window_s)),
    )
    mixed: list[Asked] = []
    loads, evictions = counted(server)
    beside_loads = steady(
        server,
        "beside changing traffic that loads models",
        lambda: mixed.extend(ask_by_chance(server, names, dice, 2 * window_s)),
    )
    loads_after, evictions_after = counted(server)
    memory.append(memory_of(server, f"{N_RESIDENT} models, after the changing traffic"))
    # Nothing in an answer says that it had to wait for a load: the slowest ones are taken, as many as were loaded.
    n_loads = loads_after - loads
    slowest = sorted(mixed, key=lambda asked: asked.seconds, reverse=True)
    return {
        "steady": (alone, beside_warm, beside_loads, beside_cold),
        "first": latencies(cold),
        "reloads": latencies(slowest[:n_loads]),
        "hits": latencies(slowest[n_loads:]),
        "hit_rate": round(1 - n_loads / len(mixed), 4),
        "not_ok": sum(asked.status != 200 for asked in (*cold, *warm, *mixed)),
        "loads": n_loads,
        "evictions": evictions_after - evictions,
        "most_resident": int(server.metric("serve_app_resident_versions", family=FAMILY)),
        "memory": tuple(memory),
    }


def steady(server: ManyModels, what: str, work: Callable[[], object]) -> Steady:
    """Let the stream for the own model flow while `work` is done."""
    with Traffic.started(server.url, BODY, connections=STEADY_CONNECTIONS, rate=STEADY_PER_S) as traffic:
        time.sleep(1.0)
        from_s = time.monotonic()
        work()
        until_s = time.monotonic()
    answers = traffic.between(from_s, until_s)
    seconds = sorted(answer.latency_s for answer in answers)
    made = Steady(
        what=what,
        seconds=round(until_s - from_s, 1),
        failed=sum(answer.status != 200 for answer in answers),
        latencies=quantiles(seconds),
    )
    console.print(f"steady {what}: {made.latencies}")
    return made


def ask(server: ManyModels, name: Name) -> Asked:
    """Ask a model by name."""
    started_s = time.perf_counter()
    answer = server.ask(*name)
    return Asked(time.perf_counter() - started_s, answer.status_code)


def ask_each(server: ManyModels, names: Sequence[Name], at_most_s: float) -> Iterator[Asked]:
    """Ask one model after the other; no more once the time is over."""
    until_s = time.monotonic() + at_most_s
    for name in names:
        if time.monotonic() < until_s:
            yield ask(server, name)


def ask_by_chance(server: ManyModels, names: Sequence[Name], dice: random.Random, seconds: float) -> Iterator[Asked]:
    """Ask one model after the other at a rate, the first of an order most; the order changes now and then."""
    order = list(names)
    weights = [1 / (place + 1) ** EXPONENT for place in range(len(order))]
    began_s = time.monotonic()
    i = 0
    while (due_s := began_s + i / CLIENT_PER_S) < began_s + seconds:
        if i % SHUFFLE_EVERY == 0:
            dice.shuffle(order)
        time.sleep(max(due_s - time.monotonic(), 0.0))
        yield ask(server, dice.choices(order, weights)[0])
        i += 1
        if time.monotonic() > began_s + 2 * seconds:  # far behind: the rate is more than loads allow
            return


def counted(server: ManyModels) -> tuple[int, int]:
    """Return how many loads on demand and how many evictions there were."""
    loads = server.metric("serve_app_demands_total", family=FAMILY, result="loaded")
    return int(loads), int(server.metric("serve_app_cache_evictions_total", family=FAMILY))


def memory_of(server: ManyModels, when: str) -> Memory:
    """Read the resident memory of the model replica."""
    replicas = [
        process for process in processes.find(server.instance.record.runtime_dir) if MODEL_REPLICA in shown(process)
    ]
    return Memory(when=when, replica_mib=round(sum(replica.memory_info().rss for replica in replicas) / 2**20, 1))


def shown(process: psutil.Process) -> str:
    """Return the title that a process of Ray gives itself."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def latencies(asked: Sequence[Asked]) -> Latencies:
    """Sum up what requests took."""
    return quantiles(sorted(one.seconds for one in asked))


def quantiles(seconds: Sequence[float]) -> Latencies:
    """Sum up sorted seconds."""

    def at(share: float) -> float:
        return round(seconds[min(int(share * len(seconds)), len(seconds) - 1)] * 1e3, 2) if seconds else 0.0

    return Latencies(requests=len(seconds), p50_ms=at(0.5), p99_ms=at(0.99), longest_ms=at(1.0))


if __name__ == "__main__":
    typer.run(main)
