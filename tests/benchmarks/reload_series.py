"""What takes longer: many reloads in a row with the memory after each, and many replicas that change together."""

import shutil
import time

from tests.benchmarks.reload_changes import AFTER_S, SETTLE_S, Tell
from tests.benchmarks.reload_figures import Flip, Memory, failed, went_back
from tests.benchmarks.reload_server import BODY, ReloadServer, Told
from tests.benchmarks.servers import ServerFailedError
from tests.traffic import Traffic

TITLES = {
    "gateway": "ray::ServeReplica:serve-app:gateway",
    "model replica": "ray::ServeReplica:serve-app:iris-cpu",
    "Reconciler": "ray::ServeReplica:serve-app:reconciler",
}
KEPT_ON_DISK = 20
TOLD_EVERY = 20
FLIPS = 4
TRAFFIC_PER_S = 100.0


def many_reloads(server: ReloadServer, count: int, *, tell: Tell) -> list[Memory]:
    """Reload a new version `count` times under light traffic; of the versions on disk the last few are kept."""
    series, written = [], list[str]()
    with Traffic.started(server.url, BODY, connections=2, rate=TRAFFIC_PER_S) as traffic:
        for i in range(1, count + 1):
            written.append(server.write(f"series-{i}"))
            told = server.reload(written[-1])
            if told.reason:
                raise ServerFailedError(f"reload {i} of {count}: {told.outcome} {told.reason}")
            for old in written[:-KEPT_ON_DISK]:
                shutil.rmtree(server.root / old, ignore_errors=True)
            del written[:-KEPT_ON_DISK]
            series.append(Memory(reload=i, call_to_answer_s=round(_took_s(told), 3), rss_bytes=_memory(server)))
            if i % TOLD_EVERY == 0:
                tell(f"  {i}: " + ", ".join(f"{n} {size >> 20} MiB" for n, size in series[-1].rss_bytes.items()))
    if count_failed := failed(traffic.answers):
        tell(f"  {count_failed} of {len(traffic.answers):,} requests failed meanwhile")
    return series


def flips(server: ReloadServer, *, connections: int, rate: float, tell: Tell) -> list[Flip]:
    """Change all replicas and gateways together, by reloads and by rollbacks."""
    found = []
    for i in range(FLIPS):
        version = server.write(f"flip-{i}")
        found.append(_flip(server, version, connections=connections, rate=rate))
        found.append(_flip(server, None, connections=connections, rate=rate))
        for flip in found[-2:]:
            tell(
                f"  {flip.kind}: commit {flip.commit_ms} ms, connections within {flip.connections_spread_ms:.0f} ms, "
                f"old after new {flip.old_after_new_ms:.0f} ms, {flip.failed} failed, went back {flip.went_back}"
            )
    return found


def _flip(server: ReloadServer, version: str | None, *, connections: int, rate: float) -> Flip:
    committed_s = server.commit_seconds()
    with Traffic.started(server.url, BODY, connections=connections, rate=rate) as traffic:
        time.sleep(SETTLE_S)
        told = server.rollback() if version is None else server.reload(version)
        if told.reason:
            raise ServerFailedError(f"{told.outcome} {told.reason}")
        time.sleep(AFTER_S)
    commit_s = server.commit_seconds() - committed_s
    good = [answer for answer in traffic.answers if answer.status == 200]
    newest = max(answer.generation for answer in good)
    firsts: dict[int, float] = {}
    for answer in good:
        if answer.generation == newest:
            firsts.setdefault(answer.connection, answer.at_s)
    first_s = min(firsts.values())
    old_s = max(answer.at_s for answer in good if answer.generation < newest)
    return Flip(
        kind="rollback" if version is None else "good",
        commit_ms=round(commit_s * 1e3, 1),
        first_new_s=round(first_s - told.called_s, 3),
        connections_spread_ms=round((max(firsts.values()) - first_s) * 1e3, 1),
        old_after_new_ms=round(max(old_s - first_s, 0.0) * 1e3, 1),
        failed=failed(traffic.answers),
        went_back=went_back(traffic.answers),
    )


def _took_s(told: Told) -> float:
    return told.answered_s - told.called_s


def _memory(server: ReloadServer) -> dict[str, int]:
    return {name: sum(p.memory_info().rss for p in server.find(title)) for name, title in TITLES.items()}
