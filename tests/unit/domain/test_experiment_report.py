"""The report of a rollout in every phase: what it rests on, and that it survives its way to whoever asks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.domain.analysis import Tally, analyse, tallied
from serve_app.domain.analysis_plan import MetricKind
from serve_app.domain.evidence import Evidence, Measurement
from serve_app.domain.evidence_window import looked_at, moved_on, window_of
from serve_app.domain.experiment_report import ExperimentReport, Unit, compared_in, experiment_report
from serve_app.domain.exposure import GatewayReport
from serve_app.domain.rollout import Command, Findings, Progress, decide, operate, start
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutRecord
from serve_app.domain.rollout_state import Phase
from serve_app.domain.verdict import Verdict
from serve_app.domain.version_ref import VersionRef
from tests.simulations.ab_report import simulated

NOW_S = 1_000_000.0
PLAN = RolloutPlan.model_validate(
    {
        "strategy": "canary",
        "steps": [{"weight": 10}, {"weight": 50}],
        "shadow_first": {"hold_s": 0},
        "watch_s": 600,
        "analysis": {
            "metrics": [
                {"kind": "error_rate", "max_increase": 0.005},
                {"kind": "latency_mean", "max_increase": 0.1},
                {"kind": "disagreement", "max_increase": 0.05},
            ]
        },
    }
)


def begun(plan: RolloutPlan = PLAN) -> RolloutRecord:
    state = start(
        plan, rollout_id="r", family="f", candidate=VersionRef(version="v2", digest="d2"),
        stable=VersionRef(version="v1", digest="d1"), actor="ann", reason="try it", now_s=NOW_S,
    )  # fmt: skip
    return RolloutRecord(state=decide(state, Findings(progress=Progress.DONE), now_s=NOW_S).state, is_tried=True)


def looked(record: RolloutRecord, at_s: float, **counts: Measurement) -> RolloutRecord:
    """Let a gateway have counted this, and look at it."""
    report = GatewayReport(gateway="g1", families={"f": {record.state.salt: counts}})
    window = window_of(record, [report], effective_at_s=NOW_S, now_s=at_s)
    plan = record.state.judged_by
    assert plan is not None
    tally = tallied(record.tally, window.evidence, plan)
    return looked_at(record, window, tally, analyse(tally, plan), now_s=at_s)


def commanded(record: RolloutRecord, command: Command) -> RolloutRecord:
    return moved_on(record, operate(record.state, command, actor="ann", now_s=NOW_S + 50))


def test_report_before_anything_was_compared_says_so() -> None:
    told = experiment_report(begun(), now_s=NOW_S + 1)
    assert (told.compared, told.n_looks, told.verdict, told.metrics) == (Phase.SHADOW, 0, Verdict.INCONCLUSIVE, ())
    assert told.verdict_reason == "nothing was compared yet"
    assert told.links == {"rollout": "/admin/rollouts/f", "shadow": "/admin/rollouts/f/shadow"}


def test_each_kind_of_evidence_is_reported_apart() -> None:
    record = looked(
        begun(), NOW_S + 10, stable=Measurement(requests=500), shadow=Measurement(requests=400, compared=400)
    )
    assert compared_in(record) is Phase.SHADOW
    record = commanded(record, Command.SKIP_STEP)
    record = looked(record, NOW_S + 60, stable=Measurement(requests=1_400), canary=Measurement(requests=100, errors=3))
    told = experiment_report(record, now_s=NOW_S + 61)
    assert (told.compared, told.n_looks) == (Phase.STEP, 1)
    assert (told.stable.requests, told.canary.requests, told.canary.errors) == (900, 100, 3)
    (earlier,) = told.earlier
    assert (earlier.compared, earlier.n_looks, earlier.last.n_canary) == (Phase.SHADOW, 1, 400)
    assert [point.at_s for point in told.metrics[0].over_time] == [NOW_S + 60]
    assert told.level == pytest.approx(1 - 0.05 / 3)  # copies, steps and the watch share alpha


def test_report_of_what_is_over_rests_on_what_was_looked_at_last() -> None:
    record = commanded(begun(), Command.SKIP_STEP)
    record = looked(record, NOW_S + 60, stable=Measurement(requests=900), canary=Measurement(requests=100, errors=50))
    record = commanded(record, Command.ABORT)
    state = decide(record.state, Findings(progress=Progress.DONE), now_s=NOW_S + 70).state
    record = moved_on(record, state)
    told = experiment_report(record, now_s=NOW_S + 10_000)
    assert (told.phase, told.is_over, told.ended_at_s) == (Phase.ABORTED, True, NOW_S + 70)
    assert (told.compared, told.canary.errors) == (Phase.STEP, 50)
    assert (told.verdict, [move.to for move in told.moves][-2:]) == (Verdict.FAIL, [Phase.ABORTING, Phase.ABORTED])


def test_retry_begins_a_new_report() -> None:
    record = commanded(begun(), Command.SKIP_STEP)
    record = looked(record, NOW_S + 60, stable=Measurement(requests=900), canary=Measurement(requests=100))
    record = commanded(record, Command.ABORT)
    record = moved_on(record, decide(record.state, Findings(progress=Progress.DONE), now_s=NOW_S + 70).state)
    record = commanded(record, Command.RETRY)
    assert (record.looks, record.groups, experiment_report(record, now_s=NOW_S).n_looks) == ({}, {}, 0)


def test_look_without_anything_new_is_none() -> None:
    record = commanded(begun(), Command.SKIP_STEP)
    once = looked(record, NOW_S + 60, stable=Measurement(requests=900), canary=Measurement(requests=100))
    window = window_of(once, [], effective_at_s=NOW_S, now_s=NOW_S + 70)
    again = looked_at(once, window, once.tally, once.analysis, now_s=NOW_S + 70)
    assert again.looks == once.looks


def test_plan_without_analysis_is_reported_as_such() -> None:
    plan = RolloutPlan.model_validate({"strategy": "canary", "steps": [{"weight": 10}], "analysis": None})
    told = experiment_report(begun(plan), now_s=NOW_S)
    assert (told.metrics, told.groups, "by time alone" in told.verdict_reason) == ((), (), True)
    assert told.split.is_as_asked


def test_split_that_is_not_as_asked_is_an_alarm() -> None:
    side = Measurement(requests=5_000, assigned=5_000)
    record = commanded(begun(), Command.SKIP_STEP)
    plan = record.state.judged_by
    assert plan is not None
    tally = tallied(Tally(), Evidence(stable=side, canary=side, canary_share=0.1), plan)
    told = experiment_report(record.model_copy(update={"tally": tally}), now_s=NOW_S)
    assert (told.split.is_as_asked, told.split.p < told.split.alpha, told.verdict) == (False, True, Verdict.ERROR)


def test_units_and_margins_are_those_of_the_difference() -> None:
    by_kind = {metric.kind: metric for metric in simulated(n_looks=20).metrics}
    assert by_kind[MetricKind.ERROR_RATE].margin == 0.005
    assert (by_kind[MetricKind.LATENCY_QUANTILE].unit, by_kind[MetricKind.LATENCY_QUANTILE].margin) == (
        Unit.SHARE,
        None,
    )
    mean = by_kind[MetricKind.LATENCY_MEAN]
    assert mean.stable is not None
    assert mean.unit is Unit.SECONDS
    assert mean.margin == pytest.approx(0.03 * mean.stable)
    assert by_kind[MetricKind.LOSS].n_canary > 0  # labels came


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_report_survives_its_way_as_json(seed: int, n_looks: int) -> None:
    told = simulated(seed=seed, n_looks=n_looks)
    assert ExperimentReport.model_validate_json(told.model_dump_json()) == told


def test_record_that_was_stored_before_there_were_looks_has_a_report() -> None:
    record = looked(
        commanded(begun(), Command.SKIP_STEP), NOW_S + 60, stable=Measurement(requests=900),
        canary=Measurement(requests=100),
    )  # fmt: skip
    old = record.model_dump(mode="json", exclude={"looks": True, "groups": True})
    told = experiment_report(RolloutRecord.model_validate(old), now_s=NOW_S)
    assert (told.compared, told.metrics[0].over_time, told.groups) == (Phase.STEP, (), ())
