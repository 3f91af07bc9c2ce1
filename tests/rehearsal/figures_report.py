"""Writes `docs/promotions.md` and `docs/kuberay-memory.md` from figures; nothing in the pages comes from elsewhere.

python -m tests.rehearsal.figures_report [DIRECTORY]
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer
from pydantic import BaseModel, ConfigDict

from tests.benchmarks.report import BUSY_LOAD

MIB: Final = 1 << 20
BEYOND_POLL_S: Final = 2.0
RELOAD_S: Final = 2.0
EDGE_MIB: Final = 2048
JSON_NAME: Final = "promotions.json"
PROMOTIONS_NAME: Final = "promotions.md"
MEMORY_NAME: Final = "kuberay-memory.md"
FIRST: Final = "READY to the first answer of the new version"
FLIP: Final = "READY to the flip of `current`: the wait for the sidecar's next look, and its work"
RELOAD: Final = "the flip of `current` to the first answer: `/reload`"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Promotion(_Document):
    """One bundle: from its mark READY to the first answer of its version, and the longest answer in that time.

    `reload_s` is the part of it after the flip of `current`, when the sidecar calls `/reload`; absent in older figures.
    """

    version: str
    first_answer_s: float
    reload_s: float | None = None
    longest_answer_ms: float


class MeasuredProcess(_Document):
    """One process; PSS divides what is shared among those who share it."""

    title: str
    pss_bytes: int
    rss_bytes: int


class MeasuredContainer(_Document):
    """One container, and what its manifest says of memory (0: nothing)."""

    name: str
    request_bytes: int
    limit_bytes: int
    pss_bytes: int
    rss_bytes: int
    processes: list[MeasuredProcess]


class MeasuredPod(_Document):
    """One Pod."""

    kind: str
    containers: list[MeasuredContainer]


class Origin(_Document):
    """What was measured, and on what."""

    commit: str
    cpu: str
    cores: int
    load_before: float


class EdgeFigures(_Document):
    """The overlay of a small node: idle, under promotions, and idle again."""

    origin: Origin
    poll_s: float
    connections: int
    rate: float
    requests: int
    failed: int
    promotions: list[Promotion]
    idle: list[MeasuredPod]
    after: list[MeasuredPod]


class ClusterFigures(_Document):
    """The overlay of several nodes, idle."""

    origin: Origin
    idle: list[MeasuredPod]


class Figures(_Document):
    """What runs measured; a part that was never measured is absent."""

    edge: EdgeFigures | None = None
    cluster: ClusterFigures | None = None


def write(figures: Figures, directory: Path) -> list[Path]:
    """Write figures and pages; return their files."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = {JSON_NAME: figures.model_dump_json(indent=1, exclude_none=True) + "\n", MEMORY_NAME: memory_page(figures)}
    if figures.edge is not None:
        texts[PROMOTIONS_NAME] = promotions_page(figures.edge)
    for name, text in texts.items():
        (directory / name).write_text(text)
    return [directory / name for name in texts]


def promotions_page(edge: EdgeFigures) -> str:
    """Write the page of the promotions."""
    parts = _parts(edge)
    bounds_s = {FIRST: edge.poll_s + BEYOND_POLL_S, RELOAD: RELOAD_S}
    aims = [("failed requests", "0", f"{edge.failed} of {edge.requests:,}", edge.failed == 0)]
    aims += [
        (part, f"≤ {bounds_s[part]:g} s", f"longest {seconds[-1]:.2f} s", seconds[-1] <= bounds_s[part])
        for part, seconds in parts.items()
        if part in bounds_s
    ]
    cells = [(aim, bound, found, "yes" if met else "**no**") for aim, bound, found, met in aims]
    longest = max(one.longest_answer_ms for one in edge.promotions)
    spreads = [(part, *_spread(seconds)) for part, seconds in parts.items()]
    return "\n".join([
        "# Promotions by the sidecar",
        "",
        f"`make rehearsal-figures` wrote this: the overlay `edge`, run without a cluster ({_machine(edge.origin)}). "
        f"{len(edge.promotions)} bundles of the forecaster went through `staging/` and READY one after the other, "
        f"under {edge.rate:g} requests a second on {edge.connections} connections. The sidecar looks every "
        f"{edge.poll_s:g} s, as the bundles' manifests ask it to, and calls `/reload`.",
        "",
        _table(("aim", "bound", "found", "met"), cells),
        f"The longest answer from a mark to one second after the first new answer took {longest:.0f} ms.",
        "",
        _table(("from, to", "shortest", "median", "95 %", "longest"), spreads),
    ])  # fmt: skip


