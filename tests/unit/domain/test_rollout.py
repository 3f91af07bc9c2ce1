import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydantic import ValidationError

from serve_app.domain.reload import VersionRef
from serve_app.domain.rollout import (
    COMMANDS,
    ITSELF,
    KEPT_MOVES,
    TRANSITIONS,
    Action,
    Command,
    Findings,
    Progress,
    actions_of,
    decide,
    decision_of,
    operate,
    start,
)
from serve_app.domain.rollout_plan import OnInconclusive, RolloutPlan, Step, Strategy
from serve_app.domain.rollout_record import is_promoted
from serve_app.domain.rollout_split import split_of
from serve_app.domain.rollout_state import (
    OVER,
    TRIED,
    CoolingDownError,
    PauseReason,
    Phase,
    RolloutState,
    RolloutTransitionError,
)
from serve_app.domain.traffic import RequestFacts, assign, compile_split
from serve_app.domain.verdict import Verdict

NOW_S = 1_769_763_600.0
PASS, FAIL, INCONCLUSIVE, ERROR = (Findings(verdict=verdict) for verdict in Verdict)
NOTHING = Findings()
DONE = Findings(progress=Progress.DONE)
BROKEN = Findings(progress=Progress.BROKEN, detail="disk full")

CANARY = RolloutPlan.model_validate(
    {
        "strategy": "canary",
        "shadow_first": {"hold_s": 10, "sample": 20},
        "segment_first": {"entities": ["edge-*"], "hold_s": 10},
        "steps": [{"weight": 1, "hold_s": 10}, {"weight": 50, "hold_s": 10}],
        "deadline_s": 1_000,
        "watch_s": 100,
        "cool_down_s": 60,
        "max_errors": 3,
    }
)
AB = RolloutPlan.model_validate({"strategy": "ab", "steps": [{"weight": 50}], "deadline_s": 1_000})
SHADOW = RolloutPlan.model_validate({"strategy": "shadow", "shadow_first": {"hold_s": 10}, "deadline_s": 1_000})
IMMEDIATE = RolloutPlan.model_validate({"strategy": "immediate"})
PLANS = (CANARY, AB, SHADOW, IMMEDIATE)


def ref(version: str) -> VersionRef:
    return VersionRef(version=version, digest=f"digest of {version}")


def started(plan: RolloutPlan = CANARY, **facts: Any) -> RolloutState:
    return start(
        plan,
        rollout_id="op-1",
        family="forecaster",
        candidate=ref("v2"),
        stable=ref("v1"),
        actor="tester",
        reason="because",
        now_s=NOW_S,
        **facts,
    )


def in_phase(phase: Phase, plan: RolloutPlan | None = None, **facts: Any) -> RolloutState:
    """Return a rollout that is in a phase since NOW_S."""
    came_from = {Phase.PAUSED: Phase.STEP, Phase.PROMOTING: Phase.STEP}.get(phase)
    usual: dict[str, Any] = {
        "phase": phase,
        "came_from": came_from,
        "pause_reason": PauseReason.OPERATOR if phase is Phase.PAUSED else None,
        "ended_at_s": NOW_S if phase.is_over else None,
    }
    chosen = plan or (AB if phase is Phase.EXPERIMENT else CANARY)
    return started(chosen).model_copy(update={**usual, **facts})


def after(state: RolloutState, findings: Findings, seconds: float) -> RolloutState:
    return decide(state, findings, now_s=NOW_S + seconds).state


def capped(state: RolloutState, n: int = 100) -> RolloutState:
    return state.model_copy(update={"plan": state.plan.model_copy(update={"max_exposed_requests": n})})


def candidate_share(state: RolloutState) -> int:
    """Return how many of 10,000 keys without a segment get the candidate by the split."""
    split = split_of(state)
    variants = split.variants if split is not None else ()
    return sum(variant.weight for variant in variants if variant.version == state.candidate.version)


