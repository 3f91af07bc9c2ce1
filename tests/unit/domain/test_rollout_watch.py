"""The watch after a promotion, simulated: gateways count, the real rules judge at every look, labels come late."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from serve_app.domain.analysis import Tally, analyse, tallied
from serve_app.domain.evidence import Evidence, Measurement
from serve_app.domain.evidence_window import moved_on, window_of
from serve_app.domain.exposure import GatewayReport
from serve_app.domain.rollout import Command, Findings, Progress, decide, operate, start
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutRecord
from serve_app.domain.rollout_split import split_of
from serve_app.domain.rollout_state import Phase
from serve_app.domain.statistics import Moments
from serve_app.domain.traffic import N_BUCKETS
from serve_app.domain.verdict import Verdict
from serve_app.domain.version_ref import VersionRef

NOW_S = 1_000_000.0
N_LOOKS = 25
LOOK_S = 10.0
REQUESTS = 500
"""In each look."""
ERROR_RATE, LOSS = 0.02, 1.0
PLAN = RolloutPlan.model_validate(
    {
        "strategy": "canary",
        "steps": [{"weight": 50}],
        "watch_s": N_LOOKS * LOOK_S,
        "holdback": 20,
        "analysis": {
            "metrics": [
                {"kind": "error_rate", "max_increase": 0.005},
                {"kind": "loss", "loss": "absolute_error", "max_increase": 0.1, "min_samples": 200},
            ]
        },
    }
)


def watched(plan: RolloutPlan = PLAN) -> RolloutRecord:
    """A rollout that has just been promoted."""
    old, new = VersionRef(version="v1", digest="d1"), VersionRef(version="v2", digest="d2")
    state = start(plan, rollout_id="r", family="f", candidate=new, stable=old, actor="ann", reason="", now_s=NOW_S)
    for _ in range(2 if plan.strategy.value == "immediate" else 1):
        state = decide(state, Findings(progress=Progress.DONE), now_s=NOW_S).state
    if state.phase is Phase.STEP:
        state = operate(state, Command.PROMOTE, actor="ann", now_s=NOW_S)
        state = decide(state, Findings(progress=Progress.DONE), now_s=NOW_S).state
    assert state.phase is Phase.WATCHING
    return RolloutRecord(state=state, is_tried=True)


@dataclass
class Gateway:
    """Counts what the split sends to both sides; labels come `late` looks after their predictions."""

    rng: np.random.Generator
    late: int = 0
    counts: dict[str, Measurement] = field(default_factory=dict)
    unlabelled: list[dict[str, Moments]] = field(default_factory=list)

    def look(self, record: RolloutRecord, *, loss: float = LOSS) -> GatewayReport:
        split = split_of(record.state)
        assert split is not None
        shares = [variant.weight / N_BUCKETS for variant in split.variants]
        drawn = dict(zip(("stable", "canary"), self.rng.multinomial(REQUESTS, shares), strict=True))
        losses = {}
        for name, n in drawn.items():
            errors = int(self.rng.binomial(n, ERROR_RATE))
            self.add(name, Measurement(requests=int(n), errors=errors, assigned=int(n)))
            losses[name] = Moments.of(self.rng.exponential(loss if name == "canary" else LOSS, n).tolist())
        self.unlabelled.append(losses)
        if len(self.unlabelled) > self.late:
            for name, moments in self.unlabelled.pop(0).items():
                self.add(name, Measurement(means={"absolute_error": moments}))
        return GatewayReport(gateway="g1", families={"f": {record.state.salt: dict(self.counts)}})

    def add(self, name: str, more: Measurement) -> None:
        self.counts[name] = self.counts.get(name, Measurement()).merged(more)


def looked(record: RolloutRecord, report: GatewayReport, *, at_s: float) -> RolloutRecord:
    """Take one look as the Reconciler does."""
    plan = record.state.judged_by
    assert plan is not None
    window = window_of(record, [report], effective_at_s=NOW_S - 60, now_s=at_s)
    tally = tallied(record.tally, window.evidence, plan)
    analysis = analyse(tally, plan)
    findings = Findings(verdict=analysis.verdict, detail=analysis.reason)
    seen = record.model_copy(update={"tally": tally, "seen": window.seen, "weight": window.weight})
    return moved_on(seen, decide(record.state, findings, now_s=at_s).state)


def ends(gateway: Gateway, *, loss: float = LOSS) -> tuple[RolloutRecord, bool]:
    """Watch to the end; say also whether a z-test at every look would have called the new version worse."""
    record, naive = watched(), False
    for look in range(1, N_LOOKS + 1):
        record = looked(record, gateway.look(record, loss=loss), at_s=NOW_S + look * LOOK_S)
        if record.state.phase is not Phase.WATCHING:
            break
        naive = naive or z_test(record.tally)
    return record, naive


def z_test(tally: Tally) -> bool:
    """Call the canary worse where its mean loss is higher by 1.96 standard errors."""
    means = tally.means["loss_absolute_error"]
    if not means.canary.count or not means.stable.count:
        return False
    error = math.sqrt(
        means.canary.variance / means.canary.count + means.stable.variance / means.stable.count
    )  # fmt: skip
    return means.canary.mean - means.stable.mean > 1.96 * error


def test_equal_versions_are_taken_back_no_more_often_than_alpha_allows() -> None:
    assert PLAN.analysis is not None
    n_runs, rng = 200, np.random.default_rng(7)
    found = [ends(Gateway(rng, late=2)) for _ in range(n_runs)]
    taken_back = sum(record.state.phase is Phase.ABORTING for record, _ in found)
    assert taken_back / n_runs <= PLAN.analysis.alpha
    assert all(record.state.phase in (Phase.ABORTING, Phase.SUCCEEDED) for record, _ in found)
    assert sum(naive for _, naive in found) / n_runs > PLAN.analysis.alpha  # what the same looks do to a z-test


def test_labels_that_turn_bad_bring_the_former_version_back() -> None:
    rng = np.random.default_rng(11)
    for _ in range(20):
        record, _ = ends(Gateway(rng, late=3), loss=1.6 * LOSS)
        assert record.state.phase is Phase.ABORTING
        assert record.state.history[-1].reason.startswith("fail after the promotion: loss_absolute_error")
        assert record.state.began_at_s > NOW_S + 3 * LOOK_S, "labels were late"


def test_labels_that_do_not_come_in_time_bring_nothing_back_and_the_end_says_so() -> None:
    record, _ = ends(Gateway(np.random.default_rng(3), late=N_LOOKS), loss=2 * LOSS)
    assert record.state.phase is Phase.SUCCEEDED
    assert "no labels of both variants yet" in record.state.history[-1].reason


def test_what_was_good_before_the_promotion_does_not_hide_what_is_bad_after_it() -> None:
    rng = np.random.default_rng(5)
    gateway, record = Gateway(rng), watched()
    steps = record.model_copy(
        update={"state": record.state.model_copy(update={"phase": Phase.STEP, "began_at_s": NOW_S + 1e6})}
    )
    for look in range(200):
        before = looked(steps, gateway.look(steps), at_s=NOW_S + look)
        if before.state.phase is not Phase.STEP:
            break
        steps = before
    record = moved_on(steps, record.state)
    assert record.tally == Tally()
    for look in range(1, N_LOOKS + 1):
        record = looked(record, gateway.look(record, loss=1.6 * LOSS), at_s=NOW_S + look * LOOK_S)
        if record.state.phase is not Phase.WATCHING:
            break
    assert record.state.phase is Phase.ABORTING


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_former_version_without_a_single_mistake_does_not_hide_those_of_the_new_one(share: float) -> None:
    rng, tally = np.random.default_rng(5), Tally()
    plan = PLAN.analysis_of()
    assert plan is not None
    analysis = analyse(tally, plan)
    for _ in range(8):
        wrong = int(rng.binomial(400, share))
        losses = {"stable": Moments(count=100), "canary": Moments(count=400, total=wrong, squares=wrong)}
        sides = {name: Measurement(requests=one.count, means={"absolute_error": one}) for name, one in losses.items()}
        tally = tallied(tally, Evidence(**sides), plan)
        analysis = analyse(tally, plan)
    assert analysis.verdict is Verdict.FAIL


@pytest.mark.parametrize("wrong", [0.002, 0.05])
def test_rare_mistakes_of_equal_versions_take_none_back_too_often(wrong: float) -> None:
    rng, plan, n_runs, failed = np.random.default_rng(5), PLAN.analysis_of(), 100, 0
    assert plan is not None
    for _ in range(n_runs):
        tally, verdicts = Tally(), set()
        for _ in range(15):
            counts = {"stable": 100, "canary": 400}
            mistakes = {name: int(rng.binomial(n, wrong)) for name, n in counts.items()}
            sides = {
                name: Measurement(
                    requests=n, means={"absolute_error": Moments(count=n, total=mistakes[name], squares=mistakes[name])}
                )
                for name, n in counts.items()
            }
            tally = tallied(tally, Evidence(**sides), plan)
            verdicts.add(analyse(tally, plan).verdict)
        failed += Verdict.FAIL in verdicts
    assert failed / n_runs <= plan.alpha


@pytest.mark.parametrize(
    ("document", "n_kinds"),
    [
        ({"strategy": "canary", "steps": [{"weight": 5}]}, 1),
        ({"strategy": "canary", "steps": [{"weight": 5}], "watch_s": 60}, 2),
        ({"strategy": "canary", "steps": [{"weight": 5}], "watch_s": 60, "holdback": 0}, 1),
        ({"strategy": "canary", "steps": [{"weight": 5}], "watch_s": 60, "shadow_first": {"hold_s": 1},
          "segment_first": {"entities": ["a"]}}, 4),
        ({"strategy": "immediate", "watch_s": 60}, 1),
        ({"strategy": "immediate"}, 1),
        ({"strategy": "shadow", "shadow_first": {"hold_s": 1}}, 1),
        ({"strategy": "ab", "steps": [{"weight": 50}], "watch_s": 60}, 2),
    ],
)  # fmt: skip
def test_alpha_is_shared_by_all_kinds_of_evidence(document: dict[str, object], n_kinds: int) -> None:
    plan = RolloutPlan.model_validate(document)
    judged = plan.analysis_of()
    assert plan.analysis is not None
    assert judged is not None
    assert (judged.alpha, judged.srm_alpha) == (plan.analysis.alpha / n_kinds, plan.analysis.srm_alpha / n_kinds)
    assert judged.side_alpha * n_kinds == pytest.approx(plan.analysis.side_alpha)


def test_shadow_does_not_wait_for_labels_that_nobody_can_give() -> None:
    loss = {"kind": "loss", "loss": "mae", "max_increase": 0.1}
    plan = PLAN.model_copy(update={"analysis": PLAN.analysis and PLAN.analysis.model_validate({"metrics": [loss]})})
    assert plan.analysis_of(is_shadow=True) is None
    judged = PLAN.analysis_of(is_shadow=True)
    assert judged is not None
    assert [metric.name for metric in judged.metrics] == ["error_rate"]
