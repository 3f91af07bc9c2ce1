"""What is simulated: traffic, its errors and latencies, and the canaries that are tried on it."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.analysis_plan import AnalysisPlan
from serve_app.domain.evidence import Evidence, Measurement
from serve_app.domain.histogram import LAST_BUCKET, LatencyHistogram, bucket_of, upper_edge_s
from serve_app.domain.rollout_plan import RolloutPlan, Step, Strategy

N_LOOKS = 60
LOOK_S = 60.0
CANARY_REQUESTS = 200
"""Of the canary between two looks, on average."""
BASE_ERROR_RATE = 0.01
MEDIAN_S = 0.01
SIGMA = 0.5
"""Of the logarithm of latencies: p95 is 2.3 times the median."""
ANALYSIS = AnalysisPlan()
ERRORS, LATENCY = (metric.name for metric in ANALYSIS.metrics)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of canary. `is_watched_on` goes on judging after the rollout is over, to count every chance to err."""

    name: str
    error_rate: float = BASE_ERROR_RATE
    slower: float = 1.0
    share: float = 0.1
    is_watched_on: bool = False

    @property
    def plan(self) -> RolloutPlan:
        """One step that passes on as soon as the canary is proven equal enough."""
        return RolloutPlan(strategy=Strategy.CANARY, steps=(Step(weight=100 * self.share),), analysis=ANALYSIS)


EQUAL = Scenario("equal", is_watched_on=True)
EQUAL_HALVES = Scenario("equal, half of the traffic", share=0.5, is_watched_on=True)
ERRORS_AT_MARGIN = Scenario("errors 1 % → 1.5 % (the margin)", error_rate=0.015, is_watched_on=True)
LATENCY_AT_MARGIN = Scenario("latency × 1.2 (the margin)", slower=1.2, is_watched_on=True)
HARMFUL = (
    Scenario("errors 1 % → 2 %", error_rate=0.02),
    Scenario("errors 1 % → 5 %", error_rate=0.05),
    Scenario("errors 1 % → 20 %", error_rate=0.2),
    Scenario("latency × 1.5", slower=1.5),
    Scenario("latency × 3", slower=3.0),
)


@dataclass(frozen=True, slots=True)
class Series:
    """One rollout's traffic, look by look: counts of each variant, and how many of its answers were slow.

    `int64, (N_LOOKS,)`, latencies `int64, (N_LOOKS, n_buckets)` from bucket `first` on.
    """

    first: int
    canary_requests: NDArray[np.int64]
    canary_errors: NDArray[np.int64]
    canary_latencies: NDArray[np.int64]
    stable_requests: NDArray[np.int64]
    stable_errors: NDArray[np.int64]
    stable_latencies: NDArray[np.int64]

    def evidence(self, look: int, share: float) -> Evidence:
        """Return the window before one look, as the gateways would have counted it."""
        return Evidence(
            stable=self._measured(self.stable_requests, self.stable_errors, self.stable_latencies, look),
            canary=self._measured(self.canary_requests, self.canary_errors, self.canary_latencies, look),
            canary_share=share,
        )

    def slow(self, latencies: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the answers slower than the true p95 of the stable variant, look by look."""
        bound = bucket_of(MEDIAN_S * math.exp(SIGMA * NormalDist().inv_cdf(0.95)))
        slow: NDArray[np.int64] = latencies[:, bound + 1 - self.first :].sum(axis=1)
        return slow

    def _measured(
        self, requests: NDArray[np.int64], errors: NDArray[np.int64], latencies: NDArray[np.int64], look: int
    ) -> Measurement:
        n, row = int(requests[look]), latencies[look]
        used = np.flatnonzero(row)
        counts = dict(zip((used + self.first).tolist(), row[used].tolist(), strict=True))
        return Measurement(requests=n, errors=int(errors[look]), latency=LatencyHistogram(counts=counts), assigned=n)


def drawn(scenario: Scenario, rng: np.random.Generator) -> Series:
    """Draw one rollout's traffic: requests are assigned, fail and take their time independently of each other."""
    total = round(CANARY_REQUESTS / scenario.share)
    canary_requests = rng.binomial(total, scenario.share, N_LOOKS)
    stable_requests = total - canary_requests
    first, _ = _bucket_shares(1.0)
    return Series(
        first=first,
        canary_requests=canary_requests,
        canary_errors=rng.binomial(canary_requests, scenario.error_rate),
        canary_latencies=rng.multinomial(canary_requests, _bucket_shares(scenario.slower)[1]),
        stable_requests=stable_requests,
        stable_errors=rng.binomial(stable_requests, BASE_ERROR_RATE),
        stable_latencies=rng.multinomial(stable_requests, _bucket_shares(1.0)[1]),
    )


_SHARES: dict[float, tuple[int, NDArray[np.float64]]] = {}


def _bucket_shares(slower: float) -> tuple[int, NDArray[np.float64]]:
    """Return the first bucket in use, and the share of each bucket from there on; latencies are log-normal."""
    if slower not in _SHARES:
        first = bucket_of(MEDIAN_S * math.exp(-4 * SIGMA))
        last = bucket_of(MEDIAN_S * 3 * math.exp(4 * SIGMA))
        edges = np.array([upper_edge_s(bucket) for bucket in range(first, min(last, LAST_BUCKET - 1))])
        normal = NormalDist(math.log(MEDIAN_S * slower), SIGMA)
        below = np.array([normal.cdf(math.log(edge)) for edge in edges])
        _SHARES[slower] = first, np.diff(below, prepend=0.0, append=1.0)
    return _SHARES[slower]