def former_share(state: RolloutState) -> int:
    """Return how many of 10,000 keys without a segment the former version answers."""
    if split_of(state) is None:
        return 0 if is_promoted(state) else 10_000
    return 10_000 - candidate_share(state)


# What an operator may ask for, in every phase

ASKED: dict[tuple[Command, Phase], Phase] = {
    (Command.PAUSE, Phase.SHADOW): Phase.PAUSED,
    (Command.PAUSE, Phase.SEGMENT): Phase.PAUSED,
    (Command.PAUSE, Phase.STEP): Phase.PAUSED,
    (Command.PAUSE, Phase.EXPERIMENT): Phase.PAUSED,
    (Command.RESUME, Phase.PAUSED): Phase.STEP,
    (Command.PROMOTE, Phase.SHADOW): Phase.PROMOTING,
    (Command.PROMOTE, Phase.SEGMENT): Phase.PROMOTING,
    (Command.PROMOTE, Phase.STEP): Phase.PROMOTING,
    (Command.PROMOTE, Phase.EXPERIMENT): Phase.PROMOTING,
    (Command.PROMOTE, Phase.PAUSED): Phase.PROMOTING,
    (Command.SKIP_STEP, Phase.SHADOW): Phase.SEGMENT,
    (Command.SKIP_STEP, Phase.SEGMENT): Phase.STEP,
    (Command.SKIP_STEP, Phase.STEP): Phase.STEP,
    (Command.ABORT, Phase.PENDING): Phase.ABORTING,
    (Command.ABORT, Phase.SHADOW): Phase.ABORTING,
    (Command.ABORT, Phase.SEGMENT): Phase.ABORTING,
    (Command.ABORT, Phase.STEP): Phase.ABORTING,
    (Command.ABORT, Phase.EXPERIMENT): Phase.ABORTING,
    (Command.ABORT, Phase.PAUSED): Phase.ABORTING,
    (Command.ABORT, Phase.PROMOTING): Phase.ABORTING,
    (Command.ABORT, Phase.WATCHING): Phase.ABORTING,
    (Command.RETRY, Phase.ABORTED): Phase.PENDING,
    (Command.RETRY, Phase.FAILED): Phase.PENDING,
}
REFUSED = [(command, phase) for command in Command for phase in Phase if (command, phase) not in ASKED]


@pytest.mark.parametrize(("command", "phase"), ASKED)
def test_command_that_fits_leads_to_the_next_phase(command: Command, phase: Phase) -> None:
    state = operate(in_phase(phase), command, actor="anna", now_s=NOW_S + 5, reason="why not")
    assert state.phase is ASKED[command, phase]
    move = state.history[-1]
    assert (move.found, move.to, move.actor, move.reason, move.at_s) == (
        phase, state.phase, "anna", "why not", NOW_S + 5,
    )  # fmt: skip


@pytest.mark.parametrize(("command", "phase"), REFUSED)
def test_command_that_does_not_fit_is_refused_and_changes_nothing(command: Command, phase: Phase) -> None:
    before = in_phase(phase)
    copy = before.model_copy(deep=True)
    with pytest.raises(RolloutTransitionError, match=f"^{command}: expected .*, found one that is {phase}$") as caught:
        operate(before, command, actor="anna", now_s=NOW_S)
    assert (caught.value.action, caught.value.expected, caught.value.found) == (command, COMMANDS[command], phase)
    assert before == copy


@pytest.mark.parametrize("phase", sorted(OVER))
def test_rollout_that_is_over_decides_nothing_more(phase: Phase) -> None:
    with pytest.raises(RolloutTransitionError, match=f"^decide: expected .*, found one that is {phase}$"):
        decide(in_phase(phase), PASS, now_s=NOW_S)


def test_errors_survive_the_way_to_another_process() -> None:
    refusal = RolloutTransitionError("pause", COMMANDS[Command.PAUSE], Phase.ABORTED)
    for error in (refusal, CoolingDownError("iris", 12.4)):
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.__dict__) == (str(error), error.__dict__)
    assert str(refusal) == (
        "pause: expected a rollout that is shadow or segment or step or experiment, found one that is aborted"
    )


