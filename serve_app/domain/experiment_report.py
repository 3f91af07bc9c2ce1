"""The report of an experiment or a rollout: what was compared, what was found over time, and what was done about it."""

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict

from serve_app.domain.analysis import Analysis, MetricAnalysis, Tally, analyse
from serve_app.domain.analysis_plan import AnalysisPlan, Metric, MetricKind
from serve_app.domain.evidence import Measurement
from serve_app.domain.evidence_window import kind_of
from serve_app.domain.groups import GroupResult, results_of
from serve_app.domain.looks import Look
from serve_app.domain.rollout_plan import RolloutPlan, Strategy
from serve_app.domain.rollout_record import RolloutRecord
from serve_app.domain.rollout_state import Move, Phase
from serve_app.domain.sample_size import SampleSize, size_to_decide
from serve_app.domain.statistics import Interval
from serve_app.domain.verdict import Verdict
from serve_app.domain.version_ref import VersionRef

QUANTILES: Final = (0.5, 0.95, 0.99)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Unit(StrEnum):
    """What a number is: a share (0 to 1), seconds, or in the unit of a loss."""

    SHARE = "share"
    SECONDS = "seconds"
    LOSS = "loss"


class Side(_Document):
    """What one side did over all windows that were compared. Latencies are in seconds, quantiles by their share."""

    name: str
    version: VersionRef
    pool: str | None
    requests: int
    errors: int
    assigned: int
    compared: int
    disagreed: int
    latency_mean_s: float | None
    latency_s: dict[float, float]


class PointInTime(_Document):
    """One look at one metric: when, the estimated difference, and its confidence sequence then."""

    at_s: float
    difference: float
    lower: float
    upper: float


class MetricReport(_Document):
    """What was found of one metric.

    `stable` and `canary` are its values, in `value_unit`; `difference`, `interval`, `margin` and `over_time` are the
    candidate's minus the stable variant's, in `unit`. More is worse. `margin` is None where it cannot be said in that
    unit; `margin_told` is how the plan has it. `size` is how many samples it takes to see the margin. `is_exact` is
    false where the sequence is asymptotic.
    """

    name: str
    kind: MetricKind
    verdict: Verdict
    reason: str
    unit: Unit
    value_unit: Unit
    stable: float | None
    canary: float | None
    n_stable: int
    n_canary: int
    difference: float | None
    interval: Interval | None
    interval_of: str
    margin: float | None
    margin_told: str
    p_worse: float | None
    size: SampleSize | None
    is_exact: bool
    over_time: tuple[PointInTime, ...]


class SplitCheck(_Document):
    """Whether the assignments fell as they were asked to (sample-ratio mismatch); `p` is valid at every look."""

    assigned_stable: int
    assigned_canary: int
    p: float
    alpha: float
    is_as_asked: bool


class EarlierLook(_Document):
    """How an earlier kind of evidence stood when it was looked at last."""

    compared: Phase
    n_looks: int
    last: Look


class ExperimentReport(_Document):
    """All that is known of the last rollout of a family. Times are seconds since the epoch.

    `compared` is the kind of evidence that the metrics rest on: copies (`shadow`), named entities (`segment`), what
    chance assigned (`step`), or that after the promotion (`watching`); None: nothing was compared. `level` is the
    probability that the intervals of all metrics hold at all looks. `verdict` is that of the last look. Exposures count
    what clients saw of the candidate. `groups` are to be looked at only. `links` has the addresses of more.
    """

    family: str
    rollout_id: str
    strategy: Strategy
    stable: Side
    canary: Side
    phase: Phase
    is_over: bool
    compared: Phase | None
    actor: str
    reason: str
    started_at_s: float
    ended_at_s: float | None
    told_at_s: float
    verdict: Verdict
    verdict_reason: str
    level: float
    n_looks: int
    exposed_requests: int
    exposed_entities: int
    split: SplitCheck
    metrics: tuple[MetricReport, ...]
    earlier: tuple[EarlierLook, ...]
    groups: tuple[GroupResult, ...]
    plan: RolloutPlan
    moves: tuple[Move, ...]
    links: dict[str, str]


