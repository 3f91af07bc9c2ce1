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
BETWEEN_S = 2.0
"""Before each call, so that what the one before it caused, and what was asked to prepare it, is over."""
BEFORE_S = 1.5
"""Of this, what the call's window is compared with: right before it, since the machine is not equally quiet always."""
AFTER_S = 1.0
"""How long a window goes on after the answer to the admin call: what is released is released then."""
SHARE_OF_PEAK = 0.7


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often."""

    attempts: int
    """Of what is over in a moment."""
    peak_s: int


THOROUGH = Effort(attempts=4, peak_s=4)
QUICK = Effort(attempts=1, peak_s=1)


@dataclass(frozen=True, slots=True)
class _Wish:
    """One kind of change, and how to ask for it once for each of `versions`; "" asks for a rollback."""

    kind: str
    versions: tuple[str, ...]


@dataclass(slots=True)
class _Attempts:
    """What was asked in a row, when that began and ended (monotonic clock), and which versions answered one by one."""

    kind: str
    start_s: float
    active: list[str]
    end_s: float = 0.0
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


def all_changes(
    server: ReloadServer, *, label: str, connections: int, rate: float | None, effort: Effort, tell: Tell
) -> list[Change]:
    """Make every change under traffic: those over in a moment one after the other, each lengthy one by itself."""
    brief = [_wish(server, kind, label, effort.attempts) for kind in KINDS if kind not in LENGTHY]
    groups = [[*brief, _Wish(ROLLBACK, ("",) * effort.attempts)]]
    groups += [[_wish(server, kind, label, 1)] for kind in KINDS if kind in LENGTHY]
    found: list[Change] = []
    for group in groups:
        changes = _under_traffic(server, group, connections=connections, rate=rate)
        for change in changes:
            tell(told_of(change))
        found += changes
    return found


def good_ones(server: ReloadServer, *, label: str, connections: int, rate: float | None, effort: Effort) -> Change:
    """Reload good bundles under traffic."""
    wish = _wish(server, Kind.GOOD, label, effort.attempts)
    (change,) = _under_traffic(server, [wish], connections=connections, rate=rate)
    return change


def _wish(server: ReloadServer, kind: Kind, label: str, attempts: int) -> _Wish:
    return _Wish(kind.value, tuple(server.write(f"{label}-{kind.value}-{i}", kind) for i in range(attempts)))


def _under_traffic(
    server: ReloadServer, wishes: Sequence[_Wish], *, connections: int, rate: float | None
) -> list[Change]:
    """Ask for one change after the other under the same traffic."""
    done: list[_Attempts] = []
    with Traffic.started(server.url, BODY, connections=connections, rate=rate) as traffic:
        time.sleep(SETTLE_S)
        for wish in wishes:
            done.append(_ask(server, wish))
    return [_change(attempts, traffic) for attempts in done]


def _ask(server: ReloadServer, wish: _Wish) -> _Attempts:
    attempts = _Attempts(wish.kind, start_s=time.monotonic(), active=[server.current()])
    for version in wish.versions:
        committed_s = server.commit_seconds()
        time.sleep(BETWEEN_S)
        attempts.told.append(server.reload(version) if version else server.rollback())
        time.sleep(AFTER_S)
        attempts.active.append(server.current())
        if (commit_s := server.commit_seconds() - committed_s) > 0:
            attempts.commits_ms.append(round(commit_s * 1e3, 2))
    attempts.end_s = time.monotonic()
    return attempts


def _change(attempts: _Attempts, traffic: Traffic) -> Change:
    told, active = attempts.told, attempts.active
    windows = [(each.called_s, each.answered_s + AFTER_S) for each in told]
    during = [answer for start, end in windows for answer in traffic.between(start, end)]
    before = [answer for start, _ in windows for answer in traffic.between(start - BEFORE_S, start)]
    meanwhile = traffic.between(attempts.start_s, attempts.end_s)
    return Change(
        kind=attempts.kind,
        attempts=len(told),
        outcome=", ".join(sorted({each.outcome for each in told})),
        reason=_without_name(reason(Exception(told[-1].reason))),
        call_to_answer_s=tuple(round(each.answered_s - each.called_s, 3) for each in told),
        before=latencies(before),
        during=latencies(during),
        per_s=round(len(during) / sum(end - start for start, end in windows), 1),
        requests=len(meanwhile),
        failed=failed(meanwhile),
        went_back=went_back(meanwhile),
        strange=sum(answer.status == 200 and answer.version not in active for answer in meanwhile),
        commits_ms=tuple(attempts.commits_ms),
        first_answers_s=tuple(
            round(first, 3)
            for each, old, new in zip(told, active, active[1:], strict=False)
            if old != new and (first := _first_answer_s(traffic.answers, each, new)) is not None
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