# One for each family


@pytest.mark.parametrize("phase", [phase for phase in Phase if not phase.is_over])
def test_second_rollout_of_a_family_waits_for_the_first(phase: Phase) -> None:
    with pytest.raises(RolloutTransitionError, match=f"^start: expected .*, found one that is {phase}$"):
        started(previous=in_phase(phase))


def test_next_rollout_waits_for_the_cool_down_unless_an_operator_starts_it() -> None:
    previous = in_phase(Phase.ABORTED, ended_at_s=NOW_S - 20)
    with pytest.raises(CoolingDownError, match=r"^family 'forecaster' cools down .* another 40 s$"):
        started(previous=previous)
    assert started(previous=previous, waits=False).phase is Phase.PENDING
    assert started(previous=in_phase(Phase.ABORTED, ended_at_s=NOW_S - 60)).phase is Phase.PENDING


def test_candidate_must_be_another_version_unless_an_experiment_compares_pools() -> None:
    same: dict[str, Any] = {**dict(started(AB)), "candidate": ref("v1")}
    with pytest.raises(ValidationError, match="candidate: expected another version than 'v1', or an experiment on two"):
        RolloutState.model_validate(same)
    pools = AB.model_copy(update={"pool": "gpu", "stable_pool": "cpu"})
    split = split_of(RolloutState.model_validate({**same, "plan": pools, "phase": Phase.EXPERIMENT}))
    assert split is not None
    assert [(v.name, v.version, v.pool) for v in split.variants] == [("a", "v1", "cpu"), ("b", "v1", "gpu")]


# The way of a rollout that is good

WAY = [
    (Phase.PENDING, DONE),
    (Phase.SHADOW, PASS),
    (Phase.SEGMENT, PASS),
    (Phase.STEP, PASS),
    (Phase.STEP, PASS),
    (Phase.PROMOTING, DONE),
    (Phase.WATCHING, NOTHING),
]


def test_good_canary_goes_through_all_phases_to_its_success() -> None:
    state, now_s, shares = started(), NOW_S, []
    for phase, findings in WAY:
        assert state.phase is phase
        shares.append(candidate_share(state))
        now_s += 100 if phase is Phase.WATCHING else 10
        state = decide(state, findings, now_s=now_s).state
    assert (state.phase, state.ended_at_s) == (Phase.SUCCEEDED, now_s)
    assert shares == [0, 0, 0, 100, 5_000, 5_000, 9_500]
    assert former_share(state) == 0
    assert [move.to for move in state.history] == [*(phase for phase, _ in WAY[1:]), Phase.SUCCEEDED]
    assert {move.actor for move in state.history} == {ITSELF}


@pytest.mark.parametrize(
    ("plan", "way"),
    [
        (IMMEDIATE, [Phase.PENDING, Phase.PROMOTING, Phase.SUCCEEDED]),
        (SHADOW, [Phase.PENDING, Phase.SHADOW, Phase.SUCCEEDED]),
        (AB, [Phase.PENDING, Phase.EXPERIMENT, Phase.SUCCEEDED]),
        (RolloutPlan.model_validate({"strategy": "canary", "steps": [{"weight": 5}]}),
         [Phase.PENDING, Phase.STEP, Phase.PROMOTING, Phase.SUCCEEDED]),
    ],
)  # fmt: skip
def test_plan_leaves_out_the_phases_that_it_does_not_name(plan: RolloutPlan, way: list[Phase]) -> None:
    state, seen, now_s = started(plan), [Phase.PENDING], NOW_S
    while not state.phase.is_over:
        now_s += 400
        state = decide(state, Findings(Verdict.PASS, Progress.DONE), now_s=now_s).state
        seen += [state.phase] if state.phase is not seen[-1] else []
    assert seen == way


