"""Other ways to decide when to abort, on the same traffic. Looks are counted from 1; 0 is never."""

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.statistics import mixture_boundary
from tests.simulations.scenarios import ANALYSIS, CANARY_REQUESTS, Series

NEVER = 0
FLAGGER_THRESHOLD = 5
"""Failed checks after which Flagger rolls back; they need not be in a row."""
Z_LIMIT = 1.959964
"""Of a two-sided test at 5 %."""
INTENDED = 10 * CANARY_REQUESTS
PRIOR = 0.18
"""Both parameters of the beta distribution that Turner, Ly and Grünwald recommend."""

Counts = NDArray[np.int64]

RIVALS = (
    "Flagger's rule, at most 1 % errors",
    "Flagger's rule, at most 2 % errors",
    "z-test at every look, errors",
    "z-test at every look, errors and slowness",
    "asymptotic confidence sequence, errors",
    "plug-in e-variable, errors",
)


def crossings(series: Series) -> tuple[int, ...]:
    """Return the look at which each rival aborts, in the order of `RIVALS`."""
    errors = (series.canary_errors, series.canary_requests, series.stable_errors, series.stable_requests)
    slow = (
        series.slow(series.canary_latencies), series.canary_requests,
        series.slow(series.stable_latencies), series.stable_requests,
    )  # fmt: skip
    by_z = z_crossing(*errors), z_crossing(*slow)
    return (
        flagger_crossing(series, 0.01),
        flagger_crossing(series, 0.02),
        by_z[0],
        min((look for look in by_z if look), default=NEVER),
        asymptotic_crossing(*errors),
        plug_in_crossing(*errors),
    )


def flagger_crossing(series: Series, limit: float) -> int:
    """Flagger's rule: the canary's error rate was above a fixed limit in five checks."""
    failures = (series.canary_errors > limit * series.canary_requests).cumsum()
    return _first(failures >= FLAGGER_THRESHOLD)


def z_crossing(x: Counts, n: Counts, s: Counts, m: Counts) -> int:
    """A z-test of two proportions on all data so far calls the canary worse."""
    x, n, s, m = x.cumsum(), n.cumsum(), s.cumsum(), m.cumsum()
    pooled = (x + s) / (n + m)
    error = np.sqrt(np.maximum(pooled * (1 - pooled) * (1 / n + 1 / m), 1e-300))
    return _first((x / n - s / m) / error > Z_LIMIT)


def asymptotic_crossing(x: Counts, n: Counts, s: Counts, m: Counts) -> int:
    """The asymptotic confidence sequence of Waudby-Smith et al. (2024) lies above 0, at our level for one side."""
    x, n, s, m = x.cumsum(), n.cumsum(), s.cumsum(), m.cumsum()
    p, q = x / n, s / m
    error = np.sqrt(p * (1 - p) / n + q * (1 - q) / m)
    sizes = (n * m / (n + m)).tolist()
    boundary = np.array([mixture_boundary(t, 2 * ANALYSIS.side_alpha, intended=INTENDED) for t in sizes])
    return _first((p - q > error * boundary) & (x > 0))


def plug_in_crossing(x: Counts, n: Counts, s: Counts, m: Counts) -> int:
    """The e-variable of two samples of Turner, Ly and Grünwald (2024), against "equal", at our level for both sides.

    Each batch is bet on with the rates that a beta prior and the batches before it give.
    """
    p = (x.cumsum() - x + PRIOR) / (n.cumsum() - n + 2 * PRIOR)
    q = (s.cumsum() - s + PRIOR) / (m.cumsum() - m + 2 * PRIOR)
    both = (n * p + m * q) / (n + m)
    events = x * np.log(p / both) + s * np.log(q / both)
    others = (n - x) * np.log((1 - p) / (1 - both)) + (m - s) * np.log((1 - q) / (1 - both))
    worse = x.cumsum() * m.cumsum() > s.cumsum() * n.cumsum()
    return _first(((events + others).cumsum() >= -np.log(2 * ANALYSIS.side_alpha)) & worse)


def _first(crossed: NDArray[np.bool_]) -> int:
    return int(crossed.argmax()) + 1 if crossed.any() else NEVER
