"""Plain Ray Serve beside it: `serve deploy` of a new `user_config` whose model `reconfigure` loads, under traffic."""

import time
from pathlib import Path
from typing import Any

from serve_app.cli.serve_api import ServeApi
from serve_app.cli.serve_config import localise
from tests.bad_bundles import MODEL_PATH, Kind, write_iris
from tests.benchmarks.reload_changes import SETTLE_S, Effort, Tell
from tests.benchmarks.reload_figures import PeerChange, failed, latencies
from tests.benchmarks.reload_server import BODY, afresh, started, wait_until
from tests.integration.instance import Instance
from tests.traffic import Traffic

KINDS = (Kind.GOOD, Kind.SLOW, Kind.RAISING)
LAYOUTS = {"/": 1, "/two": 2}
"""Replicas by route; each route is an application of its own."""
SETTLED_WITHIN_S = 6.0
AFTER_S = 2.0
BEFORE_S = 2.0


def measure_peer(directory: Path, *, connections: int, share: float, effort: Effort, tell: Tell) -> list[PeerChange]:
    """Deploy the changes one after the other; the raising one last, for the application does not come back from it."""
    afresh(directory)
    models = {kind: str(write_iris(directory / "models", kind.value, kind) / MODEL_PATH) for kind in KINDS}
    wanted = dict.fromkeys(LAYOUTS, str(write_iris(directory / "models", "first") / MODEL_PATH))
    changes = []
    with started(directory, _config(wanted), "--profile", "safe") as instance:
        for route, replicas in LAYOUTS.items():
            url = f"{instance.address}{route}"
            rate = share * _peak(url, connections, effort)
            for kind in KINDS:
                wanted = {**wanted, route: models[kind]}
                change = _deploy(instance, url, kind, replicas, wanted, connections=connections, rate=rate)
                changes.append(change)
                tell(
                    f"  {replicas} replicas, {kind.value}: {change.failed} of {change.requests:,} failed, "
                    f"{change.status} after {change.window_s:.1f} s, longest "
                    f"{change.during.longest_ms if change.during else 0:.0f} ms"
                )
    return changes


def _config(models: dict[str, str]) -> dict[str, Any]:
    return {
        "proxy_location": "EveryNode",
        "applications": [
            {
                "name": _name(route),
                "route_prefix": route,
                "import_path": "tests.benchmarks.peers.ray_reload.app:build",
                "deployments": [{"name": "forest", "num_replicas": replicas, "user_config": {"model": models[route]}}],
            }
            for route, replicas in LAYOUTS.items()
        ],
    }


def _name(route: str) -> str:
    return f"replicas-{LAYOUTS[route]}"


def _peak(url: str, connections: int, effort: Effort) -> float:
    with Traffic.started(url, BODY, connections=connections) as traffic:
        time.sleep(SETTLE_S)
        start_s = time.monotonic()
        time.sleep(effort.peak_s)
        end_s = time.monotonic()
    return len(traffic.between(start_s, end_s)) / (end_s - start_s)


def _deploy(
    instance: Instance, url: str, kind: Kind, replicas: int, models: dict[str, str], *, connections: int, rate: float
) -> PeerChange:
    status = ""
    with (
        Traffic.started(url, BODY, connections=connections, rate=rate) as traffic,
        ServeApi(instance.record) as api,
    ):
        time.sleep(SETTLE_S)
        start_s = time.monotonic()
        time.sleep(BEFORE_S)
        deployed_s = time.monotonic()
        api.deploy(localise(_config(models), port=instance.port, state_dir=instance.state.path))

        def is_settled() -> bool:
            nonlocal status
            status = api.status().applications[f"replicas-{replicas}"]
            return status != "DEPLOYING"

        wait_until(is_settled, timeout_s=SETTLED_WITHIN_S)
        time.sleep(AFTER_S)
        is_settled()
        ended_s = time.monotonic()
    during = [answer for answer in traffic.answers if answer.at_s >= deployed_s]
    return PeerChange(
        kind=kind.value,
        replicas=replicas,
        rate_per_s=round(rate, 1),
        window_s=round(ended_s - deployed_s, 1),
        requests=len(during),
        failed=failed(during),
        before=latencies(traffic.between(start_s, deployed_s)),
        during=latencies(during),
        status=status,
    )