# Verdicts


@pytest.mark.parametrize("phase", [Phase.SHADOW, Phase.SEGMENT, Phase.STEP])
@pytest.mark.parametrize(
    ("findings", "seconds", "moves"),
    [(PASS, 9.9, False), (PASS, 10, True), (INCONCLUSIVE, 10, False), (ERROR, 10, False), (NOTHING, 10, False)],
)
def test_phase_goes_on_only_after_its_hold_and_a_pass(
    phase: Phase, findings: Findings, seconds: float, moves: bool
) -> None:
    state = after(in_phase(phase), findings, seconds)
    assert ((state.phase, state.step) != (phase, 0)) is moves


def test_plan_without_analysis_goes_on_with_time() -> None:
    plan = CANARY.model_copy(update={"analysis": None})
    assert after(in_phase(Phase.SHADOW, plan), NOTHING, 9).phase is Phase.SHADOW
    assert after(in_phase(Phase.SHADOW, plan), NOTHING, 10).phase is Phase.SEGMENT


@pytest.mark.parametrize("phase", [*sorted(TRIED), Phase.PAUSED, Phase.WATCHING])
def test_fail_aborts_at_once(phase: Phase) -> None:
    decision = decide(in_phase(phase), Findings(Verdict.FAIL, detail="errors 5 %"), now_s=NOW_S + 1)
    assert decision.state.phase is Phase.ABORTING
    assert decision.state.history[-1].reason.endswith(": errors 5 %")
    assert decision.actions == (Action.RESTORE_STABLE, Action.DISTRUST_CANDIDATE)
    assert candidate_share(decision.state) == 0


def test_abort_that_no_verdict_asked_for_leaves_the_candidate_its_good_name() -> None:
    state = operate(in_phase(Phase.STEP, verdict=Verdict.PASS), Command.ABORT, actor="anna", now_s=NOW_S)
    assert actions_of(state) == (Action.RESTORE_STABLE,)


def test_inconclusive_waits_until_the_deadline_aborts() -> None:
    assert after(in_phase(Phase.STEP), INCONCLUSIVE, 999).phase is Phase.STEP
    assert after(in_phase(Phase.STEP), INCONCLUSIVE, 1_000).phase is Phase.ABORTING


@pytest.mark.parametrize(("seconds", "phase"), [(9, Phase.STEP), (10, Phase.PAUSED)])
def test_inconclusive_pauses_after_the_hold_where_the_plan_says_so(seconds: float, phase: Phase) -> None:
    plan = CANARY.model_copy(update={"on_inconclusive": OnInconclusive.PAUSE})
    state = after(in_phase(Phase.STEP, plan, step=1), INCONCLUSIVE, seconds)
    assert (state.phase, candidate_share(state)) == (phase, 5_000)


def test_errors_in_a_row_pause_and_traffic_stays() -> None:
    state = in_phase(Phase.STEP)
    for seconds, findings in enumerate((ERROR, ERROR, NOTHING, INCONCLUSIVE, ERROR, ERROR), start=1):
        state = after(state, findings, seconds)
        assert state.phase is Phase.STEP
    state = after(state, ERROR, 7)
    assert (state.phase, state.pause_reason, candidate_share(state)) == (Phase.PAUSED, PauseReason.ERRORS, 100)


def test_errors_before_a_pause_do_not_count_after_it() -> None:
    state = in_phase(Phase.STEP, errors=2)
    for command in (Command.PAUSE, Command.RESUME):
        state = operate(state, command, actor="anna", now_s=NOW_S)
    assert after(state, ERROR, 1).phase is Phase.STEP


def test_tick_that_is_repeated_counts_no_error_twice() -> None:
    once = after(in_phase(Phase.STEP), ERROR, 1)
    assert after(once, ERROR, 1) == once
    assert once.errors == 1