def _parts(edge: EdgeFigures) -> dict[str, list[float]]:
    """Return the parts of a promotion that were measured, each with its seconds from the shortest to the longest."""
    parts = {FIRST: [one.first_answer_s for one in edge.promotions]}
    split = [(one.first_answer_s, one.reload_s) for one in edge.promotions if one.reload_s is not None]
    if split:
        parts |= {
            FLIP: [first_s - reload_s for first_s, reload_s in split],
            RELOAD: [reload_s for _, reload_s in split],
        }
    return {part: sorted(seconds) for part, seconds in parts.items()}


def _spread(seconds: Sequence[float]) -> list[str]:
    chosen = (seconds[0], median(seconds), seconds[int(0.95 * (len(seconds) - 1))], seconds[-1])
    return [f"{value:.2f} s" for value in chosen]


def memory_page(figures: Figures) -> str:
    """Write the page of the memory."""
    parts = [
        "# Memory of the Pods",
        "",
        "`make rehearsal-figures` wrote this; the overlays were run without a cluster. PSS is what a process takes by "
        "itself, shared pages divided among those who share them, so it may be summed; RSS counts them every time. A "
        "cgroup of Kubernetes also counts files in the page cache, which it can take back. "
        "`kuberay/overlays/*/resources.yaml` is made to fit.",
        "",
    ]
    if figures.edge is not None:
        parts += _edge_memory(figures.edge)
    if figures.cluster is not None:
        parts += _pods("cluster", figures.cluster.origin, figures.cluster.idle)
    return "\n".join(parts)


def _edge_memory(edge: EdgeFigures) -> list[str]:
    total = _sum(edge.idle) / MIB
    met = "met" if total <= EDGE_MIB else "**not met**"
    told = (
        f"The overlay of a small node, idle: **{total:.0f} MiB**; at most {EDGE_MIB} MiB was the aim: {met}. After "
        f"{len(edge.promotions)} promotions: {_sum(edge.after) / MIB:.0f} MiB."
    )
    return [told, "", *_pods("edge", edge.origin, edge.idle)]


def _pods(overlay: str, origin: Origin, pods: Sequence[MeasuredPod]) -> list[str]:
    return [
        f"## Overlay {overlay}, idle",
        "",
        f"On {_machine(origin)}.",
        "",
        _table(("Pod", "container", "PSS", "RSS", "request", "limit"), _rows(pods)),
        _table(("Pod", "container", "process", "PSS", "RSS"), _processes(pods)),
    ]


def _machine(origin: Origin) -> str:
    busy = f"; **not idle**, load average {origin.load_before:g}" if origin.load_before > BUSY_LOAD else ""
    return f"{origin.cores} cores of {origin.cpu}, commit {origin.commit}{busy}"


def _sum(pods: Sequence[MeasuredPod]) -> int:
    return sum(container.pss_bytes for pod in pods for container in pod.containers)


def _rows(pods: Sequence[MeasuredPod]) -> list[tuple[str, ...]]:
    return [
        (pod.kind, one.name, *(_mib(n) for n in (one.pss_bytes, one.rss_bytes, one.request_bytes, one.limit_bytes)))
        for pod in pods
        for one in pod.containers
    ]


def _processes(pods: Sequence[MeasuredPod]) -> list[tuple[str, ...]]:
    return [
        (pod.kind, container.name, process.title, _mib(process.pss_bytes), _mib(process.rss_bytes))
        for pod in pods
        for container in pod.containers
        for process in container.processes
        if process.pss_bytes > MIB
    ]


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.1f} MiB" if n_bytes else "—"


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([text.replace("|", "\\|") for text in row] for row in cells)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(directory: Annotated[Path, typer.Argument(help="Where the figures of a run are.")] = Path("docs")) -> None:
    """Write the pages again from the figures of a run."""
    write(Figures.model_validate_json((directory / JSON_NAME).read_text()), directory)


if __name__ == "__main__":
    typer.run(main)
