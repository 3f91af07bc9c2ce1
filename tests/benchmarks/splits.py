"""Measures what a split costs and how well it is kept, on a real server; writes `docs/splits.md`.

python -m tests.benchmarks.splits [--quick]
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from serve_app.domain.rollout_state import Phase
from tests.bad_bundles import write_iris
from tests.benchmarks import machine, routing, splits_report, wrk
from tests.benchmarks.reload_server import (
    ANSWER_WITHIN_S,
    BODY,
    FAMILY,
    ReloadServer,
    afresh,
    layout,
    started,
    wait_until,
)
from tests.benchmarks.servers import ServerFailedError
from tests.benchmarks.splits_report import Decision, Pair, Share, SplitsRun
from tests.benchmarks.wrk import Request, put_under_load
from tests.keyed_traffic import versions_by_key

STATE_DIR = Path(".serve-app/bench-splits")
HEADER = "X-Entity-Id"
WEIGHTS = (1.0, 5.0, 50.0)
CANDIDATE = "v2"
CONNECTIONS = (32, 64)
SPLIT_PERCENT = 10.0
TWIN = "twin"
LOAD_S, WARM_S = 2, 3
KEY_CONNECTIONS = 32
MOVED_WITHIN_S = 60.0
OVER = {phase.value for phase in Phase if phase.is_over}

console = Console(soft_wrap=True, highlight=False, markup=False)


def main(
    state_dir: Annotated[Path, typer.Option(help="Where this run keeps its state.")] = STATE_DIR,
    quick: Annotated[bool, typer.Option("--quick", help="Smoke run: few keys, docs stay as they are.")] = False,
) -> None:
    """Measure, and write the figures and the page."""
    load_before, began_s = os.getloadavg()[0], time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    decisions = tuple(Decision(place=place, best_ns=best, median_ns=mid) for place, best, mid in routing.measured(15))
    directory = state_dir.resolve()
    with twins(directory) as server:
        pairs = tuple(measure_throughput(server, rounds=2 if quick else 30))
        shares = tuple(measure_keys(server, n_keys=2_000 if quick else 100_000))
    run = SplitsRun(
        started_at=started_at, command=splits_report.COMMAND + (" --quick" if quick else ""), code=machine.commit(),
        machine=machine.describe(wrk.version(), load_before), seconds=round(time.monotonic() - began_s),
        decisions=decisions, pairs=pairs, shares=shares,
    )  # fmt: skip
    json_file, page = splits_report.write(run, directory if quick else None)
    console.print(f"wrote {page.name} from {json_file.name} after {run.seconds:.0f} s")


def measure_throughput(server: ReloadServer, *, rounds: int) -> Iterator[Pair]:
    """Put two families of one server under load in turn, which differ in nothing but that one of them has a split.

    The machine's speed changes within seconds, so loads are short and each round has both; which comes first changes.
    """
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder, "body.json")
        body.write_bytes(BODY)
        requests = {False: Request(server.url, body), True: Request(server.url.replace(FAMILY, TWIN), body)}
        with rolled_out(server, {"strategy": "ab", "steps": [{"weight": SPLIT_PERCENT}]}, family=TWIN):
            for request in requests.values():
                put_under_load(request, connections=CONNECTIONS[0], seconds=WARM_S)
            for round_ in range(rounds):
                for connections in CONNECTIONS:
                    order = (True, False) if round_ % 2 else (False, True)
                    loads = {
                        is_split: put_under_load(requests[is_split], connections=connections, seconds=LOAD_S)
                        for is_split in order
                    }
                    pair = Pair(weight=SPLIT_PERCENT, connections=connections, without=loads[False], split=loads[True])
                    console.print(
                        f"{connections} connections: {pair.without.good_per_s:,.0f}/s without, "
                        f"{pair.split.good_per_s:,.0f}/s with a split"
                    )
                    yield pair


@contextmanager
def twins(directory: Path) -> Iterator[ReloadServer]:
    """Start a server that has the same forest twice, as two families; of the second, two versions."""
    afresh(directory)
    models = directory / "state" / "models"
    for family in (FAMILY, TWIN):
        write_iris(models / family, "v1", current=True, family=family)
        write_iris(models / family, CANDIDATE, family=family)
    config = layout()
    families = config["applications"][0]["args"]["families"]
    del families["forecaster"]
    families[TWIN] = {**families[FAMILY], "source": {"root": f"models/{TWIN}"}}
    with (
        started(directory, config) as instance,
        httpx.Client(base_url=instance.address, trust_env=False, timeout=ANSWER_WITHIN_S) as http,
    ):
        yield ReloadServer(instance, http)


def measure_keys(server: ReloadServer, *, n_keys: int) -> Iterator[Share]:
    """Ask for all keys twice at each weight of one rollout."""
    keys = [f"edge-{i:06}" for i in range(n_keys)]
    steps = [{"weight": weight, "hold_s": 3600} for weight in WEIGHTS]
    targeting = {"source": "header", "name": HEADER}
    before: set[int] = set()
    with rolled_out(server, {"strategy": "canary", "steps": steps, "targeting": targeting}):
        for i, weight in enumerate(WEIGHTS):
            if i:
                command(server, "skip")
            _await(lambda weight=weight: told(server).get("weight") == weight, f"weight {weight:g}")
            first, again = (
                versions_by_key(server.url, BODY, keys, header=HEADER, connections=KEY_CONNECTIONS) for _ in range(2)
            )
            now = {j for j, version in enumerate(first) if version == CANDIDATE}
            flipped = sum(one != other for one, other in zip(first, again, strict=True))
            share = Share(weight=weight, keys=n_keys, candidate=len(now), flipped=flipped, left=len(before - now))
            console.print(f"{share}")
            before = now
            yield share


@contextmanager
def rolled_out(server: ReloadServer, plan: dict[str, Any], family: str = FAMILY) -> Iterator[None]:
    """Have the candidate roll out by a plan without an analysis, and abort that at the end."""
    body = {"family": family, "version": CANDIDATE, "plan": {"analysis": None, "deadline_s": 86_400, **plan}}
    answer = server.http.post("/admin/rollouts", json=body, headers=server.admin)
    if not answer.is_success:
        raise ServerFailedError(f"a rollout was refused: {answer.text}")
    _await(lambda: told(server, family)["state"]["phase"] != Phase.PENDING, "the start of the rollout")
    try:
        yield
    finally:
        command(server, "abort", family)
        _await(lambda: told(server, family)["state"]["phase"] in OVER, "the end of the rollout")


def told(server: ReloadServer, family: str = FAMILY) -> dict[str, Any]:
    """Return what is told of a family's rollout."""
    answer: dict[str, Any] = server.http.get(f"/admin/rollouts/{family}", headers=server.admin).json()
    return answer


def command(server: ReloadServer, name: str, family: str = FAMILY) -> None:
    """Command the rollout.

    Raises:
        ServerFailedError: It was refused.
    """
    answer = server.http.post(f"/admin/rollouts/{family}/{name}", headers=server.admin)
    if not answer.is_success:
        raise ServerFailedError(f"{name} was refused: {answer.text}")


def _await(condition: Any, what: str) -> None:
    if not wait_until(condition, timeout_s=MOVED_WITHIN_S):
        raise ServerFailedError(f"{what} did not come within {MOVED_WITHIN_S:.0f} s")


if __name__ == "__main__":
    typer.run(main)
