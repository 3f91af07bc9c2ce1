"""Judge forecasts honestly: split by time, compare with baselines that need no training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from training.features import FEATURE_NAMES, TARGETS

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

PERSISTENCE: Mapping[str, str] = MappingProxyType({"last_value": "{}_last", "mean_60s": "{}_mean_60s"})
"""Baselines that say the future is like the past, and the feature each repeats (`{}` is the target's column)."""


@dataclass(frozen=True, slots=True)
class Score:
    """Errors of one forecast of one target, in the target's unit."""

    mae: float
    rmse: float

    @classmethod
    def of(cls, forecast: Array, truth: Array) -> "Score":
        """Score a forecast against what came, both float64 (n,)."""
        errors = forecast - truth
        return cls(mae=float(np.abs(errors).mean()), rmse=float(np.sqrt((errors**2).mean())))

    def skill_against(self, baseline: "Score") -> "Score":
        """Return the share of the baseline's error that is gone: 1 is perfect, 0 no better, negative worse."""
        return Score(mae=_skill(self.mae, baseline.mae), rmse=_skill(self.rmse, baseline.rmse))


def _skill(error: float, baseline: float) -> float:
    if baseline == 0.0:
        return 0.0 if error == 0.0 else -1.0
    return 1.0 - error / baseline


@dataclass(frozen=True, slots=True)
class TargetReport:
    """How one target's model did on the held-out part, beside the baselines on the same rows."""

    target: str
    model: Score
    baselines: Mapping[str, Score]

    @property
    def beaten_by(self) -> tuple[str, ...]:
        """Baselines that are at least as good as the model in MAE or in RMSE."""
        return tuple(
            name
            for name, baseline in self.baselines.items()
            if baseline.mae <= self.model.mae or baseline.rmse <= self.model.rmse
        )

    def as_json(self) -> dict[str, object]:
        """Return the numbers as they stand in the manifest."""
        baselines = {}
        for name, score in self.baselines.items():
            skill = self.model.skill_against(score)
            baselines[name] = {**_rounded(score), "skill_mae": round(skill.mae, 4), "skill_rmse": round(skill.rmse, 4)}
        return {**_rounded(self.model), "baselines": baselines, "beaten_by": list(self.beaten_by)}


def _rounded(score: Score) -> dict[str, float]:
    return {"mae": round(score.mae, 6), "rmse": round(score.rmse, 6)}


def report(target: str, forecast: Array, truth: Array, inputs: Array, training_mean: float) -> TargetReport:
    """Score a target's forecast, the persistence baselines and the mean of the training part on the same rows."""
    column = TARGETS[target]
    baselines = {
        name: Score.of(inputs[:, FEATURE_NAMES.index(feature.format(column))], truth)
        for name, feature in PERSISTENCE.items()
    }
    baselines["training_mean"] = Score.of(np.full_like(truth, training_mean), truth)
    return TargetReport(target, Score.of(forecast, truth), MappingProxyType(baselines))


def split_at(times_s: Array, first: int, stop: int, *, gap_s: float) -> tuple[Indices, Indices]:
    """Split rows in order of time: rows `first` … `stop - 1` are held out, rows `gap_s` or more before them train.

    With the horizon as the gap, no second that a training target is made of comes after the first held-out moment.
    """
    n_training = int(np.searchsorted(times_s, times_s[first] - gap_s, side="right"))
    return np.arange(n_training), np.arange(first, stop)


def expanding_folds(times_s: Array, *, n_folds: int, gap_s: float) -> Iterator[tuple[Indices, Indices]]:
    """Yield folds that validate on one slice after another of the later 60 %, each trained on all that came before."""
    edges = np.linspace(0.4, 1.0, n_folds + 1) * len(times_s)
    for first, stop in zip(edges[:-1].astype(int), edges[1:].astype(int), strict=True):
        yield split_at(times_s, int(first), int(stop), gap_s=gap_s)


def report_table(reports: Sequence[TargetReport], units: Mapping[str, str]) -> Table:
    """Lay the reports out for a terminal: errors of model and baselines, and the skill of the model against each."""
    table = Table("target", "forecast", box=None, pad_edge=False, title="held-out part", title_justify="left")
    for heading in ("MAE", "RMSE", "skill MAE", "skill RMSE"):
        table.add_column(heading, justify="right")
    for one in reports:
        table.add_row(
            f"{one.target} ({units[one.target]})", "model", f"{one.model.mae:.3f}", f"{one.model.rmse:.3f}", "", ""
        )
        for name, score in one.baselines.items():
            skill = one.model.skill_against(score)
            table.add_row("", name, f"{score.mae:.3f}", f"{score.rmse:.3f}", f"{skill.mae:+.1%}", f"{skill.rmse:+.1%}")
    return table
