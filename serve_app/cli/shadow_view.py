"""How the commands show in what the answers of a version differ from the live ones."""

from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType

from serve_app.cli.printed import plain, table_of
from serve_app.domain.diff_report import DiffReport, Latencies, ShadowDiff
from serve_app.domain.exposure import WorstInput
from serve_app.domain.recording import ReplayReport

LATENCY_COLUMNS: Final = ("latency (ms)", "answers", "mean", "p50", "p95", "p99")
DIFFERENCE_COLUMNS: Final = ("differences", "mean", "p50", "p90", "p99", "largest")
WORST_COLUMNS: Final = ("difference", "inputs", "live", "other")
FAILURE_COLUMNS: Final = ("request", "when (UTC)", "error")
SHOWN_WORST: Final = 5
SHOWN_VALUES: Final = 8


def shadow_view(told: ShadowDiff) -> RenderableType:
    """Show how a shadow has fared."""
    away = f", {told.away} of them away" if told.away else ""
    head = f"{told.family}: {told.diff.version} as the shadow of {told.live_version}, as {told.gateways} gateways tell"
    return Group(plain(head + away), *_parts(told.diff))


def replay_view(report: ReplayReport) -> RenderableType:
    """Show what came of a replay."""
    record, answered = report.record, ", ".join(f"{name} ({n})" for name, n in report.record.answered_by.items())
    lines = [
        f"{report.family}: {report.version} on {report.replayed} of {record.requests} recorded requests",
        f"from {_time(record.from_s)} to {_time(record.to_s)}, answered live by {answered}",
    ]
    if report.compared_with:
        lines.append(f"redacted: {', '.join(record.redacted)}; compared with {report.compared_with}, which ran as well")
    parts: list[RenderableType] = [plain(line) for line in lines]
    parts += _parts(report.diff)
    if report.failures:
        rows = [(one.number, _time(one.at_s), one.error) for one in report.failures]
        parts += [plain(""), table_of(FAILURE_COLUMNS, rows)]
    return Group(*parts)


def _parts(diff: DiffReport) -> list[RenderableType]:
    share = "nothing was compared"
    if diff.agreement is not None:
        share = f"{100 * diff.agreement:.4g} % agree: {diff.compared - diff.disagreed} of {diff.compared} compared"
    counts = f"{diff.copied} asked, {diff.failed} failed, {diff.dropped} dropped"
    parts: list[RenderableType] = [plain(f"{share}; {counts}"), plain("")]
    if diff.differences.count:
        told = diff.differences
        row = (told.count, told.mean, told.p50, told.p90, told.p99, told.largest)
        parts += [table_of(DIFFERENCE_COLUMNS, [[row[0], *map(_number, row[1:])]]), plain("")]
    parts.append(table_of(LATENCY_COLUMNS, [_row("live", diff.live), _row(diff.version, diff.latency)]))
    if diff.worst:
        parts += [plain(""), table_of(WORST_COLUMNS, [_worst(one) for one in diff.worst[:SHOWN_WORST]])]
    return parts


def _row(name: str, side: Latencies) -> tuple[object, ...]:
    times = (side.mean_s, side.p50_s, side.p95_s, side.p99_s)
    return name, side.count, *("" if time_s is None else f"{1e3 * time_s:.3g}" for time_s in times)


def _worst(one: WorstInput) -> tuple[object, ...]:
    return _number(one.difference), *(_values(rows[0] if rows else ()) for rows in (one.rows, one.live, one.shadow))


def _values(row: tuple[float | str, ...]) -> str:
    shown = ", ".join(value if isinstance(value, str) else f"{value:.6g}" for value in row[:SHOWN_VALUES])
    return shown if len(row) <= SHOWN_VALUES else f"{shown}, …"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _time(at_s: float | None) -> str:
    return "" if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
