"""Draws the confidence sequences of a report over time, as SVG: one panel for each metric.

Written by hand, for serving has no library that draws. Early sequences are many times as wide as the last one; what
leaves a panel is drawn at its edge. Colours follow the reader's choice of light or dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from serve_app.domain.analysis_plan import MetricKind
from serve_app.domain.experiment_report import ExperimentReport, MetricReport
from serve_app.domain.statistics import Interval
from serve_app.usecases.write_numbers import MINUS, interval_of, number, percent, scaled, span_unit, unit_of
from serve_app.usecases.write_report import title_of

WIDTH: Final = 800
PANEL_HEIGHT: Final = 190
LEFT, RIGHT, TOP, GAP, BOTTOM = 70, 20, 64, 46, 50
SETTLED: Final = 0.25
"""The share of the first looks that have no say in how much a panel shows."""
N_TICKS: Final = 5
_STYLE = """\
    .ground { fill: #ffffff } .frame { fill: none; stroke: #8a9099 } .grid { stroke: #8a9099; stroke-opacity: 0.25 }
    text { fill: #24292f; font: 12px system-ui, sans-serif } .title { font-weight: 600; font-size: 13px }
    .head { font-weight: 600; font-size: 15px } .small { fill: #57606a }
    .band { fill: #1f6feb; fill-opacity: 0.22 } .line { fill: none; stroke: #1f6feb; stroke-width: 1.8 }
    .zero { stroke: #24292f; stroke-width: 1 } .margin { stroke: #c2410c; stroke-width: 1.4; stroke-dasharray: 6 4 }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #0d1117 } text { fill: #e6edf3 } .small { fill: #9aa4af }
      .band { fill: #58a6ff } .line { stroke: #58a6ff } .zero { stroke: #e6edf3 } .margin { stroke: #f0883e }
    }"""


@dataclass(frozen=True, slots=True)
class Axis:
    """Turns values of one range into places on the page."""

    lowest: float
    highest: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the place of a value; of one beyond the range, its end."""
        inside = min(max(value, self.lowest), self.highest)
        return self.start + (self.end - self.start) * (inside - self.lowest) / (self.highest - self.lowest)

    @property
    def ticks(self) -> list[float]:
        """Round values within the range, about five."""
        step = _round_step((self.highest - self.lowest) / N_TICKS)
        first, last = math.ceil(self.lowest / step - 1e-9), math.floor(self.highest / step + 1e-9)
        return [step * k for k in range(first, last + 1)]


def plot_of(report: ExperimentReport) -> str:
    """Draw the whole plot."""
    metrics = [metric for metric in report.metrics if metric.over_time]
    height = TOP + len(metrics) * (PANEL_HEIGHT + GAP) - GAP + BOTTOM if metrics else TOP + BOTTOM
    versions = f"{report.canary.version.version} minus {report.stable.version.version}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'role="img">',
        f"  <title>{_text(f'{report.family}: {versions}, over time')}</title>",
        f"  <style>\n{_STYLE}\n  </style>",
        f'  <rect class="ground" width="{WIDTH}" height="{height}"/>',
        _said(LEFT, 22, f"{report.family}: {versions}; more is worse", "head"),
    ]
    if metrics:
        parts += [*_legend(report.level), *_panels(report, metrics, bottom=height - BOTTOM)]
    else:
        parts.append(_said(LEFT, 48, "Nothing was compared yet.", "small"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(level: float) -> list[str]:
    y = 44
    return [
        f'  <rect class="band" x="{LEFT}" y="{y - 11}" width="26" height="13"/>',
        f'  <line class="line" x1="{LEFT}" x2="{LEFT + 26}" y1="{y - 4.5}" y2="{y - 4.5}"/>',
        _said(LEFT + 32, y, f"estimate and {percent(level)} confidence sequence", "small"),
        f'  <line class="zero" x1="{LEFT + 320}" x2="{LEFT + 346}" y1="{y - 4.5}" y2="{y - 4.5}"/>',
        _said(LEFT + 352, y, "no difference", "small"),
        f'  <line class="margin" x1="{LEFT + 460}" x2="{LEFT + 486}" y1="{y - 4.5}" y2="{y - 4.5}"/>',
        _said(LEFT + 492, y, "margin of the plan", "small"),
    ]


def _panels(report: ExperimentReport, metrics: Sequence[MetricReport], *, bottom: float) -> list[str]:
    times = [point.at_s - report.started_at_s for metric in metrics for point in metric.over_time]
    unit_s, unit = span_unit(max(times))
    first, last = min(0.0, *times) / unit_s, max(times) / unit_s
    x = Axis(first, last if last > first else first + 1.0, LEFT, WIDTH - RIGHT)
    parts = []
    for i, metric in enumerate(metrics):
        top = TOP + 20 + i * (PANEL_HEIGHT + GAP)
        parts += _panel(metric, x, top, top + PANEL_HEIGHT - 20, started_s=report.started_at_s, unit_s=unit_s)
    for tick in x.ticks:
        parts.append(_said(x.at(tick), bottom + 18, _tick(tick), "small", anchor="middle"))
    parts.append(_said((LEFT + WIDTH - RIGHT) / 2, bottom + 38, f"{unit} since the start", "small", anchor="middle"))
    return parts


def _panel(metric: MetricReport, x: Axis, top: float, bottom: float, *, started_s: float, unit_s: float) -> list[str]:
    y = Axis(*_range_of(metric), bottom, top)
    places = [x.at((point.at_s - started_s) / unit_s) for point in metric.over_time]
    upper = [y.at(scaled(point.upper, metric.unit)) for point in metric.over_time]
    lower = [y.at(scaled(point.lower, metric.unit)) for point in metric.over_time]
    middle = [y.at(scaled(point.difference, metric.unit)) for point in metric.over_time]
    parts = [_said(LEFT, top - 8, _title(metric), "title")]
    last = metric.over_time[-1]
    found = interval_of(Interval(lower=last.lower, upper=last.upper), metric.unit)
    said = f"{number(scaled(last.difference, metric.unit), signed=True)} ({found}): {metric.verdict.value}"
    parts.append(_said(WIDTH - RIGHT, top - 8, said, "small", anchor="end"))
    for tick in y.ticks:
        parts.append(f'  <line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" {_level(y.at(tick))}/>')
        parts.append(_said(LEFT - 8, y.at(tick) + 4, _tick(tick), "small", anchor="end"))
    for tick in x.ticks:
        parts.append(f'  <line class="grid" x1="{x.at(tick):.1f}" x2="{x.at(tick):.1f}" y1="{top}" y2="{bottom}"/>')
    outline = [*zip(places, upper, strict=True), *zip(reversed(places), reversed(lower), strict=True)]
    parts.append(f'  <polygon class="band" points="{_points(outline)}"/>')
    parts.append(f'  <line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" {_level(y.at(0.0))}/>')
    if metric.margin is not None:
        level = _level(y.at(scaled(metric.margin, metric.unit)))
        parts.append(f'  <line class="margin" x1="{LEFT}" x2="{WIDTH - RIGHT}" {level}/>')
    parts.append(f'  <polyline class="line" points="{_points(list(zip(places, middle, strict=True)))}"/>')
    parts.append(f'  <rect class="frame" x="{LEFT}" y="{top}" width="{WIDTH - RIGHT - LEFT}" height="{bottom - top}"/>')
    return parts


def _range_of(metric: MetricReport) -> tuple[float, float]:
    """Return what a panel shows: the bands of the later looks, zero, the margin, and some air."""
    settled = metric.over_time[math.floor(SETTLED * len(metric.over_time)) :]
    shown = [0.0, *([] if metric.margin is None else [metric.margin])]
    shown += [end for point in settled for end in (point.lower, point.upper)]
    lowest, highest = scaled(min(shown), metric.unit), scaled(max(shown), metric.unit)
    air = 0.08 * (highest - lowest) or 1.0
    return lowest - air, highest + air


def _title(metric: MetricReport) -> str:
    unit = unit_of(metric.unit)
    title = title_of(metric)
    if metric.kind is MetricKind.LATENCY_QUANTILE:
        title = f"answers slower than the stable {metric.name.removeprefix('latency_')}"
    return f"{title}, {unit}" if unit else title


def _round_step(least: float) -> float:
    size = 10.0 ** math.floor(math.log10(least))
    return next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= least * 0.999)


def _tick(value: float) -> str:
    return f"{value:.6g}".replace("-", MINUS)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _level(y: float) -> str:
    return f'y1="{y:.1f}" y2="{y:.1f}"'


def _said(x: float, y: float, text: str, kind: str, *, anchor: str = "start") -> str:
    return f'  <text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text)}</text>'


def _text(value: str) -> str:
    return escape("".join(c if c.isprintable() else " " for c in value))
