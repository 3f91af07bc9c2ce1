"""What a rollout is judged by: its metrics, their margins, and how often it may be judged wrongly."""

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.domain.histogram import buckets_within

MIN_COUNTS = 100
MIN_VALUES = 500
"""Values of which a mean is judged, for each variant; the sequence is asymptotic and values may be skewed."""


class MetricKind(StrEnum):
    """What is compared."""

    ERROR_RATE = "error_rate"
    LATENCY_QUANTILE = "latency_quantile"
    LATENCY_MEAN = "latency_mean"
    DISAGREEMENT = "disagreement"
    LOSS = "loss"

    @property
    def is_mean(self) -> bool:
        """True for means, of which the sequence is asymptotic."""
        return self in (MetricKind.LATENCY_MEAN, MetricKind.LOSS)


_ABSOLUTE_BY_DEFAULT = frozenset({MetricKind.ERROR_RATE, MetricKind.DISAGREEMENT})


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Metric(_Document):
    """One thing that must not get worse. More is always worse: errors, latency, losses, disagreement.

    `max_increase` is the margin: 0.005 of an error rate is half a percentage point, 0.2 of a latency a fifth more.
    `relative` says that it is a share of the stable variant's value; by default it is for latencies and losses, not for
    rates of errors, of which nothing could be said while there are none. `quantile` belongs to `latency_quantile`,
    `loss` names one of `Measurement.means`. `min_samples` holds for each variant; by default 100, and 500 for means.
    """

    kind: MetricKind
    max_increase: float = Field(gt=0.0)
    relative: bool | None = None
    quantile: float | None = Field(default=None, gt=0.0, lt=1.0)
    loss: str | None = None
    min_samples: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        for name, kind in (("quantile", MetricKind.LATENCY_QUANTILE), ("loss", MetricKind.LOSS)):
            if (getattr(self, name) is not None) != (self.kind is kind):
                raise ValueError(
                    f"{name}: expected exactly with the kind {kind.value}, found the kind {self.kind.value}"
                )
        if self.kind is MetricKind.LATENCY_QUANTILE and (not self.is_relative or not buckets_within(self.max_increase)):
            raise ValueError(f"max_increase: expected a relative one of at least 0.045, found {self.max_increase!r}")
        if self.kind is MetricKind.DISAGREEMENT and (self.is_relative or self.max_increase >= 1):
            raise ValueError(f"max_increase: expected an absolute one below 1, found {self.max_increase!r}")
        return self

    @property
    def name(self) -> str:
        """Return what tells this metric from others: `error_rate`, `latency_p95`, `loss_mae`."""
        if self.quantile is not None:
            return f"latency_p{self.quantile * 100:g}"
        return f"loss_{self.loss}" if self.loss is not None else self.kind.value

    @property
    def is_relative(self) -> bool:
        """True when the margin is a share of the stable variant's value."""
        return self.kind not in _ABSOLUTE_BY_DEFAULT if self.relative is None else self.relative

    @property
    def shown_margin(self) -> str:
        """Return the margin as people write it."""
        if self.is_relative:
            return f"{self.max_increase * 100:g} %"
        is_rate = self.kind in (MetricKind.ERROR_RATE, MetricKind.DISAGREEMENT)
        return f"{self.max_increase * 100:g} percentage points" if is_rate else f"{self.max_increase:g}"

    @property
    def needed(self) -> int:
        """Return the minimum sample of each variant."""
        return self.min_samples or (MIN_VALUES if self.kind.is_mean else MIN_COUNTS)


DEFAULT_METRICS = (
    Metric(kind=MetricKind.ERROR_RATE, max_increase=0.005),
    Metric(kind=MetricKind.LATENCY_QUANTILE, quantile=0.95, max_increase=0.2),
)


class AnalysisPlan(_Document):
    """What is judged, and how often it may be judged wrongly: `alpha` over all metrics, both sides and all looks.

    `srm_alpha` is the part of `alpha` for the split (sample-ratio mismatch): small, since a broken split is found
    within a few thousand assignments anyway.
    """

    alpha: float = Field(default=0.05, gt=0.0, lt=0.5)
    srm_alpha: float = Field(default=0.001, gt=0.0)
    metrics: tuple[Metric, ...] = Field(default=DEFAULT_METRICS, min_length=1)

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        names = [metric.name for metric in self.metrics]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"metrics: expected each once, found twice: {', '.join(twice)}")
        if self.srm_alpha >= self.alpha:
            raise ValueError(f"srm_alpha: expected less than alpha ({self.alpha!r}), found {self.srm_alpha!r}")
        return self

    @property
    def side_alpha(self) -> float:
        """Return the error probability of one side of one metric."""
        return (self.alpha - self.srm_alpha) / (2 * len(self.metrics))
