"""What one run of the reload benchmark measured, as it lies in `docs/reload.json`."""

from collections.abc import Sequence

from tests.benchmarks.measurements import Frozen, Machine
from tests.traffic import Answer, quantile

BIN_S = 0.5
"""Over which a rate of answers is taken."""
FULL = 0.9
"""Share of the rate before that counts as full capacity."""


class Latencies(Frozen):
    """What clients saw in a window."""

    requests: int
    p50_ms: float
    p99_ms: float
    longest_ms: float


class Peak(Frozen):
    """The highest rate of closed-loop traffic: by wrk, and by the driver that records every answer."""

    connections: int
    wrk_per_s: float | None
    driver_per_s: float
    driver_cores: float
    """CPU seconds a second that the driver itself used, on the same cores as the server."""


class Change(Frozen):
    """One kind of change under traffic, made `attempts` times; figures of its windows together."""

    kind: str
    attempts: int
    outcome: str
    reason: str
    call_to_answer_s: tuple[float, ...]
    before: Latencies | None
    during: Latencies | None
    per_s: float
    """Rate of the answers in the windows."""
    requests: int
    """Of the whole traffic, also between the windows."""
    failed: int
    went_back: int
    """Answers with a lower generation than an earlier answer on the same connection."""
    strange: int
    """Answers by a version that was neither active before nor asked for."""
    commits_ms: tuple[float, ...]
    first_answers_s: tuple[float, ...]
    """From the call to the first answer by the new version."""

    @property
    def p99_ratio(self) -> float | None:
        """p99 in the windows, by that before."""
        return self.during.p99_ms / self.before.p99_ms if self.before and self.during and self.before.p99_ms else None


class PeerChange(Frozen):
    """One `serve deploy` of a new `user_config` to plain Ray Serve, under traffic."""

    kind: str
    replicas: int
    rate_per_s: float
    window_s: float
    requests: int
    failed: int
    before: Latencies | None
    during: Latencies | None
    status: str
    """What Serve says of the application at the end of the window."""


class Kill(Frozen):
    """One `kill -9` under traffic. Seconds count from the kill; 0 when nothing was amiss, None when it never ended."""

    victim: str
    rate_per_s: float
    requests: int
    error_answers: int
    cut: int
    """Connections that ended while a request was out."""
    refused: int
    """Requests that found nobody to connect to."""
    port_back_s: float
    full_capacity_s: float | None
    replaced_s: float | None
    longest_ms: float


class Memory(Frozen):
    """Resident bytes after one of many reloads."""

    reload: int
    call_to_answer_s: float
    rss_bytes: dict[str, int]


class Flip(Frozen):
    """One commit with many replicas and gateways."""

    kind: str
    commit_ms: float
    first_new_s: float
    """From the call to the first answer of the new generation."""
    connections_spread_ms: float
    """Between the first and the last connection's first answer of the new generation."""
    old_after_new_ms: float
    """Between the first answer of the new generation and the last one of the old, on any connection."""
    failed: int
    went_back: int


class ReloadRun(Frozen):
    """One run of the benchmark."""

    started_at: str
    command: str
    code: str
    machine: Machine
    seconds: float
    connections: int
    share_of_peak: float
    peak: Peak
    at_share: tuple[Change, ...] = ()
    at_full: tuple[Change, ...] = ()
    small_model: tuple[Change, ...] = ()
    problem: str = ""
    """Why the run ended before its end."""
    peer: tuple[PeerChange, ...] = ()
    kills: tuple[Kill, ...] = ()
    kill_layout: str = ""
    series: tuple[Memory, ...] = ()
    flips: tuple[Flip, ...] = ()
    flip_layout: str = ""


def latencies(answers: Sequence[Answer]) -> Latencies | None:
    """Summarise the answers of a window; None when there were none."""
    if not answers:
        return None
    return Latencies(
        requests=len(answers),
        p50_ms=round(quantile(answers, 0.5) * 1e3, 3),
        p99_ms=round(quantile(answers, 0.99) * 1e3, 3),
        longest_ms=round(max(answer.latency_s for answer in answers) * 1e3, 3),
    )


def failed(answers: Sequence[Answer]) -> int:
    """Count the requests that were not answered with 200."""
    return sum(answer.status != 200 for answer in answers)


def went_back(answers: Sequence[Answer]) -> int:
    """Count the good answers with a lower generation than an earlier one on the same connection."""
    highest: dict[int, int] = {}
    count = 0
    for answer in answers:
        if answer.status == 200:
            count += answer.generation < highest.get(answer.connection, -1)
            highest[answer.connection] = max(answer.generation, highest.get(answer.connection, -1))
    return count


def cut_and_refused(answers: Sequence[Answer]) -> tuple[int, int]:
    """Tell connections that ended under a request from requests that found nobody: these follow another failure."""
    alive: dict[int, bool] = {}
    cut = refused = 0
    for answer in answers:
        if answer.status == 0:
            cut += alive.get(answer.connection, True)
            refused += not alive.get(answer.connection, True)
        alive[answer.connection] = answer.status != 0
    return cut, refused


def port_back_s(answers: Sequence[Answer], *, since_s: float) -> float:
    """Return the seconds from a moment to the last request that got no answer at all; 0 when there was none."""
    return max((answer.at_s - since_s for answer in answers if answer.status == 0), default=0.0)


def full_capacity_s(answers: Sequence[Answer], *, since_s: float, until_s: float, per_s: float) -> float | None:
    """Return the seconds from a moment until the rate of good answers was full again and stayed so; None: never."""
    bins = [0] * int((until_s - since_s) / BIN_S)
    for answer in answers:
        place = int((answer.at_s - since_s) // BIN_S)
        if answer.status == 200 and 0 <= place < len(bins):
            bins[place] += 1
    lacking = [place for place, count in enumerate(bins) if count < FULL * per_s * BIN_S]
    if not lacking:
        return 0.0
    return None if lacking[-1] == len(bins) - 1 else (lacking[-1] + 1) * BIN_S


def growth(series: Sequence[Memory], *, after: int) -> dict[str, float]:
    """Return each process's largest resident bytes after the first `after` reloads, by those at that point, less 1."""
    later = [memory for memory in series if memory.reload >= after]
    if not later:
        return {}
    first = later[0].rss_bytes
    return {name: max(m.rss_bytes.get(name, 0) for m in later) / size - 1 for name, size in first.items() if size}
