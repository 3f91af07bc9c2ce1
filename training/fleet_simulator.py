"""A fleet that nobody owns: several metrics of many servers, made by stated rules and a seed.

What is in it, so that a forecast has something to find and something it cannot know:

- a day and a week: each role (web, database, batch, cache) has its own curve, weekends are quieter;
- correlated load: the servers of a site share a slow random factor;
- deploys on working days: the role's servers restart one after another, with a peak of CPU and memory given back,
  after which it leaks again until the next one;
- incidents of half an hour to three hours, on more than half of a site's servers at once;
- a nightly backup at each server's own hour: disk, and a little CPU;
- noise with a memory of about an hour on top of noise without.

The shocks of the noise can be drawn from a recording of a real node (`recorded_shocks`), which gives them its heavy
tails and the dependence between its metrics.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve_app.adapters.loaders.tft.tft_config import Metric
from training.datasets import RECORDING, read_recording
from training.fleet_data import STEP_S, Fleet

Array = NDArray[np.float64]

METRICS = (
    Metric(name="cpu_percent", unit="percent", minimum=0.0, maximum=100.0),
    Metric(name="memory_percent", unit="percent", minimum=0.0, maximum=100.0),
    Metric(name="disk_io_mb_per_s", unit="MB/s", transform="log1p", minimum=0.0),
)
START_S = 1_767_571_200.0
"""Monday 2026-01-05 00:00 UTC."""
SITES = 3
_DAY_STEPS = 86_400 // STEP_S


@dataclass(frozen=True, slots=True)
class _Role:
    """Level and swing of CPU in percent, hour (UTC) and width of its peak, share of it at weekends, memory, disk."""

    name: str
    cpu: float
    swing: float
    peak_hour: float
    width_h: float
    weekend: float
    memory: float
    disk_mb: float


_ROLES = (
    _Role("web", cpu=14, swing=42, peak_hour=14, width_h=4.5, weekend=0.55, memory=38, disk_mb=3),
    _Role("db", cpu=22, swing=28, peak_hour=15, width_h=5.0, weekend=0.7, memory=62, disk_mb=18),
    _Role("batch", cpu=8, swing=55, peak_hour=2, width_h=2.0, weekend=0.8, memory=30, disk_mb=9),
    _Role("cache", cpu=10, swing=18, peak_hour=19, width_h=4.0, weekend=1.1, memory=60, disk_mb=1),
)


def simulate(*, servers: int, days: int, seed: int, shocks: Array | None = None) -> Fleet:
    """Make `servers` servers over `days` days; the same arguments always give the same fleet.

    `shocks` is float64 (n, 3), standardised, one column a metric; rows are drawn from it. None draws normal ones.
    """
    rng = np.random.default_rng([seed, servers, days])
    n_steps = days * _DAY_STEPS
    steps = np.arange(n_steps)
    sites = [_slow_factor(rng, n_steps) for _ in range(SITES)]
    incidents = [_incidents(rng, n_steps) for _ in range(SITES)]
    deploys = {role.name: _deploy_days(rng, days) for role in _ROLES}
    values = np.empty((servers, n_steps, len(METRICS)), dtype=np.float32)
    names = []
    for i in range(servers):
        role, site = _ROLES[i % len(_ROLES)], (i // len(_ROLES)) % SITES
        names.append(f"{role.name}-{i // len(_ROLES) + 1:02d}")
        trouble = incidents[site] * (rng.random() < 0.6)
        restarts = deploys[role.name] + 3 * (i // len(_ROLES))  # rolling, a quarter of an hour apart
        values[i] = _server(rng, role, steps, sites[site], trouble, restarts, _noise(rng, n_steps, shocks))
    facts = {
        "kind": "simulated",
        "seed": seed,
        "servers": servers,
        "days": days,
        "start": "2026-01-05T00:00:00Z",
        "shocks": "normal" if shocks is None else f"drawn from {len(shocks)} recorded minutes",
    }
    return Fleet(tuple(names), METRICS, STEP_S, START_S, values, facts)


def recorded_shocks(path: Path = RECORDING) -> Array:
    """Return how a real node's minutes differ from the quarter of an hour around them, float64 (n, 3), standardised.

    The recording is an hour and a half at one row a second: far too short for a day, a week or an incident, and all it
    gives is this. What is kept is how large rare shocks are beside usual ones, and how the metrics move together; what
    is not is their time scale, for a recorded minute stands in for a simulated step of five.
    """
    minutes = []
    for segment in read_recording(path).segments:
        disk = segment.column("disk_read_bytes_per_s") + segment.column("disk_write_bytes_per_s")
        columns = (segment.column("cpu_percent"), segment.column("memory_percent"), np.log1p(disk / 1e6))
        seconds = np.stack(columns, axis=1)
        n = len(seconds) // 60
        minutes.append(_away_from_trend(seconds[: n * 60].reshape(n, 60, 3).mean(axis=1)))
    shocks = np.concatenate(minutes)
    spread = shocks.std(axis=0)
    standardised: Array = (shocks - shocks.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return standardised


def _away_from_trend(minutes: Array, window: int = 15) -> Array:
    """Subtract the mean of the `window` minutes around each."""
    padded = np.pad(minutes, ((window // 2, window // 2), (0, 0)), mode="edge")
    sums = np.cumsum(np.concatenate([np.zeros((1, minutes.shape[1])), padded]), axis=0)
    trend: Array = (sums[window:] - sums[:-window]) / window
    return minutes - trend


def _server(
    rng: np.random.Generator,
    role: _Role,
    steps: NDArray[np.int64],
    site: Array,
    trouble: Array,
    restarts: NDArray[np.int64],
    noise: Array,
) -> Array:
    """Return one server's metrics, (n_steps, 3)."""
    size = rng.uniform(0.75, 1.25, size=3)
    hours = (steps / 12 + rng.normal(scale=0.4)) % 24
    weekend = (steps // _DAY_STEPS) % 7 >= 5
    season = _bump(hours, role.peak_hour, role.width_h) * np.where(weekend, role.weekend, 1.0)
    backup = _bump(hours, rng.uniform(0, 5), 0.3)
    since = _steps_since(restarts, steps)
    starting = np.exp(-since / 3.0)
    load = season * (1 + 0.25 * site)
    cpu = size[0] * (role.cpu + role.swing * load) + 8 * backup + 22 * starting + 38 * trouble + 3.2 * noise[:, 0]
    leak = 0.003 * np.minimum(since, 3000) * (1 - starting)
    memory = size[1] * role.memory + leak + 9 * load + 8 * trouble + 0.8 * noise[:, 1]
    log_disk = np.log(size[2] * role.disk_mb) + 0.7 * load + 1.6 * backup + 0.8 * trouble + 0.22 * noise[:, 2]
    return np.stack([cpu.clip(0.5, 100), memory.clip(1, 100), np.exp(log_disk)], axis=1).round(3)


def _bump(hours: Array, centre_h: float, width_h: float) -> Array:
    """Return a curve from 0 to 1 over the day, with its top at `centre_h`."""
    away = (hours - centre_h + 12) % 24 - 12
    curve: Array = np.exp(-0.5 * (away / width_h) ** 2)
    return curve


def _slow_factor(rng: np.random.Generator, n_steps: int) -> Array:
    """Return a random factor that changes over some hours, of standard deviation 1."""
    return _remembering(rng.normal(size=(n_steps, 1)), 0.985)[:, 0]


def _noise(rng: np.random.Generator, n_steps: int, shocks: Array | None) -> Array:
    """Return noise of standard deviation 1, (n_steps, 3): half its variance remembers about an hour, half nothing."""
    shape = (2, n_steps)
    drawn = rng.normal(size=(*shape, 3)) if shocks is None else shocks[rng.integers(len(shocks), size=shape)]
    noise: Array = (_remembering(drawn[0], 0.92) + drawn[1]) / np.sqrt(2)
    return noise


def _remembering(shocks: Array, share: float) -> Array:
    """Return x with `x_t = share x_{t-1} + sqrt(1 - share^2) shock_t`."""
    out = np.empty_like(shocks)
    last = shocks[0]
    for t, shock in enumerate(shocks):
        last = share * last + np.sqrt(1 - share**2) * shock
        out[t] = last
    return out


def _incidents(rng: np.random.Generator, n_steps: int) -> Array:
    """Return 0 to 1: incidents that come every third day or so, rise in a quarter of an hour and end at once."""
    level = np.zeros(n_steps)
    start = 0
    while (start := start + 1 + int(rng.exponential(3 * _DAY_STEPS))) < n_steps:
        length = int(rng.integers(6, 36))
        shape = rng.uniform(0.5, 1.0) * np.minimum(np.arange(1, length + 1) / 3, 1.0)
        level[start : start + length] = np.maximum(level[start : start + length], shape[: n_steps - start])
    return level


def _deploy_days(rng: np.random.Generator, days: int) -> NDArray[np.int64]:
    """Return the steps of a role's deploys: on two working days of five, from 9 to 16 UTC."""
    chosen = [day for day in range(days) if day % 7 < 5 and rng.random() < 0.4]
    return np.array([day * _DAY_STEPS + rng.integers(9 * 12, 16 * 12) for day in chosen], dtype=np.int64)


def _steps_since(restarts: NDArray[np.int64], steps: NDArray[np.int64]) -> Array:
    """Return the steps since the last restart; before the first, as if the last had been two days earlier."""
    if not len(restarts):
        return (steps + 2 * _DAY_STEPS).astype(np.float64)
    latest = np.searchsorted(restarts, steps, side="right") - 1
    return np.where(latest >= 0, steps - restarts[latest.clip(min=0)], steps + 2 * _DAY_STEPS).astype(np.float64)