def test_experiment_is_ended_by_time_or_people_but_not_promoted_by_itself() -> None:
    state = in_phase(Phase.EXPERIMENT)
    assert all(after(state, findings, 999).phase is Phase.EXPERIMENT for findings in (PASS, INCONCLUSIVE, NOTHING))
    assert after(state, PASS, 1_000).phase is Phase.SUCCEEDED
    assert after(operate(state, Command.PAUSE, actor="anna", now_s=NOW_S), PASS, 1_000).phase is Phase.SUCCEEDED


# Limits


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.SHADOW, Phase.SEGMENT, Phase.STEP, Phase.PAUSED])
@pytest.mark.parametrize("findings", [PASS, INCONCLUSIVE, NOTHING])
def test_deadline_aborts(phase: Phase, findings: Findings) -> None:
    state = after(in_phase(phase), findings, 1_000)
    assert (state.phase, state.history[-1].reason) == (Phase.ABORTING, "not done after 1000 s")


@pytest.mark.parametrize(
    ("progress", "phase"),
    [(Progress.UNDER_WAY, Phase.ABORTING), (Progress.DONE, Phase.WATCHING), (Progress.BROKEN, Phase.FAILED)],
)
def test_deadline_ends_a_promotion_that_is_still_under_way(progress: Progress, phase: Phase) -> None:
    assert after(in_phase(Phase.PROMOTING), Findings(progress=progress), 1_000).phase is phase


def test_deadline_aborts_the_promotion_of_an_experiment_too() -> None:
    state = operate(in_phase(Phase.EXPERIMENT), Command.PROMOTE, actor="anna", now_s=NOW_S)
    assert after(state, NOTHING, 1_000).phase is Phase.ABORTING


def test_exposure_that_reaches_the_cap_pauses_and_takes_the_candidate_off() -> None:
    state = capped(in_phase(Phase.STEP))
    assert after(state, Findings(Verdict.INCONCLUSIVE, exposed_requests=99), 5).phase is Phase.STEP
    state = after(state, Findings(Verdict.INCONCLUSIVE, exposed_requests=100), 5)
    assert (state.phase, state.pause_reason, candidate_share(state)) == (Phase.PAUSED, PauseReason.CAP, 0)
    split = split_of(state)
    assert split is not None
    assert split.segments == ()


def test_resuming_after_the_cap_grants_the_same_number_again() -> None:
    state = after(capped(in_phase(Phase.STEP)), Findings(exposed_requests=130), 5)
    state = operate(state, Command.RESUME, actor="anna", now_s=NOW_S + 6)
    assert (state.phase, candidate_share(state)) == (Phase.STEP, 100)
    assert after(state, Findings(exposed_requests=229), 7).phase is Phase.STEP
    assert after(state, Findings(exposed_requests=230), 7).pause_reason is PauseReason.CAP


def test_cap_on_entities_holds_too() -> None:
    plan = CANARY.model_copy(update={"max_exposed_entities": 3})
    assert after(in_phase(Phase.SEGMENT, plan), Findings(exposed_entities=3), 1).pause_reason is PauseReason.CAP


def test_pass_at_the_cap_promotes_from_the_last_step_but_goes_to_no_larger_one() -> None:
    found = Findings(Verdict.PASS, exposed_requests=100)
    assert after(capped(in_phase(Phase.STEP, step=1)), found, 10).phase is Phase.PROMOTING
    assert after(capped(in_phase(Phase.STEP, step=0)), found, 10).pause_reason is PauseReason.CAP


def test_exposure_grows_on_while_an_operator_pauses_and_is_capped_there_too() -> None:
    state = after(capped(in_phase(Phase.PAUSED)), Findings(exposed_requests=100), 1)
    assert (state.pause_reason, state.came_from, candidate_share(state)) == (PauseReason.CAP, Phase.STEP, 0)


def test_copies_for_a_shadow_expose_nobody() -> None:
    assert after(capped(in_phase(Phase.SHADOW)), Findings(exposed_requests=100), 1).phase is Phase.SHADOW
    paused = in_phase(Phase.PAUSED, came_from=Phase.SHADOW)
    assert after(capped(paused), Findings(exposed_requests=100), 1).pause_reason is PauseReason.OPERATOR


