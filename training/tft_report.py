"""Judge a forecaster of a fleet on time that it never saw, beside two forecasts that need no training.

`persistence` repeats the last value, `seasonal_naive` what was measured at the same time the day before (or a season
before, as the configuration says). All three are judged on the same windows and futures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from serve_app.adapters.loaders.tft.forecaster import TftForecaster
from serve_app.adapters.loaders.tft.server_mapping import ServerMapping
from serve_app.adapters.loaders.tft.tft_config import TftConfig
from training.fit_tft import Windows
from training.fleet_data import Fleet

Array = NDArray[np.float32]

BASELINES = ("persistence", "seasonal_naive")
_EDGES_S = (1800, 7200)
"""Where one group of horizons ends and the next begins: half an hour, two hours."""


@dataclass(frozen=True, slots=True)
class GroupReport:
    """One metric over one group of horizons, in the metric's unit.

    `mae` is by forecast, the model's being its median (or the quantile nearest to it); `coverage` is the share of what
    came that lies between the lowest and the highest quantile.
    """

    metric: str
    unit: str
    horizon: str
    mae: Mapping[str, float]
    coverage: float

    @property
    def beaten_by(self) -> tuple[str, ...]:
        """Baselines that are at least as good as the model."""
        return tuple(name for name in BASELINES if self.mae[name] <= self.mae["model"])

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as they stand in the manifest."""
        return {
            **{name: round(value, 4) for name, value in self.mae.items()},
            "coverage": round(self.coverage, 4),
            "beaten_by": list(self.beaten_by),
        }


@dataclass(frozen=True, slots=True)
class TftReport:
    """All groups, and on how many windows they rest."""

    groups: tuple[GroupReport, ...]
    n_windows: int

    def as_json(self) -> dict[str, Any]:
        """Return metric -> horizon -> numbers."""
        document: dict[str, Any] = {}
        for group in self.groups:
            document.setdefault(group.metric, {})[group.horizon] = group.as_json()
        return {"windows": self.n_windows, "metrics": document}


def horizon_groups(config: TftConfig) -> dict[str, slice]:
    """Return the groups of future steps by their names, such as `to 30 min`."""
    ends = [edge // config.step_seconds for edge in _EDGES_S]
    edges = sorted({0, *(end for end in ends if 0 < end < config.max_prediction_length), config.max_prediction_length})
    return {f"to {_duration(last * config.step_seconds)}": slice(first, last) for first, last in pairwise(edges)}


def judge(forecaster: TftForecaster, mapping: ServerMapping, fleet: Fleet, *, first: int, stride: int) -> TftReport:
    """Forecast every server of `fleet` at every `stride`-th step whose future begins at step `first` or later.

    A server that `mapping` lacks is forecast as an unknown one.
    """
    config = forecaster.config
    windows = Windows(fleet, config, mapping)
    servers = np.arange(len(fleet.servers))[None]
    ends = np.arange(first - 1, fleet.n_steps - config.max_prediction_length, stride)
    pasts, futures, forecasts = [], [], []
    for end in ends.tolist():
        moment = np.array([end])
        past, future = windows.cut(moment, servers)
        times_s = np.repeat(windows.end_times_s(moment), len(past))
        forecasts.append(forecaster.forecast(past, times_s, windows.numbers(servers.ravel())))
        pasts.append(past)
        futures.append(future)
    past, future, quantiles = (np.concatenate(part) for part in (pasts, futures, forecasts))
    by_name = {"model": quantiles[..., _median(config)], **_baselines(config, past)}
    inside = (future >= quantiles[..., 0]) & (future <= quantiles[..., -1])
    groups = []
    for column, metric in enumerate(config.metrics):
        for name, steps in horizon_groups(config).items():
            truth = future[:, steps, column]
            mae = {kind: _mae(forecast[:, steps, column], truth) for kind, forecast in by_name.items()}
            coverage = float(inside[:, steps, column][~np.isnan(truth)].mean())
            groups.append(GroupReport(metric.name, metric.unit or "", name, mae, coverage))
    return TftReport(tuple(groups), len(past))


def _baselines(config: TftConfig, past: Array) -> dict[str, Array]:
    ahead = config.max_prediction_length
    season = config.season_steps or 86_400 // config.step_seconds
    first = config.max_encoder_length - season
    before = past[:, max(first, 0) :][:, :ahead]
    if first < 0 or before.shape[1] < ahead:  # the window is shorter than a season: repeat it
        before = np.tile(past, (1, -(-ahead // past.shape[1]), 1))[:, :ahead]
    return {"persistence": np.repeat(_last(past), ahead, axis=1), "seasonal_naive": before}


def _last(past: Array) -> Array:
    """Return the last observed value of each window, (B, 1, M)."""
    observed = ~np.isnan(past)
    places = past.shape[1] - 1 - observed[:, ::-1].argmax(axis=1, keepdims=True)
    return np.take_along_axis(past, places, axis=1)


def _mae(forecast: Array, truth: Array) -> float:
    errors = np.abs(forecast - truth)
    return float(np.nanmean(errors)) if not np.isnan(errors).all() else float("nan")


def _median(config: TftConfig) -> int:
    return int(np.abs(np.array(config.quantiles) - 0.5).argmin())


def _duration(seconds: int) -> str:
    if seconds % 3600 == 0:
        return f"{seconds // 3600} h"
    return f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"


def report_table(title: str, groups: Sequence[GroupReport]) -> Table:
    """Lay a report out: mean absolute errors, and by how much the model's is below the better baseline's."""
    table = Table("metric", "horizon", box=None, pad_edge=False, title=title, title_justify="left")
    for heading in ("model", *BASELINES, "gain", "coverage"):
        table.add_column(heading, justify="right")
    shown = ""
    for group in groups:
        best = min(group.mae[name] for name in BASELINES)
        gain = 1 - group.mae["model"] / best if best else 0.0
        label = f"{group.metric} ({group.unit})" if group.unit else group.metric
        table.add_row(
            "" if label == shown else label,
            group.horizon,
            *(f"{group.mae[name]:.3f}" for name in ("model", *BASELINES)),
            f"{gain:+.1%}",
            f"{group.coverage:.0%}",
        )
        shown = label
    return table