def experiment_report(record: RolloutRecord, *, now_s: float) -> ExperimentReport:
    """Return the report of a rollout, under way or over."""
    state = record.state
    compared = compared_in(record)
    plan = state.plan.analysis_of(is_shadow=compared is Phase.SHADOW)
    analysis = _analysis(record.tally, plan)
    names = ("a", "b") if state.plan.strategy is Strategy.AB else ("stable", "canary")
    alpha = plan.alpha if plan is not None else 0.0
    return ExperimentReport(
        family=state.family,
        rollout_id=state.rollout_id,
        strategy=state.plan.strategy,
        stable=_side(names[0], state.stable, state.plan.stable_pool, record.tally.stable),
        canary=_side(names[1], state.candidate, state.plan.pool, record.tally.canary),
        phase=state.phase,
        is_over=state.phase.is_over,
        compared=compared,
        actor=state.actor,
        reason=state.reason,
        started_at_s=state.started_at_s,
        ended_at_s=state.ended_at_s,
        told_at_s=now_s,
        verdict=analysis.verdict,
        verdict_reason=analysis.reason,
        level=1 - alpha,
        n_looks=record.tally.n_windows,
        exposed_requests=state.exposed_requests,
        exposed_entities=state.exposed_entities,
        split=SplitCheck(
            assigned_stable=record.tally.stable.assigned,
            assigned_canary=record.tally.canary.assigned,
            p=analysis.p_split,
            alpha=plan.srm_alpha if plan is not None else 0.0,
            is_as_asked=plan is None or analysis.p_split > plan.srm_alpha,
        ),
        metrics=tuple(_metric(record, found, plan, compared) for found in analysis.metrics) if plan else (),
        earlier=_earlier(record, compared),
        groups=results_of(record.groups, state.plan.groups, alpha=alpha) if alpha else (),
        plan=state.plan,
        moves=state.history,
        links=_links(state.family, has_shadow=state.plan.shadow_first is not None),
    )


def _links(family: str, *, has_shadow: bool) -> dict[str, str]:
    rollout = f"/admin/rollouts/{family}"
    return {"rollout": rollout, "shadow": f"{rollout}/shadow"} if has_shadow else {"rollout": rollout}


def compared_in(record: RolloutRecord) -> Phase | None:
    """Return the kind of evidence that is in the tally: the present one, or the last one that was looked at."""
    kind = kind_of(record.state)
    if kind is not None or not record.looks:
        return kind
    return max(record.looks, key=lambda phase: _at_s(record, phase))


def _at_s(record: RolloutRecord, phase: Phase) -> float:
    last = record.looks[phase].last
    return last.at_s if last is not None else 0.0


def _analysis(tally: Tally, plan: AnalysisPlan | None) -> Analysis:
    if plan is None:
        return Analysis(verdict=Verdict.INCONCLUSIVE, reason="the plan has no analysis: it goes by time alone")
    if not tally.n_windows:
        return Analysis(verdict=Verdict.INCONCLUSIVE, reason="nothing was compared yet")
    return analyse(tally, plan)


def _side(name: str, version: VersionRef, pool: str | None, measured: Measurement) -> Side:
    quantiles = {q: measured.latency.quantile_s(q) for q in QUANTILES}
    return Side(
        name=name,
        version=version,
        pool=pool,
        requests=measured.requests,
        errors=measured.errors,
        assigned=measured.assigned,
        compared=measured.compared,
        disagreed=measured.disagreed,
        latency_mean_s=measured.latency_s.mean if measured.latency_s.count else None,
        latency_s={q: seconds for q, seconds in quantiles.items() if seconds is not None},
    )


def _metric(record: RolloutRecord, found: MetricAnalysis, plan: AnalysisPlan, compared: Phase | None) -> MetricReport:
    metric = next(one for one in plan.metrics if one.name == found.name)
    unit, value_unit = _UNITS[metric.kind]
    looks = record.looks.get(compared) if compared is not None else None
    return MetricReport(
        name=found.name,
        kind=metric.kind,
        verdict=found.verdict,
        reason=found.reason,
        unit=unit,
        value_unit=value_unit,
        stable=found.stable,
        canary=found.canary,
        n_stable=found.n_stable,
        n_canary=found.n_canary,
        difference=found.difference,
        interval=found.interval,
        interval_of=found.interval_of,
        margin=_margin(metric, found),
        margin_told=metric.shown_margin,
        p_worse=found.p_worse,
        size=size_to_decide(record.tally, metric, plan.side_alpha),
        is_exact=not metric.kind.is_mean,
        over_time=tuple(
            PointInTime(at_s=at_s, **band._asdict()) for at_s, band in (looks.of(found.name) if looks else ())
        ),
    )


_UNITS: Final = {
    MetricKind.ERROR_RATE: (Unit.SHARE, Unit.SHARE),
    MetricKind.LATENCY_QUANTILE: (Unit.SHARE, Unit.SECONDS),
    MetricKind.LATENCY_MEAN: (Unit.SECONDS, Unit.SECONDS),
    MetricKind.DISAGREEMENT: (Unit.SHARE, Unit.SHARE),
    MetricKind.LOSS: (Unit.LOSS, Unit.LOSS),
}
"""Of the difference, and of the values."""


def _margin(metric: Metric, found: MetricAnalysis) -> float | None:
    """Say the margin in the unit of the difference: a relative one of the stable variant's present value."""
    if not metric.is_relative:
        return metric.max_increase
    if metric.kind is MetricKind.LATENCY_QUANTILE or found.stable is None:
        return None
    return metric.max_increase * found.stable


def _earlier(record: RolloutRecord, compared: Phase | None) -> tuple[EarlierLook, ...]:
    found = [
        EarlierLook(compared=phase, n_looks=looks.count, last=looks.last)
        for phase, looks in record.looks.items()
        if phase is not compared and looks.last is not None
    ]
    return tuple(sorted(found, key=lambda one: one.last.at_s))