def test_exposure_that_was_counted_once_is_not_forgotten_when_less_is_reported() -> None:
    state = after(capped(in_phase(Phase.STEP)), Findings(exposed_requests=80, exposed_entities=8), 1)
    state = after(state, Findings(exposed_requests=20, exposed_entities=2), 2)
    assert (state.exposed_requests, state.exposed_entities) == (80, 8)


# Beginning and end


def test_candidate_that_cannot_be_loaded_ends_the_rollout() -> None:
    state = after(started(), BROKEN, 1)
    assert (state.phase, state.history[-1].reason) == (
        Phase.ABORTING, "the candidate cannot be loaded: disk full",
    )  # fmt: skip


def test_promotion_that_breaks_leaves_traffic_to_the_active_version() -> None:
    decision = decide(in_phase(Phase.PROMOTING), BROKEN, now_s=NOW_S + 1)
    assert (decision.state.phase, decision.split) == (Phase.FAILED, None)
    assert decision.actions == (Action.RELEASE_CANDIDATE,)


@pytest.mark.parametrize("verdict", Verdict)
def test_verdict_does_not_matter_once_it_is_decided_to_promote(verdict: Verdict) -> None:
    assert after(in_phase(Phase.PROMOTING), Findings(verdict), 1).phase is Phase.PROMOTING
    assert after(in_phase(Phase.PROMOTING), Findings(verdict, Progress.DONE), 1).phase is Phase.WATCHING


@pytest.mark.parametrize("progress", [Progress.UNDER_WAY, Progress.BROKEN])
def test_abort_sends_everything_to_the_former_version_until_it_is_active(progress: Progress) -> None:
    state = in_phase(Phase.ABORTING)
    decision = decide(state, Findings(progress=progress), now_s=NOW_S + 5_000)
    assert decision.state == state
    assert decision.split is not None
    assert [(v.version, v.weight) for v in decision.split.variants] == [("v1", 10_000)]
    assert after(state, DONE, 5_001).phase is Phase.ABORTED


@pytest.mark.parametrize(("seconds", "phase"), [(99, Phase.WATCHING), (100, Phase.SUCCEEDED)])
def test_promoted_version_is_watched_for_its_time(seconds: float, phase: Phase) -> None:
    assert after(in_phase(Phase.WATCHING), INCONCLUSIVE, seconds).phase is phase


def test_retry_begins_anew_with_other_keys() -> None:
    over = in_phase(Phase.ABORTED, step=1, verdict=Verdict.FAIL, exposed_requests=9, granted_requests=5)
    again = operate(over, Command.RETRY, actor="anna", now_s=NOW_S + 500)
    assert again.salt != over.salt
    expected = started().model_copy(
        update={
            "retries": 1, "started_at_s": NOW_S + 500, "began_at_s": NOW_S + 500, "judged_at_s": over.judged_at_s,
            "history": again.history,
        }
    )  # fmt: skip
    assert again == expected


def test_history_keeps_the_newest_moves() -> None:
    state = in_phase(Phase.STEP)
    for n in range(KEPT_MOVES):
        command = Command.RESUME if state.phase is Phase.PAUSED else Command.PAUSE
        state = operate(state, command, actor="anna", now_s=NOW_S + n)
    state = operate(state, Command.ABORT, actor="anna", now_s=NOW_S + KEPT_MOVES)
    assert len(state.history) == KEPT_MOVES
    assert state.history[-1].to is Phase.ABORTING


# The split


def test_segment_gets_the_candidate_first_and_keeps_it_in_the_steps() -> None:
    for phase, share in ((Phase.SEGMENT, 0), (Phase.STEP, 100)):
        split = split_of(state := in_phase(phase))
        assert split is not None
        chosen = assign(compile_split(split), RequestFacts(entity="edge-7"), draw=0.99)
        assert (chosen.variant.name, candidate_share(state)) == ("canary", share)


