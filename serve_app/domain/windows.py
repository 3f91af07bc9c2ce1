"""Rolling windows of measurements, one for each entity: which records are taken, where they go, what is still lacking.

Time is cut into steps of `step_s` seconds since the epoch. A window holds the last `length` steps up to the newest one
that any record of its entity fell into. What happens to a record:

    from the future    more than `max_ahead_s` beyond the clock: refused, for it would push good steps out
    late               older than the window: dropped
    out of order       older than the newest step, inside the window: put where it belongs
    duplicate          same time and same values as the record that holds its step: dropped
    replaced           another record of a step that has one: the one with the later time holds the step
    wrong unit         states another unit than the metric has: refused
    out of range       beyond what the metric can be: refused, most likely a unit that was not stated
    too many entities  the first of an entity when `max_entities` are kept already: refused
    gap                steps between two records stay empty; reading fills up to `max_gap_steps` of them in a row

A refused record changes nothing, and does not keep the others of its batch from being taken. What was acknowledged is
never refused afterwards: a smaller `max_entities` keeps new entities out, and drops none.

An entity is forgotten when its newest record is `forget_after_s` older than the newest of all, at the next compaction.
The clock has no part in this: after a night without any record everybody is still there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from serve_app.domain.errors import RequestError, nearest


class NotReadyError(RequestError):
    """An entity has no window yet that can be predicted from."""


class UnknownEntityError(RequestError):
    """Nothing was ever observed of an entity."""


class Fate(StrEnum):
    """What became of a record. The first four are in the window afterwards, or were before."""

    TAKEN = "taken"
    OUT_OF_ORDER = "out_of_order"
    REPLACED = "replaced"
    DUPLICATE = "duplicate"
    LATE = "late"
    FROM_THE_FUTURE = "from_the_future"
    WRONG_UNIT = "wrong_unit"
    OUT_OF_RANGE = "out_of_range"
    UNKNOWN_METRIC = "unknown_metric"
    NOT_A_NUMBER = "not_a_number"
    TOO_MANY_ENTITIES = "too_many_entities"

    @property
    def is_refused(self) -> bool:
        """True when the sender should look at what it sends."""
        return self in _REFUSED


_REFUSED = frozenset(
    {
        Fate.FROM_THE_FUTURE,
        Fate.WRONG_UNIT,
        Fate.OUT_OF_RANGE,
        Fate.UNKNOWN_METRIC,
        Fate.NOT_A_NUMBER,
        Fate.TOO_MANY_ENTITIES,
    }
)


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured quantity: its unit, and the values it can have."""

    name: str
    unit: str = ""
    lowest: float = -math.inf
    highest: float = math.inf


@dataclass(frozen=True, slots=True)
class WindowRules:
    """How windows are kept. `length` steps of `step_s` seconds; times may run ahead of the clock by `max_ahead_s`.

    At most `max_entities` are taken in, and those without a record for `forget_after_s` are forgotten.
    """

    metrics: tuple[Metric, ...]
    length: int = 288
    step_s: int = 300
    max_gap_steps: int = 6
    max_ahead_s: float = 600.0
    max_entities: int = 20_000
    forget_after_s: float = 604_800.0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics, in the order of a window's columns."""
        return tuple(metric.name for metric in self.metrics)

    def step_of(self, at_s: float) -> int:
        """Return the number of the step that a time (seconds since the epoch) falls into."""
        return math.floor(at_s / self.step_s)


@dataclass(frozen=True, slots=True)
class Record:
    """Measurements of one entity at one time (seconds since the epoch); `units` are those that the sender states."""

    entity: str
    at_s: float
    values: Mapping[str, float]
    units: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record is not taken, in one sentence: what was expected, what came."""

    fate: Fate
    reason: str


def check_record(record: Record, rules: WindowRules, *, now_s: float) -> Refusal | None:
    """Return what is wrong with a record in itself, or None."""
    if record.at_s > now_s + rules.max_ahead_s:
        ahead_s = record.at_s - now_s
        reason = f"expected a time at most {rules.max_ahead_s:g} s ahead of the clock, got one {ahead_s:.0f} s ahead"
        return Refusal(Fate.FROM_THE_FUTURE, reason)
    known = {metric.name: metric for metric in rules.metrics}
    for name, value in record.values.items():
        metric = known.get(name)
        if metric is None:
            return Refusal(Fate.UNKNOWN_METRIC, f"unknown metric {name[:64]!r}{nearest(name, list(known))}")
        unit = (record.units or {}).get(name)
        if unit is not None and unit != metric.unit:
            return Refusal(Fate.WRONG_UNIT, f"{name}: expected the unit {metric.unit!r}, got {unit[:64]!r}")
        if not math.isfinite(value):
            return Refusal(Fate.NOT_A_NUMBER, f"{name}: expected a finite number, got {value}")
        if not metric.lowest <= value <= metric.highest:
            expected = f"{metric.lowest:g} to {metric.highest:g} {metric.unit}".strip()
            return Refusal(Fate.OUT_OF_RANGE, f"{name}: expected {expected}, got {value:g}")
    return None


def too_many_entities(entity: str, rules: WindowRules) -> Refusal:
    """Return why an entity that is not kept yet cannot be taken in."""
    reason = f"expected at most {rules.max_entities} entities, {entity[:64]!r} would be one more"
    return Refusal(Fate.TOO_MANY_ENTITIES, reason)


@dataclass(frozen=True, slots=True)
class Lack:
    """What an entity's window lacks to be predicted from: steps that are there, and how many are needed."""

    present_steps: int
    needed_steps: int
    longest_gap_steps: int
    max_gap_steps: int

    def __str__(self) -> str:
        if self.present_steps < self.needed_steps:
            return f"{self.present_steps} of {self.needed_steps} steps"
        return f"a gap of {self.longest_gap_steps} steps, at most {self.max_gap_steps} are filled"
