"""How reports write numbers: in the units that people read, with as many digits as say something."""

import math
from datetime import UTC, datetime

from serve_app.domain.experiment_report import Unit
from serve_app.domain.statistics import Interval

MINUS = "\N{MINUS SIGN}"
_FACTORS = {Unit.SHARE: 100.0, Unit.SECONDS: 1000.0, Unit.LOSS: 1.0}
_SPANS = ((172_800.0, 86_400.0, "days"), (7_200.0, 3_600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def scaled(value: float, unit: Unit) -> float:
    """Return a value as it is written: shares in percent, seconds in milliseconds."""
    return value * _FACTORS[unit]


def unit_of(unit: Unit, *, is_difference: bool = True) -> str:
    """Name the unit in which a value is written."""
    share = "percentage points" if is_difference else "%"
    return {Unit.SHARE: share, Unit.SECONDS: "ms", Unit.LOSS: ""}[unit]


def number(value: float, *, digits: int = 3, signed: bool = False) -> str:
    """Write a number with that many significant digits, and never as a power of ten unless it must be."""
    if not math.isfinite(value):
        return "unbounded"
    if value == 0:
        return "0"
    told = f"{abs(value):.{digits - 1}e}"
    size = int(told[told.index("e") + 1 :])
    if -6 < size < 12:
        told = f"{float(told):,.{max(digits - 1 - size, 0)}f}"
    sign = MINUS if value < 0 else "+" if signed else ""
    return sign + told


def with_unit(value: float | None, unit: Unit, *, is_difference: bool = False) -> str:
    """Write a value with its unit; a dash where there is none."""
    if value is None:
        return "–"
    return f"{number(scaled(value, unit), signed=is_difference)} {unit_of(unit, is_difference=is_difference)}".rstrip()


def interval_of(interval: Interval | None, unit: Unit) -> str:
    """Write an interval, without its unit; both ends to the same place after the point."""
    if interval is None:
        return "–"
    lower, upper = scaled(interval.lower, unit), scaled(interval.upper, unit)
    places = _places(max(abs(lower), abs(upper)))
    return f"{_fixed(lower, places)} to {_fixed(upper, places)}"


def percent(level: float) -> str:
    """Write a probability in percent."""
    return f"{100 * level:.4g} %"


def when(at_s: float) -> str:
    """Write a time of the day, in UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float) -> str:
    """Write how long something took."""
    size, name = span_unit(seconds)
    return f"{number(seconds / size) if seconds else '0'} {name}"


def span_unit(seconds: float) -> tuple[float, str]:
    """Return the unit of time in which so many seconds are written: its length in seconds and its name."""
    return next((size, name) for least, size, name in _SPANS if seconds >= least or least == 0)


def _places(value: float) -> int:
    return min(max(2 - math.floor(math.log10(value)), 0), 8) if value and math.isfinite(value) else 0


def _fixed(value: float, places: int) -> str:
    if not math.isfinite(value):
        return "unbounded"
    told = f"{abs(value):,.{places}f}"
    return (MINUS if value < 0 and float(told.replace(",", "")) else "") + told
