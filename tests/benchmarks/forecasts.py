"""Measures a temporal family on a real server, and writes `docs/forecasts.md`.

    python -m tests.benchmarks.forecasts [--quick]

Untrained weights do: what a forecast says is measured by `training.train_tft`, what it takes is measured here.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import orjson
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

from serve_app.adapters.loaders.tft.torch_loader import TorchLoader
from serve_app.adapters.sources.local_directory import LocalDirectorySource
from serve_app.adapters.window_journal import WindowJournal
from serve_app.domain.windows import Metric, Record, WindowRules
from tests.benchmarks import forecasts_report, machine
from tests.benchmarks.forecasts_report import Fed, ForecastsRun, Kept, Passes, Reloads, Restart
from tests.integration import fleet
from tests.integration.fleet import Dashboard, Feeder, FleetServer

STATE_DIR = Path(".serve-app/bench-forecasts")
VERSIONS = ("tft_model_20260101_000000", "tft_model_20260102_000000")
ENCODER, STEP_S = 288, 300
CONNECTIONS, BATCH, JOURNAL_BATCH = 4, 1000, 500
N_FEW = 50
N_RELOADS = 30

console = Console(soft_wrap=True, highlight=False, markup=False)


def main(
    state_dir: Annotated[Path, typer.Option(help="Where this run keeps its state.")] = STATE_DIR,
    quick: Annotated[bool, typer.Option("--quick", help="Smoke run: small figures, docs stay as they are.")] = False,
) -> None:
    """Measure, and write the figures and the page."""
    load_before, began_s = os.getloadavg()[0], time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    directory = state_dir.resolve()
    shutil.rmtree(directory, ignore_errors=True)
    root = directory / "state" / "models" / "tft"
    for seed, version in enumerate(VERSIONS):
        train(root, version, seed=seed)
    kept = measure_table(directory / "table", entities=500 if quick else 10_000)
    console.print(f"table: {kept}")
    with fleet.running(directory, encoder=ENCODER) as server:
        fed, passes = measure_passes(server, root, servers=50 if quick else 1000, rounds=3 if quick else 7)
        console.print(f"{fed}\n{passes}")
    shutil.rmtree(directory / "state" / "windows")
    with fleet.running(directory, encoder=ENCODER) as server:
        reloads, restart = measure_changes(server, n_reloads=4 if quick else N_RELOADS)
        console.print(f"{reloads}\n{restart}")
    run = ForecastsRun(
        started_at=started_at, command=forecasts_report.COMMAND + (" --quick" if quick else ""),
        code=machine.commit(), machine=machine.describe("", load_before), seconds=round(time.monotonic() - began_s),
        kept=kept, fed=fed, passes=passes, restart=restart, reloads=reloads,
    )  # fmt: skip
    json_file, page = forecasts_report.write(run, directory if quick else None)
    console.print(f"wrote {page.name} from {json_file.name} after {run.seconds:.0f} s")


def train(root: Path, version: str, *, seed: int) -> None:
    """Publish a version of the demo's size after one step of training."""
    options = f"--servers 20 --days 7 --epochs 1 --batches 1 --threads 1 --seed {seed} --model-version {version}"
    done = subprocess.run(
        [sys.executable, "-m", "training.train_tft", "--out", str(root), *options.split()],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def measure_table(directory: Path, *, entities: int) -> Kept:
    """Fill a table and its journal with whole windows, and start again from what lies on the disk."""
    metrics = ("a", "b", "c", "d")
    rules = WindowRules(tuple(map(Metric, metrics)), length=ENCODER, step_s=STEP_S)
    journal = WindowJournal(directory, rules)
    table = journal.open()
    names = [f"srv-{i:05}" for i in range(entities)]

    def put(batch: list[Record]) -> None:
        journal.append(batch)
        for record in batch:
            table.put(record)

    began_s = time.perf_counter()
    for step in range(ENCODER):
        for first in range(0, entities, JOURNAL_BATCH):
            put([_record(name, step, metrics) for name in names[first : first + JOURNAL_BATCH]])
    rate = entities * ENCODER / (time.perf_counter() - began_s)
    compact_s = _timed(lambda: journal.compact(table.image()))
    journal.close()
    open_image_s = _open_s(directory, rules)
    replayed = 0
    journal = WindowJournal(directory, rules)
    table = journal.open()
    while journal.journal_bytes < 16 << 20:
        step = ENCODER + replayed // entities
        put([_record(name, step, metrics) for name in names[:JOURNAL_BATCH]])
        replayed += JOURNAL_BATCH
    journal.close()
    return Kept(
        entities=entities, steps=ENCODER, metrics=len(metrics), records=entities * ENCODER, records_per_s=rate,
        memory_mib=table.memory_bytes / 2**20, compact_s=compact_s, open_image_s=open_image_s,
        replayed_records=replayed, open_replay_s=_open_s(directory, rules),
    )  # fmt: skip


def _open_s(directory: Path, rules: WindowRules) -> float:
    journal = WindowJournal(directory, rules)
    seconds = _timed(journal.open)
    journal.close()
    return seconds


def _record(name: str, step: int, metrics: tuple[str, ...]) -> Record:
    return Record(name, step * STEP_S + 1.0, dict.fromkeys(metrics, float(step)))


def _timed(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def measure_passes(server: FleetServer, root: Path, *, servers: int, rounds: int) -> tuple[Fed, Passes]:
    """Feed whole windows, then ask for all forecasts and have torch alone compute the same, in turn."""
    names = [f"srv-{i:05}" for i in range(servers)]
    first_step = int(time.time()) // STEP_S - 2 * ENCODER
    began_s = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as senders:
        clients = [
            httpx.Client(base_url=server.instance.address, trust_env=False, timeout=60) for _ in range(CONNECTIONS)
        ]
        parts = [names[i::CONNECTIONS] for i in range(CONNECTIONS)]
        list(
            senders.map(
                lambda pair: send_steps(pair[0], pair[1], first_step, ENCODER), zip(clients, parts, strict=True)
            )
        )
    fed = Fed(
        servers=servers, records=servers * ENCODER, batch=BATCH, connections=CONNECTIONS,
        records_per_s=servers * ENCODER / (time.perf_counter() - began_s),
    )  # fmt: skip
    predictor = TorchLoader().load(LocalDirectorySource(root).fetch("current"))
    windows, ends, numbers = arrays(names, first_step)
    taken: dict[str, list[float]] = {"served": [], "repeated": [], "one": [], "two": []}
    with httpx.Client(base_url=server.instance.address, trust_env=False, timeout=60) as http:
        for i in range(rounds):
            send_steps(http, names[:1], first_step + ENCODER + i, 1)
            told, seconds = _asked(http)
            taken["served"].append(seconds)
            taken["repeated"].append(_asked(http)[1])
            for threads, key in ((1, "one"), (2, "two")):
                torch.set_num_threads(threads)
                taken[key].append(_timed(lambda: predictor.forecaster.forecast(windows, ends, numbers)))
    ms = {key: statistics.median(seconds) * 1e3 for key, seconds in taken.items()}
    assert len(told.json()["predictions"]) == servers
    return fed, Passes(
        servers=servers, rounds=rounds, served_ms=ms["served"], bare_one_thread_ms=ms["one"],
        bare_two_threads_ms=ms["two"], body_mib=len(told.content) / 2**20, repeated_ms=ms["repeated"],
    )  # fmt: skip


def _asked(http: httpx.Client) -> tuple[httpx.Response, float]:
    began_s = time.perf_counter()
    told = http.get("/predictions/current")
    seconds = time.perf_counter() - began_s
    assert told.status_code == 200, told.text[:500]
    return told, seconds


def send_steps(http: httpx.Client, names: list[str], first_step: int, n_steps: int) -> None:
    """Send `n_steps` steps of some servers, at most `BATCH` records a request."""
    for records in _batches(names, first_step, n_steps):
        told = http.post("/observations", content=orjson.dumps(records))
        assert told.status_code == 200, told.text[:500]


def _batches(names: list[str], first_step: int, n_steps: int) -> Iterator[list[dict[str, object]]]:
    batch: list[dict[str, object]] = []
    for step in range(first_step, first_step + n_steps):
        for i, name in enumerate(names):
            values = dict(zip(fleet.METRICS, _values(i, step), strict=True))
            batch.append({"server": name, "timestamp": step * STEP_S, "metrics": values})
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _values(i: int, step: int) -> tuple[float, float, float]:
    return 50 + 40 * float(np.sin(step / 46 + i)), 30.0 + i % 50, 5.0 + i % 7


def arrays(names: list[str], first_step: int) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
    """Return what the forecaster takes: windows, times of their ends, numbers of the servers."""
    steps = range(first_step, first_step + ENCODER)
    windows = np.array([[_values(i, step) for step in steps] for i in range(len(names))], np.float32)
    ends = np.full(len(names), (first_step + ENCODER - 1) * STEP_S, np.float64)
    return windows, ends, np.zeros(len(names), np.int64)


def measure_changes(server: FleetServer, *, n_reloads: int) -> tuple[Reloads, Restart]:
    """Change the version again and again, then kill the store, while the fleet is fed and forecast."""
    names = tuple(f"srv-{i:02}" for i in range(N_FEW))
    feeder = Feeder(server.instance.address, names, length=ENCODER)
    feeder.warm_up()
    with feeder.feeding(), Dashboard(server.instance.address).looking() as dashboard:
        for i in range(n_reloads):
            told = server.reload(VERSIONS[(i + 1) % 2])
            assert told["success"] is True, told
            feeder.await_steps(2)
    reloads = Reloads(
        servers=N_FEW, reloads=n_reloads, windows_equal=server.windows(names) == feeder.windows(names),
        steps_fed=feeder.n_steps, retries=feeder.n_retries, forecasts=len(dashboard.answers),
        forecasts_failed=len(dashboard.failed), not_ready_seen=max(each.not_ready for each in dashboard.answers),
        longest_forecast_ms=max(each.seconds for each in dashboard.answers) * 1e3,
    )  # fmt: skip
    after = feeder.again()
    with after.feeding(), Dashboard(server.instance.address).looking() as dashboard:
        after.await_steps(20)
        store = server.process("tft-windows")
        store.kill()
        server.await_another("tft-windows", store)
        after.await_steps(20)
    return reloads, Restart(
        servers=N_FEW, longest_wait_s=after.longest_outage_s, steps_acknowledged=after.n_steps,
        retries=after.n_retries, windows_equal=server.windows(names) == after.windows(names),
        forecasts=len(dashboard.answers), forecasts_failed=len(dashboard.failed),
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
