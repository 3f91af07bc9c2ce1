"""Measures the rehearsed overlays: promotions under load, and the memory of every Pod. Writes two pages of `docs/`.

    python -m tests.rehearsal.figures

Promotions: the overlay of a small node, its own sidecar, bundles put into `staging/` one after the other while traffic
flows. Memory: each overlay once it is idle, and that of the small node again after the promotions.
"""

import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Annotated, Final

import typer

from tests.benchmarks.machine import commit, cpu_model
from tests.builders import rows
from tests.contracts.postgres_server import postgres_server
from tests.rehearsal.figures_report import (
    JSON_NAME,
    ClusterFigures,
    EdgeFigures,
    Figures,
    MeasuredContainer,
    MeasuredPod,
    MeasuredProcess,
    Origin,
    Promotion,
    write,
)
from tests.rehearsal.harness import POLL_S, Rehearsal, rehearsing, stage
from tests.rehearsal.kubelet_twin import Pod, await_ready
from tests.rehearsal.memory import memory_of
from tests.rehearsal.network import PodNetwork, pod_network
from tests.traffic import Answer

PROMOTIONS: Final = 50
CONNECTIONS: Final = 4
RATE: Final = 50.0
TAKEN_WITHIN_S: Final = 60.0
STEADY_FOR: Final = 3
STEADY_SHARE: Final = 0.02
STEADY_WITHIN_S: Final = 90.0
BETWEEN_LOOKS_S: Final = 5.0


def main(
    promotions: Annotated[int, typer.Option(min=1, help="How many bundles are promoted.")] = PROMOTIONS,
    out: Annotated[Path, typer.Option(help="Where the pages and their figures are written.")] = Path("docs"),
    overlays: Annotated[str, typer.Option(help="What is measured; the rest stays as it was.")] = "edge,cluster",
) -> None:
    """Measure and write; it takes some ten minutes and needs root, or namespaces of users."""
    load = os.getloadavg()[0]
    known = out / JSON_NAME
    parts = Figures.model_validate_json(known.read_text()) if known.exists() else Figures()
    with tempfile.TemporaryDirectory(prefix="serve-app-rehearsal-") as folder, pod_network() as network:
        if "edge" in overlays.split(","):
            parts = parts.model_copy(update={"edge": _edge(network, Path(folder), promotions, _origin(load))})
        if "cluster" in overlays.split(","):
            parts = parts.model_copy(update={"cluster": _cluster(network, Path(folder), _origin(load))})
    for path in write(parts, out):
        typer.echo(str(path))


def _origin(load: float) -> Origin:
    return Origin(
        commit=commit(), cpu=cpu_model(Path("/proc/cpuinfo")), cores=os.cpu_count() or 1, load_before=round(load, 2)
    )


def _edge(network: PodNetwork, folder: Path, n: int, origin: Origin) -> EdgeFigures:
    with rehearsing("edge", network=network, folder=folder / "edge") as edge:
        edge.await_running()
        idle = _steady([edge.cluster.head])
        marked: list[tuple[str, float, float]] = []
        with edge.traffic(rows(1).tolist(), connections=CONNECTIONS, rate=RATE) as traffic:
            for i in range(n):
                version = f"promoted-{i}"
                stage(edge.models(edge.cluster.head.node), version, seed=i % 8, ready=False)
                marked_s = _mark(edge)
                _await_served(edge, version)
                marked.append((version, marked_s, _flipped_s(edge)))
        after = _steady([edge.cluster.head])
    return EdgeFigures(
        origin=origin, poll_s=POLL_S, connections=CONNECTIONS, rate=RATE, requests=len(traffic.answers),
        failed=len(traffic.failed()), idle=idle, after=after,
        promotions=[_promotion(*one, traffic.answers) for one in marked],
    )  # fmt: skip


def _cluster(network: PodNetwork, folder: Path, origin: Origin) -> ClusterFigures:
    with postgres_server() as postgres:
        postgres.root.chmod(0o755)
        url, shared = postgres.new_database(), [postgres.root]
        with rehearsing("cluster", network=network, folder=folder / "c", store_url=url, shared=shared) as cluster:
            cluster.await_running()
            await_ready(cluster.cluster.pods, timeout_s=120)
            return ClusterFigures(origin=origin, idle=_steady([*cluster.cluster.pods, cluster.promoters[-1]]))


def _mark(edge: Rehearsal) -> float:
    """Put READY beside the bundle, and return when."""
    mark = edge.models(edge.cluster.head.node) / "staging" / "READY"
    mark.touch()
    return time.monotonic()


def _flipped_s(edge: Rehearsal) -> float:
    """Return when `current` was flipped last: the link is made right before the rename that shows it."""
    link = edge.models(edge.cluster.head.node) / "current"
    return link.lstat().st_mtime - (time.time() - time.monotonic())


def _served(edge: Rehearsal) -> str:
    return str(edge.predict(rows(1).tolist()).headers.get("X-Model-Version"))


def _await_served(edge: Rehearsal, version: str) -> None:
    edge.await_that(lambda: _served(edge) == version, timeout_s=TAKEN_WITHIN_S)


def _promotion(version: str, marked_s: float, flipped_s: float, answers: list[Answer]) -> Promotion:
    first_s = min(answer.at_s for answer in answers if answer.version == version)
    window = [answer for answer in answers if marked_s <= answer.at_s <= first_s + 1]
    return Promotion(
        version=version,
        first_answer_s=round(first_s - marked_s, 3),
        reload_s=round(first_s - flipped_s, 3),
        longest_answer_ms=round(1000 * max(answer.latency_s for answer in window), 1),
    )


def _steady(pods: list[Pod]) -> list[MeasuredPod]:
    """Measure once the sum has stood still for a while."""
    deadline_s, sums = time.monotonic() + STEADY_WITHIN_S, [0]
    while True:
        measured = [_measured(pod) for pod in pods]
        sums.append(sum(container.pss_bytes for pod in measured for container in pod.containers))
        latest = sums[-STEADY_FOR - 1 :]
        steps = [abs(b - a) / max(mean(latest), 1) for a, b in pairwise(latest)]
        if (len(steps) == STEADY_FOR and max(steps) < STEADY_SHARE) or time.monotonic() > deadline_s:
            return measured
        time.sleep(BETWEEN_LOOKS_S)


def _measured(pod: Pod) -> MeasuredPod:
    containers = [
        MeasuredContainer(
            name=one.container, request_bytes=one.request_bytes, limit_bytes=one.limit_bytes, pss_bytes=one.pss_bytes,
            rss_bytes=one.rss_bytes,
            processes=[
                MeasuredProcess(title=process.title, pss_bytes=process.pss_bytes, rss_bytes=process.rss_bytes)
                for process in one.processes
            ],
        )
        for one in memory_of(pod)
    ]  # fmt: skip
    kind = pod.labels.get("ray.io/node-type") or pod.labels.get("app.kubernetes.io/name", "")
    return MeasuredPod(kind=kind, containers=containers)


if __name__ == "__main__":
    typer.run(main)
