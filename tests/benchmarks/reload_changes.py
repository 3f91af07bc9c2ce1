"""Changes of version under traffic: each kind of bundle, and rollbacks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import psutil

from tests.bad_bundles import Kind
from tests.benchmarks import wrk
from tests.benchmarks.measurements import reason
from tests.benchmarks.reload_figures import Change, Peak, failed, latencies, went_back
from tests.benchmarks.reload_server import BODY, ReloadServer, Told
from tests.traffic import Answer, Traffic

Tell = Callable[[str], None]

KINDS = (
    Kind.GOOD,
    Kind.SLOW,
    Kind.CORRUPT,
    Kind.TRUNCATED,
    Kind.WRONG_DIGEST,
    Kind.RAISING,
    Kind.HANGING,
    Kind.SEGFAULTING,
    Kind.HUNGRY,
)
LENGTHY = frozenset({Kind.SLOW, Kind.HANGING})
ROLLBACK = "rollback"
SETTLE_S = 1.0
"""Of traffic that is in no figure: connections open, batches find their size."""
AFTER_S = 1.0
"""How long a window goes on after the answer to the admin call: what is released is released then."""
SHARE_OF_PEAK = 0.7


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often."""

    before_s: float
    attempts: int
    """Of what is over in a moment."""
    peak_s: int


THOROUGH = Effort(before_s=10.0, attempts=3, peak_s=4)
QUICK = Effort(before_s=2.0, attempts=1, peak_s=1)


@dataclass(slots=True)
class _Attempts:
    """What was asked in a row, and the answers of the traffic meanwhile."""

    versions: list[str] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    commits_ms: list[float] = field(default_factory=list)


def peak(server: ReloadServer, *, connections: int, effort: Effort) -> Peak:
    """Find the highest rate, by wrk and by the driver; each alone, one after the other."""
    body_file = server.instance.state.path / "request.json"
    body_file.write_bytes(BODY)
    request = wrk.Request(server.url, body_file)
    wrk.put_under_load(request, connections=connections, seconds=1)
    by_wrk = wrk.put_under_load(request, connections=connections, seconds=effort.peak_s)
    with Traffic.started(server.url, BODY, connections=connections) as traffic:
        time.sleep(SETTLE_S)
        driver = psutil.Process(traffic.process.pid)
        start_s, before = time.monotonic(), driver.cpu_times()
        time.sleep(effort.peak_s)
        end_s, after = time.monotonic(), driver.cpu_times()
    took_s = end_s - start_s
    return Peak(
        connections=connections,
        wrk_per_s=round(by_wrk.good_per_s, 1),
        driver_per_s=round(len(traffic.between(start_s, end_s)) / took_s, 1),
        driver_cores=round((after.user + after.system - before.user - before.system) / took_s, 2),
    )


def under_traffic(
    server: ReloadServer, kind: Kind, *, label: str, connections: int, rate: float | None, effort: Effort
) -> Change:
    """Ask for new bundles of a kind under traffic."""
    attempts = 1 if kind in LENGTHY else effort.attempts
    versions = [server.write(f"{label}-{kind.value}-{i}", kind) for i in range(attempts)]
    return _measure(
        server, kind.value, versions, server.reload, connections=connections, rate=rate, before_s=effort.before_s
    )


def rollbacks(server: ReloadServer, *, connections: int, rate: float | None, effort: Effort) -> Change:
    """Go back and forth between the last two versions under traffic."""
    return _measure(
        server,
        ROLLBACK,
        [""] * effort.attempts,
        lambda _: server.rollback(),
        connections=connections,
        rate=rate,
        before_s=effort.before_s,
    )


def _measure(
    server: ReloadServer,
    kind: str,
    versions: Sequence[str],
    ask: Callable[[str], Told],
    *,
    connections: int,
    rate: float | None,
    before_s: float,
) -> Change:
    done, active = _Attempts(), [server.current()]
    with Traffic.started(server.url, BODY, connections=connections, rate=rate) as traffic:
        time.sleep(SETTLE_S)
        start_s = time.monotonic()
        time.sleep(before_s)
        for version in versions:
            committed_s = server.commit_seconds()
            time.sleep(SETTLE_S if done.told else 0.0)
            done.told.append(ask(version))
            time.sleep(AFTER_S)
            active.append(server.current())
            done.versions.append(active[-1])
            if (commit_s := server.commit_seconds() - committed_s) > 0:
                done.commits_ms.append(round(commit_s * 1e3, 2))
    return _change(kind, done, traffic, start_s=start_s, active=active)


def _change(kind: str, done: _Attempts, traffic: Traffic, *, start_s: float, active: Sequence[str]) -> Change:
    windows = [(told.called_s, told.answered_s + AFTER_S) for told in done.told]
    during = [answer for start, end in windows for answer in traffic.between(start, end)]
    told = done.told[-1]
    return Change(
        kind=kind,
        attempts=len(done.told),
        outcome=", ".join(sorted({each.outcome for each in done.told})),
        reason=_without_name(reason(Exception(told.reason))),
        call_to_answer_s=tuple(round(each.answered_s - each.called_s, 3) for each in done.told),
        before=latencies(traffic.between(start_s, windows[0][0])),
        during=latencies(during),
        per_s=round(len(during) / sum(end - start for start, end in windows), 1),
        requests=len(traffic.answers),
        failed=failed(traffic.answers),
        went_back=went_back(traffic.answers),
        strange=sum(answer.status == 200 and answer.version not in active for answer in traffic.answers),
        commits_ms=tuple(done.commits_ms),
        first_answers_s=tuple(
            round(first, 3)
            for each, before, after in zip(done.told, active, active[1:], strict=False)
            if before != after and (first := _first_answer_s(traffic.answers, each, after)) is not None
        ),
    )


def _first_answer_s(answers: Sequence[Answer], told: Told, version: str) -> float | None:
    came = [answer.at_s for answer in answers if answer.version == version and answer.at_s >= told.called_s]
    return min(came) - told.called_s if came else None


def _without_name(text: str) -> str:
    """Leave out which of our own versions it was."""
    head, mark, tail = text.partition(" failed its trial: ")
    return tail if mark else head


def told_of(change: Change) -> str:
    """Say in one line what came out."""
    ratio = "–" if change.p99_ratio is None else f"{change.p99_ratio:.2f} ×"
    before = change.before.p99_ms if change.before else 0.0
    during = change.during.p99_ms if change.during else 0.0
    return (
        f"  {change.kind}: {change.outcome}, answer after {median(change.call_to_answer_s):.2f} s, "
        f"p99 {before:.1f} -> {during:.1f} ms ({ratio}), {change.failed} of {change.requests:,} failed, "
        f"went back {change.went_back}, commits {list(change.commits_ms)} ms, "
        f"first answers {list(change.first_answers_s)} s"
    )