def test_shadow_gets_copies_and_answers_nobody() -> None:
    split = split_of(in_phase(Phase.SHADOW))
    assert split is not None
    assert split.shadow is not None
    assert (split.shadow.version, split.shadow.sample, len(split.variants)) == ("v2", 2_000, 1)


def test_watch_holds_some_back_that_the_new_version_never_answered() -> None:
    step, watched = (split_of(in_phase(phase, step=1)) for phase in (Phase.STEP, Phase.WATCHING))
    assert step is not None
    assert watched is not None
    keys = [f"key-{i}" for i in range(4_000)]
    before, after_ = (
        {key for key in keys if assign(compile_split(split), RequestFacts(key=key), draw=0.5).variant.version == "v1"}
        for split in (step, watched)
    )
    assert after_ < before
    assert 0.03 < len(after_) / len(keys) < 0.07
    assert assign(compile_split(watched), RequestFacts(entity="edge-7"), draw=0.99).variant.version == "v2"


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"holdback": 0.0}, 0),
        ({"analysis": None}, 0),
        ({"steps": (Step(weight=100),)}, 0),
        ({"steps": (Step(weight=98),)}, 200),
        ({"holdback": 12.5}, 1_250),
    ],
)
def test_nobody_is_held_back_where_nothing_would_be_judged_or_all_have_the_new_version(
    changes: dict[str, Any], share: int
) -> None:
    state = in_phase(Phase.WATCHING, CANARY.model_copy(update=changes))
    assert former_share(state) == share
    assert (split_of(state) is None) is (share == 0)


def test_watch_that_ends_tells_what_was_found() -> None:
    found = Findings(Verdict.INCONCLUSIVE, detail="7 of at least 500 samples")
    state = after(in_phase(Phase.WATCHING), found, 100)
    assert (state.phase, state.history[-1].reason) == (
        Phase.SUCCEEDED, "watched for its time: 7 of at least 500 samples",
    )  # fmt: skip


def test_pause_and_promotion_leave_traffic_as_it_was() -> None:
    step = in_phase(Phase.STEP, step=1)
    for command in (Command.PAUSE, Command.PROMOTE):
        assert split_of(operate(step, command, actor="anna", now_s=NOW_S)) == split_of(step)
    paused = operate(step, Command.PAUSE, actor="anna", now_s=NOW_S)
    assert split_of(operate(paused, Command.PROMOTE, actor="anna", now_s=NOW_S)) == split_of(step)


# What always holds

FINDINGS = st.builds(
    Findings,
    verdict=st.none() | st.sampled_from(Verdict),
    progress=st.sampled_from(Progress),
    exposed_requests=st.integers(0, 500),
    exposed_entities=st.integers(0, 50),
)
ALL_PLANS = st.sampled_from(
    [
        *PLANS,
        CANARY.model_copy(update={"max_exposed_requests": 100, "max_exposed_entities": 20, "analysis": None}),
        CANARY.model_copy(update={"holdback": 0.0}),
        AB.model_copy(update={"watch_s": 100.0, "holdback": 50.0}),
        IMMEDIATE.model_copy(update={"watch_s": 100.0, "holdback": 20.0}),
        RolloutPlan(strategy=Strategy.CANARY, steps=(Step(weight=99),), watch_s=100.0),
    ]
)


def test_every_phase_leads_to_an_end() -> None:
    reach = set(OVER)
    while grown := {phase for phase, leads_to in TRANSITIONS.items() if leads_to & reach} - reach:
        reach |= grown
    assert reach == set(Phase) == set(TRANSITIONS)


