"""What the forecaster knows and what it is asked: features from the last 300 s, targets from the next 60 s.

A row of features at second t is made of the seconds t-299 … t only; the targets at t are means over t+1 … t+60. One
function computes both a whole table and a single row, so that training and a client get equal numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from serve_app.domain.signature import Column, Signature
from training.datasets import UNITS, DatasetError, Series

Array = NDArray[np.float64]

HISTORY_S = 300
"""Seconds of the past that one row of features needs, the longest window of any feature."""
HORIZON_S = 60
"""Seconds of the future that one target is the mean of."""
_CHUNK_ROWS = 2048  # windows are copied to make them contiguous: 2,048 of them are 5 MB


def _slope(windows: Array) -> Array:
    """Slope of the least-squares line through each window, per second."""
    seconds = np.arange(windows.shape[-1], dtype=np.float64)
    seconds -= seconds.mean()
    # a sum, not a matrix product: BLAS adds in another order for one row than for many
    slope: Array = (windows * seconds).sum(axis=-1) / (seconds**2).sum()
    return slope


@dataclass(frozen=True, slots=True)
class _Statistic:
    """How windows, float64 (n, seconds), become one number each; `{}` in `unit` stands for the unit of the series."""

    compute: Callable[[Array], Array]
    unit: str
    text: str


_STATISTICS: Mapping[str, _Statistic] = MappingProxyType(
    {
        "last": _Statistic(lambda windows: windows[:, -1], "{}", "latest value"),
        "mean": _Statistic(lambda windows: windows.mean(axis=-1), "{}", "mean"),
        "std": _Statistic(lambda windows: windows.std(axis=-1), "{}", "standard deviation"),
        "min": _Statistic(lambda windows: windows.min(axis=-1), "{}", "lowest value"),
        "max": _Statistic(lambda windows: windows.max(axis=-1), "{}", "highest value"),
        "slope": _Statistic(_slope, "{}/s", "slope of the fitted line"),
        "log1p_mean": _Statistic(lambda windows: np.log1p(windows.mean(axis=-1)), "ln(1 + {})", "log of 1 + mean"),
    }
)


@dataclass(frozen=True, slots=True)
class Feature:
    """One statistic of one series over the last `seconds`."""

    series: str
    statistic: str
    seconds: int = 1

    @property
    def name(self) -> str:
        """E.g. `cpu_percent_mean_60s`; the latest value has no length."""
        return f"{self.series}_{self.statistic}" + (f"_{self.seconds}s" if self.statistic != "last" else "")

    @property
    def column(self) -> Column:
        """The feature as a column of the signature, with its unit."""
        statistic = _STATISTICS[self.statistic]
        over = f" over the last {self.seconds} s" if self.statistic != "last" else ""
        unit = statistic.unit.format(_SERIES_UNITS[self.series])
        return Column(name=self.name, unit=unit, description=f"{statistic.text} of {self.series}{over}")


_SERIES_UNITS: Mapping[str, str] = {**UNITS, "cpu_core_max_percent": "percent", "cpu_core_min_percent": "percent"}

FEATURES: tuple[Feature, ...] = (
    Feature("cpu_percent", "last"),
    Feature("cpu_percent", "mean", 10),
    Feature("cpu_percent", "mean", 30),
    Feature("cpu_percent", "mean", 60),
    Feature("cpu_percent", "mean", 300),
    Feature("cpu_percent", "std", 60),
    Feature("cpu_percent", "std", 300),
    Feature("cpu_percent", "min", 60),
    Feature("cpu_percent", "max", 60),
    Feature("cpu_percent", "slope", 60),
    Feature("cpu_core_max_percent", "mean", 60),
    Feature("cpu_core_min_percent", "mean", 60),
    Feature("load_1m", "last"),
    Feature("load_5m", "last"),
    Feature("memory_percent", "last"),
    Feature("memory_percent", "mean", 60),
    Feature("memory_percent", "mean", 300),
    Feature("memory_percent", "min", 300),
    Feature("memory_percent", "max", 300),
    Feature("memory_percent", "slope", 30),
    Feature("power_watts", "last"),
    Feature("power_watts", "mean", 60),
    Feature("context_switches_per_s", "log1p_mean", 10),
    Feature("context_switches_per_s", "log1p_mean", 60),
    Feature("interrupts_per_s", "log1p_mean", 60),
    Feature("disk_read_bytes_per_s", "log1p_mean", 60),
    Feature("disk_write_bytes_per_s", "log1p_mean", 10),
    Feature("disk_write_bytes_per_s", "log1p_mean", 60),
    Feature("net_sent_bytes_per_s", "log1p_mean", 60),
    Feature("net_received_bytes_per_s", "log1p_mean", 60),
    Feature("processes", "last"),
    Feature("processes", "mean", 60),
)
FEATURE_NAMES = tuple(feature.name for feature in FEATURES)

TARGETS: Mapping[str, str] = MappingProxyType(
    {"cpu_usage_node": "cpu_percent", "ram_usage_node": "memory_percent", "power_usage_node": "power_watts"}
)
"""Each target and the column whose mean over the next `HORIZON_S` seconds it is."""

SIGNATURE = Signature(
    inputs=tuple(feature.column for feature in FEATURES),
    outputs=tuple(
        Column(name=target, unit=UNITS[column], description=f"mean of {column} over the next {HORIZON_S} s")
        for target, column in TARGETS.items()
    ),
)


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows for training in order of time.

    `times_s` is float64 (n,), seconds since the epoch; `inputs` float64 (n, n_features) as in `FEATURES`; `targets`
    float64 (n, n_targets) as in `TARGETS`.
    """

    times_s: Array
    inputs: Array
    targets: Array

    def __len__(self) -> int:
        return len(self.times_s)


