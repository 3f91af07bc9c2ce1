"""How the analysis of a rollout looked over time: a bounded number of looks, the same distance apart.

Every look is kept until there are more than `MAX_LOOKS`. Then every second one is forgotten, and from there on only
every second new one is kept, later every fourth, and so on. So what is stored never exceeds the bound, whether a
rollout takes minutes or months, and the first look and the last are always there. Numbers are kept to five digits.
"""

from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from serve_app.domain.analysis import Analysis, Tally

MAX_LOOKS: Final = 80
"""Even, so that what is left after thinning are every second of the looks from the first on."""
DIGITS: Final = 5


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Band(NamedTuple):
    """One metric at one look: the estimated difference and its confidence sequence, in the unit of the metric."""

    difference: float
    lower: float
    upper: float


class Look(_Document):
    """What was known at one time, in seconds since the epoch: answers of each side so far, and metrics by name.

    A metric that nothing could be said of is missing.
    """

    at_s: float
    n_stable: int
    n_canary: int
    metrics: dict[str, Band] = {}


class Looks(_Document):
    """The looks of one rollout: of `count` that there were, every `every`th, and the `last`."""

    every: int = Field(default=1, ge=1)
    count: int = Field(default=0, ge=0)
    kept: tuple[Look, ...] = ()
    last: Look | None = None

    def plus(self, look: Look) -> "Looks":
        """Return the looks with one more, thinned out where they are too many."""
        kept, every = self.kept, self.every
        if self.count % every == 0:
            kept = (*kept, look)
        if len(kept) > MAX_LOOKS:
            kept, every = kept[::2], 2 * every
        return Looks.model_construct(every=every, count=self.count + 1, kept=kept, last=look)

    @property
    def told(self) -> tuple[Look, ...]:
        """The looks that are known, from the first to the last."""
        if self.last is None or self.kept[-1:] == (self.last,):
            return self.kept
        return (*self.kept, self.last)

    def of(self, metric: str) -> tuple[tuple[float, Band], ...]:
        """Return one metric with the time of each look that could say something of it."""
        return tuple((look.at_s, look.metrics[metric]) for look in self.told if metric in look.metrics)


def look_of(analysis: Analysis, tally: Tally, *, at_s: float) -> Look:
    """Return what an analysis says, as it is kept."""
    bands = {}
    for metric in analysis.metrics:
        if metric.interval is not None and metric.difference is not None:
            bands[metric.name] = Band(
                _short(metric.difference), _short(metric.interval.lower), _short(metric.interval.upper)
            )
    return Look(at_s=round(at_s, 1), n_stable=tally.stable.requests, n_canary=tally.canary.requests, metrics=bands)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