class Rollout(RuleBasedStateMachine):
    """A rollout to which everything happens that can."""

    @initialize(plan=ALL_PLANS)
    def begin(self, plan: RolloutPlan) -> None:
        self.state = self.before = started(plan)
        self.now_s = NOW_S

    @precondition(lambda self: not self.state.phase.is_over)
    @rule(findings=FINDINGS, seconds=st.sampled_from([0.0, 1.0, 10.0, 400.0]))
    def tick(self, findings: Findings, seconds: float) -> None:
        self.now_s += seconds
        decision = decide(self.state, findings, now_s=self.now_s)
        assert decision == decide(self.state, findings, now_s=self.now_s)
        self.take(decision.state)

    @precondition(lambda self: self.state.phase.is_over)
    @rule(findings=FINDINGS)
    def tick_after_the_end(self, findings: Findings) -> None:
        with pytest.raises(RolloutTransitionError):
            decide(self.state, findings, now_s=self.now_s)

    @rule(command=st.sampled_from(Command))
    def ask(self, command: Command) -> None:
        found = self.state
        copy = found.model_copy(deep=True)
        if found.phase in COMMANDS[command]:
            self.take(operate(found, command, actor="anna", now_s=self.now_s))
        else:
            with pytest.raises(RolloutTransitionError):
                operate(found, command, actor="anna", now_s=self.now_s)
        assert found == copy

    @rule()
    def crash(self) -> None:
        """Whoever takes over knows only what was saved, and must ask for the same."""
        revived = RolloutState.model_validate_json(self.state.model_dump_json())
        assert decision_of(revived) == decision_of(self.state)
        self.state = revived

    def take(self, state: RolloutState) -> None:
        self.before, self.state = self.state, state
        now, was = state.phase, self.before.phase
        assert now is was or now in TRANSITIONS[was]
        goes_back = now in {Phase.ABORTING, Phase.ABORTED, Phase.FAILED, Phase.PAUSED, Phase.PENDING}
        goes_back = goes_back or (now is Phase.SUCCEEDED and not is_promoted(state))
        assert goes_back or former_share(state) <= former_share(self.before)
        assert candidate_share(state) == candidate_share(self.before) or now is not Phase.PAUSED or (
            state.pause_reason is PauseReason.CAP
        )  # fmt: skip
        if was in (Phase.ABORTING, Phase.ABORTED) and now is not Phase.PENDING:
            assert now in (Phase.ABORTING, Phase.ABORTED)

    @invariant()
    def candidate_gets_nothing_before_its_turn_or_after_an_abort(self) -> None:
        split = split_of(self.state)
        if self.state.phase in (Phase.PENDING, Phase.SHADOW, Phase.ABORTING, Phase.ABORTED, Phase.FAILED):
            assert candidate_share(self.state) == 0
            assert split is None or not split.segments
        assert (self.state.ended_at_s is not None) is self.state.phase.is_over
        assert (self.state.pause_reason is not None) is (self.state.phase is Phase.PAUSED)

    @invariant()
    def no_more_is_held_back_than_the_plan_says(self) -> None:
        if self.state.phase is Phase.WATCHING:
            assert former_share(self.state) <= 100 * self.state.plan.holdback

    @invariant()
    def time_ends_it(self) -> None:
        """Without any verdict, once what was asked for is done, two deadlines and the watch are enough."""
        state, now_s = self.state, self.now_s
        for _ in range(4):
            if state.phase.is_over:
                return
            now_s += state.plan.deadline_s + state.plan.watch_s
            state = decide(state, DONE, now_s=now_s).state
        assert state.phase.is_over


TestRollout = Rollout.TestCase
TestRollout.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)


@given(plan=ALL_PLANS, phase=st.sampled_from([*sorted(TRIED), Phase.PENDING, Phase.PAUSED]), findings=FINDINGS)
@settings(deadline=None)
def test_no_trial_outlives_its_deadline(plan: RolloutPlan, phase: Phase, findings: Findings) -> None:
    state = in_phase(phase, plan)
    late = after(state, findings, plan.deadline_s)
    assert late.phase in (Phase.ABORTING, Phase.SUCCEEDED)
    assert candidate_share(late) == 0