def features_of(window: Series) -> Array:
    """Return the features at the last second of `window`, float64 (n_features,).

    Raises:
        DatasetError: The window is shorter than `HISTORY_S`.
    """
    if len(window) < HISTORY_S:
        raise DatasetError(f"expected a window of at least {HISTORY_S} s, got {len(window)} s")
    row: Array = _features(window, first=len(window) - HISTORY_S, stop=len(window) - HISTORY_S + 1)[0]
    return row


def feature_table(series: Series) -> Array:
    """Return the features at every second that has its history: float64 (n_seconds - HISTORY_S + 1, n_features)."""
    return _features(series, first=0, stop=max(len(series) - HISTORY_S + 1, 0))


def target_table(series: Series) -> Array:
    """Return the targets at every second that has its future: float64 (n_seconds - HORIZON_S, n_targets)."""
    if len(series) <= HORIZON_S:
        return np.empty((0, len(TARGETS)))
    futures = [sliding_window_view(series.column(name)[1:], HORIZON_S).mean(axis=-1) for name in TARGETS.values()]
    return np.stack(futures, axis=1)


def examples_of(segments: Sequence[Series]) -> Examples:
    """Pair features and targets at every second with both; no window or target crosses from one segment to the next."""
    long_enough = [segment for segment in segments if len(segment) >= HISTORY_S + HORIZON_S]
    if not long_enough:
        return Examples(np.empty(0), np.empty((0, len(FEATURES))), np.empty((0, len(TARGETS))))
    return Examples(
        times_s=np.concatenate([s.start_s + np.arange(HISTORY_S - 1, len(s) - HORIZON_S) for s in long_enough]),
        inputs=np.concatenate([feature_table(s)[:-HORIZON_S] for s in long_enough]),
        targets=np.concatenate([target_table(s)[HISTORY_S - 1 :] for s in long_enough]),
    )


def _features(series: Series, *, first: int, stop: int) -> Array:
    """Compute the features of the windows that begin at rows `first` … `stop - 1`."""
    table = np.empty((stop - first, len(FEATURES)))
    places: dict[str, list[int]] = {}
    for place, feature in enumerate(FEATURES):
        places.setdefault(feature.series, []).append(place)
    for name, its_places in places.items():
        values = _values_of(series, name)
        for begin in range(first, stop, _CHUNK_ROWS):
            end = min(begin + _CHUNK_ROWS, stop)
            # contiguous rows: numpy then adds up every window in the same order, be it one or thousands
            windows = np.ascontiguousarray(sliding_window_view(values, HISTORY_S)[begin:end])
            for place in its_places:
                feature = FEATURES[place]
                compute = _STATISTICS[feature.statistic].compute
                table[begin - first : end - first, place] = compute(windows[:, -feature.seconds :])
    return table


def _values_of(series: Series, name: str) -> Array:
    """Return a series by its name: a column, or the busiest and the idlest core of every second."""
    if name not in ("cpu_core_max_percent", "cpu_core_min_percent"):
        return series.column(name)
    cores = np.stack([series.column(core) for core in series.core_columns])
    values: Array = cores.max(axis=0) if name == "cpu_core_max_percent" else cores.min(axis=0)
    return values
