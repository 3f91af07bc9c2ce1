"""How the commands show a rollout: its phase and traffic, the verdict on each metric, and what has happened."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType

from serve_app.cli.printed import plain, table_of
from serve_app.domain.analysis import MetricAnalysis
from serve_app.domain.rollout_plan import PlanOrigin, RolloutPlan, Strategy
from serve_app.domain.rollout_record import RolloutReport
from serve_app.domain.rollout_state import Phase, RolloutState

LIST_COLUMNS: Final = ("family", "phase", "stable", "candidate", "traffic", "verdict", "for", "last move")
METRIC_COLUMNS: Final = ("metric", "verdict", "stable", "candidate", "increase", "interval", "why")
MOVE_COLUMNS: Final = ("when (UTC)", "from", "to", "who", "why")
SHOWN_MOVES: Final = 10
_ORIGINS: Final = {
    PlanOrigin.CONFIGURATION: "the configuration",
    PlanOrigin.USER_CONFIG: "user_config",
    PlanOrigin.CALL: "a call",
}


def list_view(reports: Sequence[RolloutReport], *, now_s: float | None = None) -> RenderableType:
    """Show all rollouts, one line each."""
    if not reports:
        return plain("no rollout was started yet")
    return table_of(LIST_COLUMNS, [_list_row(report, time.time() if now_s is None else now_s) for report in reports])


def rollout_view(report: RolloutReport, *, now_s: float | None = None) -> RenderableType:
    """Show one rollout with its metrics and its last moves."""
    parts: list[RenderableType] = [list_view([report], now_s=now_s), plain(""), plain(plan_line(report.state.plan))]
    parts += [plain(line) for line in origin_lines(report)]
    if report.analysis is not None:
        analysis = report.analysis
        parts += [plain(""), plain(f"{analysis.verdict.value}: {analysis.reason}")]
        parts += [plain(f"{analysis.n_windows} windows, p of the split {analysis.p_split:.3g}")]
        parts += [table_of(METRIC_COLUMNS, [_metric_row(metric) for metric in analysis.metrics])]
    moves = [_move_row(report.state, i) for i in range(len(report.state.history))][-SHOWN_MOVES:]
    if moves:
        parts += [plain(""), table_of(MOVE_COLUMNS, moves)]
    return Group(*parts)


def plan_line(plan: RolloutPlan) -> str:
    """Say in one line what a plan does."""
    steps = " → ".join(f"{step.weight:g} % for {step.hold_s:g} s" for step in plan.steps)
    match plan.strategy:
        case Strategy.CANARY:
            return f"canary: {steps}"
        case Strategy.AB:
            return f"experiment: {plan.steps[0].weight:g} % for {plan.deadline_s:g} s"
        case Strategy.SHADOW if plan.shadow_first is not None:
            return f"shadow: {plan.shadow_first.sample:g} % for {plan.shadow_first.hold_s:g} s"
        case _:
            return plan.strategy.value


def origin_lines(report: RolloutReport) -> list[str]:
    """Say where the plan was written, and what holds for the next rollout where that is another thing."""
    state, following = report.state, report.next_plan
    lines = [f"plan from {_ORIGINS[state.plan_from]}"]
    if following is None:
        return lines
    if following.is_paused:
        lines.append("rollouts are paused in the user_config of the reconciler")
    if state.plan_from is not PlanOrigin.CALL and following.plan != state.plan:
        told = plan_line(following.plan) if following.plan is not None else "all traffic at once"
        lines.append(f"next rollout: {told}, from {_ORIGINS[following.origin]}")
    if following.problem is not None:
        lines.append(following.problem)
    return lines


def phase_of(state: RolloutState) -> str:
    """Say the phase, with the step and why it is paused."""
    if state.phase is Phase.STEP:
        return f"step {state.step + 1} of {len(state.plan.steps)}"
    if state.phase is Phase.PAUSED and state.pause_reason is not None:
        return f"paused ({state.pause_reason.value})"
    return state.phase.value


def _list_row(report: RolloutReport, now_s: float) -> tuple[object, ...]:
    state = report.state
    shadow = report.split.shadow if report.split is not None else None
    traffic = f"{report.weight:g} %" + (f", copies {shadow.sample / 100:g} %" if shadow is not None else "")
    last = state.history[-1].reason if state.history else state.reason
    for_s = (state.ended_at_s or now_s) - state.started_at_s
    return (
        report.family, phase_of(state), state.stable.version, state.candidate.version, traffic,
        state.verdict.value if state.verdict is not None else "none yet", f"{for_s:.0f} s", last,
    )  # fmt: skip


def _metric_row(metric: MetricAnalysis) -> tuple[object, ...]:
    interval = f"[{metric.interval.lower:.4g}, {metric.interval.upper:.4g}]" if metric.interval is not None else ""
    return (
        metric.name, metric.verdict.value, _number(metric.stable), _number(metric.canary), _number(metric.increase),
        interval, metric.reason,
    )  # fmt: skip


def _move_row(state: RolloutState, i: int) -> tuple[object, ...]:
    move = state.history[i]
    when = datetime.fromtimestamp(move.at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    to = f"step {move.step + 1}" if move.to is Phase.STEP else move.to.value
    return when, move.found.value, to, move.actor, move.reason


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
