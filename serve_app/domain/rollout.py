"""The rollout of one version: its phases, what is stored of it, the transitions that are allowed, and `decide`.

    PENDING ─▶ SHADOW ─▶ SEGMENT ─▶ STEP ⟲ ─▶ PROMOTING ─▶ WATCHING ─▶ SUCCEEDED
                 └─▶ EXPERIMENT ─▶ SUCCEEDED     └─▶ FAILED
    SHADOW, SEGMENT, STEP, EXPERIMENT ◀─▶ PAUSED
    all up to WATCHING ─▶ ABORTING ─▶ ABORTED

A plan leaves out the phases that it does not name. What the gateways do (`split_of`) and what is to be brought about
(`actions_of`) follow from the state alone. So the state is saved first, and whoever comes up after a crash acts by
what is saved: every action may be repeated.

What verdicts and limits do while the candidate is tried; what stands first decides:

    fail            aborts, also while paused and, by going back to the former version, while watching: some requests
                    were held back for it, so that both are judged in the same windows
    deadline        aborts; an experiment has then run its time and succeeds
    pass            goes on once the phase has been held for its `hold_s`; an experiment goes on for its time
    cap on exposure pauses and takes the candidate off all traffic: nobody more is exposed while people look at it.
                    Resuming grants the same number again. A pass in the last step promotes in spite of it
    error           counted in a row; `max_errors` of them pause, and traffic stays as it is
    inconclusive    waits, or pauses at the end of `hold_s`, as the plan says; the deadline ends both

Resuming begins the hold anew. An experiment is never promoted by itself. If the promotion itself breaks, the rollout
has FAILED: the former version never stopped being the active one. An abort has no way to fail: the split sends
everything to the former version at once, and stays until that one is active, or an operator has put another in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from serve_app.domain.rollout_plan import OnInconclusive, PlanOrigin, RolloutPlan, Strategy
from serve_app.domain.rollout_split import split_of
from serve_app.domain.rollout_state import (
    TRIED,
    CoolingDownError,
    Move,
    PauseReason,
    Phase,
    RolloutState,
    RolloutTransitionError,
)
from serve_app.domain.traffic import Split
from serve_app.domain.verdict import Verdict
from serve_app.domain.version_ref import VersionRef

KEPT_MOVES = 50
ITSELF = "rollout"
"""Who makes the moves that no operator asked for."""

TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    Phase.PENDING: TRIED | {Phase.PROMOTING, Phase.ABORTING},
    Phase.SHADOW: frozenset(
        {Phase.SEGMENT, Phase.STEP, Phase.EXPERIMENT, Phase.PAUSED, Phase.PROMOTING, Phase.ABORTING, Phase.SUCCEEDED}
    ),
    Phase.SEGMENT: frozenset({Phase.STEP, Phase.PAUSED, Phase.PROMOTING, Phase.ABORTING}),
    Phase.STEP: frozenset({Phase.STEP, Phase.PAUSED, Phase.PROMOTING, Phase.ABORTING}),
    Phase.EXPERIMENT: frozenset({Phase.PAUSED, Phase.PROMOTING, Phase.ABORTING, Phase.SUCCEEDED}),
    Phase.PAUSED: TRIED | {Phase.PAUSED, Phase.PROMOTING, Phase.ABORTING, Phase.SUCCEEDED},
    Phase.PROMOTING: frozenset({Phase.WATCHING, Phase.SUCCEEDED, Phase.ABORTING, Phase.FAILED}),
    Phase.WATCHING: frozenset({Phase.SUCCEEDED, Phase.ABORTING}),
    Phase.ABORTING: frozenset({Phase.ABORTED}),
    Phase.SUCCEEDED: frozenset(),
    Phase.ABORTED: frozenset({Phase.PENDING}),
    Phase.FAILED: frozenset({Phase.PENDING}),
}
"""Every move there is; a phase that leads to itself does so with another step, or another reason to be paused."""


class Command(StrEnum):
    """What an operator may ask for. `promote` means: all traffic now, whatever the verdicts say."""

    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    SKIP_STEP = "skip_step"
    ABORT = "abort"
    RETRY = "retry"


COMMANDS: Mapping[Command, tuple[Phase, ...]] = {
    Command.PAUSE: (Phase.SHADOW, Phase.SEGMENT, Phase.STEP, Phase.EXPERIMENT),
    Command.RESUME: (Phase.PAUSED,),
    Command.PROMOTE: (Phase.SHADOW, Phase.SEGMENT, Phase.STEP, Phase.EXPERIMENT, Phase.PAUSED),
    Command.SKIP_STEP: (Phase.SHADOW, Phase.SEGMENT, Phase.STEP),
    Command.ABORT: (
        Phase.PENDING,
        Phase.SHADOW,
        Phase.SEGMENT,
        Phase.STEP,
        Phase.EXPERIMENT,
        Phase.PAUSED,
        Phase.PROMOTING,
        Phase.WATCHING,
    ),
    Command.RETRY: (Phase.ABORTED, Phase.FAILED),
}
"""The phases in which an operator may ask for it. `abort` while watching brings the former version back."""


class Progress(StrEnum):
    """How far the action is that the phase asks for: loading the candidate, the promotion, going back."""

    UNDER_WAY = "under_way"
    DONE = "done"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known at one tick. `verdict` None: nothing was judged since the last tick.

    `progress` is DONE in PENDING when every replica that is to hold the candidate does, in PROMOTING when the candidate
    is the active version, in ABORTING when the candidate is not, and the gateways follow. Exposures count answers and
    entities of the candidate since the attempt began; shadow copies are none. `detail` is for people to read.
    """

    verdict: Verdict | None = None
    progress: Progress = Progress.UNDER_WAY
    exposed_requests: int = 0
    exposed_entities: int = 0
    detail: str = ""


class Action(StrEnum):
    """What a state asks the outside for. Each may be repeated, and does nothing where it is done already."""

    LOAD_CANDIDATE = "load_candidate"
    PROMOTE_CANDIDATE = "promote_candidate"
    RESTORE_STABLE = "restore_stable"
    DISTRUST_CANDIDATE = "distrust_candidate"
    RELEASE_CANDIDATE = "release_candidate"


@dataclass(frozen=True, slots=True)
class Decision:
    """The next state, to be saved first; the split for the gateways; and what is to be brought about."""

    state: RolloutState
    split: Split | None
    actions: tuple[Action, ...]


def start(
    plan: RolloutPlan,
    *,
    rollout_id: str,
    family: str,
    candidate: VersionRef,
    stable: VersionRef,
    actor: str,
    reason: str,
    now_s: float,
    previous: RolloutState | None = None,
    waits: bool = True,
    plan_from: PlanOrigin = PlanOrigin.CONFIGURATION,
) -> RolloutState:
    """Begin the rollout of a candidate. `previous` is the family's last one; an operator need not wait for it to cool.

    Raises:
        RolloutTransitionError: The previous rollout of the family is not over.
        CoolingDownError: It ended less than its `cool_down_s` ago, and this one `waits` for that.
    """
    if previous is not None and not previous.phase.is_over:
        raise RolloutTransitionError("start", tuple(phase for phase in Phase if phase.is_over), previous.phase)
    if previous is not None and waits and previous.ended_at_s is not None:
        left_s = previous.ended_at_s + previous.plan.cool_down_s - now_s
        if left_s > 0:
            raise CoolingDownError(family, left_s)
    return RolloutState(
        rollout_id=rollout_id,
        family=family,
        plan=plan,
        plan_from=plan_from,
        candidate=candidate,
        stable=stable,
        actor=actor,
        reason=reason,
        started_at_s=now_s,
        began_at_s=now_s,
    )


def decide(state: RolloutState, findings: Findings, *, now_s: float) -> Decision:
    """Choose the next move of a rollout; the same arguments always give the same one.

    Raises:
        RolloutTransitionError: The rollout is over.
    """
    if state.phase.is_over:
        raise RolloutTransitionError("decide", tuple(phase for phase in Phase if not phase.is_over), state.phase)
    return decision_of(_next(_noted(state, findings, now_s), findings, now_s))


def operate(state: RolloutState, command: Command, *, actor: str, now_s: float, reason: str = "") -> RolloutState:
    """Return the state after an operator's command.

    Raises:
        RolloutTransitionError: The phase does not allow it.
    """
    if state.phase not in COMMANDS[command]:
        raise RolloutTransitionError(command.value, COMMANDS[command], state.phase)
    why = reason or command.value
    match command:
        case Command.PAUSE:
            return _paused(state, PauseReason.OPERATOR, now_s=now_s, actor=actor, reason=why)
        case Command.RESUME:
            assert state.came_from is not None, "a pause knows where it came from"
            granted = {} if state.pause_reason is not PauseReason.CAP else _granted(state)
            return _moved(state, state.came_from, now_s=now_s, actor=actor, reason=why, **granted)
        case Command.PROMOTE:
            stays = state.came_from or state.phase
            return _moved(state, Phase.PROMOTING, now_s=now_s, actor=actor, reason=why, came_from=stays)
        case Command.SKIP_STEP:
            return _forward(state, now_s=now_s, actor=actor, reason=why)
        case Command.ABORT:
            return _moved(state, Phase.ABORTING, now_s=now_s, actor=actor, reason=why)
        case Command.RETRY:
            return _retried(state, now_s=now_s, actor=actor, reason=why)


def decision_of(state: RolloutState) -> Decision:
    """Return what a saved state asks for; whoever takes over after a crash begins with it."""
    return Decision(state, split_of(state), actions_of(state))


def actions_of(state: RolloutState) -> tuple[Action, ...]:
    """Return what a state asks the outside for, in this order; all of it may be repeated."""
    match state.phase:
        case Phase.PROMOTING:
            return (Action.LOAD_CANDIDATE, Action.PROMOTE_CANDIDATE)
        case Phase.WATCHING:
            return ()
        case Phase.ABORTING if state.verdict is Verdict.FAIL:
            return (Action.RESTORE_STABLE, Action.DISTRUST_CANDIDATE)
        case Phase.ABORTING:
            return (Action.RESTORE_STABLE,)
        case Phase.SUCCEEDED | Phase.ABORTED | Phase.FAILED:
            return (Action.RELEASE_CANDIDATE,)
        case _:
            return (Action.LOAD_CANDIDATE,)


def _next(state: RolloutState, findings: Findings, now_s: float) -> RolloutState:
    match state.phase:
        case Phase.PENDING:
            return _after_loading(state, findings, now_s)
        case Phase.PAUSED:
            return _while_paused(state, findings, now_s)
        case Phase.PROMOTING:
            return _after_promotion(state, findings, now_s)
        case Phase.WATCHING if findings.verdict is Verdict.FAIL:
            return _moved(state, Phase.ABORTING, now_s=now_s, reason=_why("fail after the promotion", findings))
        case Phase.WATCHING if now_s >= state.began_at_s + state.plan.watch_s:
            return _moved(state, Phase.SUCCEEDED, now_s=now_s, reason=_why("watched for its time", findings))
        case Phase.ABORTING if findings.progress is Progress.DONE:
            return _moved(state, Phase.ABORTED, now_s=now_s, reason="the former version answers everything")
        case phase if phase in TRIED:
            return _while_tried(state, findings, now_s)
        case _:
            return state


def _after_loading(state: RolloutState, findings: Findings, now_s: float) -> RolloutState:
    if findings.progress is Progress.BROKEN:
        return _moved(state, Phase.ABORTING, now_s=now_s, reason=_why("the candidate cannot be loaded", findings))
    if now_s >= state.overdue_at_s:
        return _out_of_time(state, now_s)
    if findings.progress is Progress.DONE:
        return _forward(state, now_s=now_s, reason="the candidate is loaded")
    return state


def _while_tried(state: RolloutState, findings: Findings, now_s: float) -> RolloutState:
    plan, verdict = state.plan, findings.verdict
    if verdict is Verdict.FAIL:
        return _moved(state, Phase.ABORTING, now_s=now_s, reason=_why("fail", findings))
    if now_s >= state.overdue_at_s:
        return _out_of_time(state, now_s)
    is_experiment = state.phase is Phase.EXPERIMENT
    is_held = now_s >= state.began_at_s + _hold_s(state) and not is_experiment
    is_judged = state.judged_by is not None
    goes_on = is_held and (verdict is Verdict.PASS or not is_judged)
    is_capped = _is_capped(state)
    if goes_on and (not is_capped or _following(state)[0] is not Phase.STEP):
        return _forward(state, now_s=now_s, reason=_why("pass" if is_judged else "held for its time", findings))
    if is_capped:
        return _paused(state, PauseReason.CAP, now_s=now_s, reason="as many were exposed as the plan allows")
    if state.errors >= plan.max_errors:
        reason = _why(f"{state.errors} verdicts in a row were errors", findings)
        return _paused(state, PauseReason.ERRORS, now_s=now_s, reason=reason)
    if is_held and verdict is Verdict.INCONCLUSIVE and plan.on_inconclusive is OnInconclusive.PAUSE:
        return _paused(state, PauseReason.INCONCLUSIVE, now_s=now_s, reason=_why("inconclusive", findings))
    return state


def _while_paused(state: RolloutState, findings: Findings, now_s: float) -> RolloutState:
    if findings.verdict is Verdict.FAIL:
        return _moved(state, Phase.ABORTING, now_s=now_s, reason=_why("fail", findings))
    if now_s >= state.overdue_at_s:
        return _out_of_time(state, now_s)
    if state.pause_reason is not PauseReason.CAP and state.came_from is not Phase.SHADOW and _is_capped(state):
        return _paused(state, PauseReason.CAP, now_s=now_s, reason="as many were exposed as the plan allows")
    return state


def _after_promotion(state: RolloutState, findings: Findings, now_s: float) -> RolloutState:
    """Verdicts do not matter any more: a pass or an operator has decided."""
    match findings.progress:
        case Progress.DONE if state.plan.watch_s > 0:
            return _moved(state, Phase.WATCHING, now_s=now_s, reason="promoted")
        case Progress.DONE:
            return _moved(state, Phase.SUCCEEDED, now_s=now_s, reason="promoted")
        case Progress.BROKEN:
            return _moved(state, Phase.FAILED, now_s=now_s, reason=_why("the promotion broke", findings))
        case Progress.UNDER_WAY if now_s >= state.overdue_at_s:
            return _out_of_time(state, now_s)
        case Progress.UNDER_WAY:
            return state


def _out_of_time(state: RolloutState, now_s: float) -> RolloutState:
    is_experiment = Phase.EXPERIMENT in (state.phase, state.came_from) and state.phase is not Phase.PROMOTING
    if is_experiment:
        return _moved(state, Phase.SUCCEEDED, now_s=now_s, reason="the experiment has run its time")
    return _moved(state, Phase.ABORTING, now_s=now_s, reason=f"not done after {state.plan.deadline_s:g} s")


def _retried(state: RolloutState, *, now_s: float, actor: str, reason: str) -> RolloutState:
    return _moved(
        state,
        Phase.PENDING,
        now_s=now_s,
        actor=actor,
        reason=reason,
        started_at_s=now_s,
        step=0,
        verdict=None,
        exposed_requests=0,
        exposed_entities=0,
        granted_requests=0,
        granted_entities=0,
        retries=state.retries + 1,
    )


def _forward(state: RolloutState, *, now_s: float, reason: str, actor: str = ITSELF) -> RolloutState:
    to, step = _following(state)
    stays = state.phase if to is Phase.PROMOTING else None
    return _moved(state, to, now_s=now_s, actor=actor, reason=reason, step=step, came_from=stays)


def _following(state: RolloutState) -> tuple[Phase, int]:
    stages = _stages(state.plan)
    return stages[stages.index((state.phase, state.step)) + 1]


def _stages(plan: RolloutPlan) -> tuple[tuple[Phase, int], ...]:
    """List phases and steps that a plan goes through by itself. The step of the last one is the last step."""
    stages = [(Phase.PENDING, 0)]
    if plan.shadow_first is not None:
        stages.append((Phase.SHADOW, 0))
    if plan.segment_first is not None:
        stages.append((Phase.SEGMENT, 0))
    match plan.strategy:
        case Strategy.CANARY:
            stages += [(Phase.STEP, step) for step in range(len(plan.steps))]
            stages.append((Phase.PROMOTING, len(plan.steps) - 1))
        case Strategy.AB:
            stages.append((Phase.EXPERIMENT, 0))
        case Strategy.SHADOW:
            stages.append((Phase.SUCCEEDED, 0))
        case Strategy.IMMEDIATE:
            stages.append((Phase.PROMOTING, 0))
    return tuple(stages)


def _hold_s(state: RolloutState) -> float:
    plan = state.plan
    if state.phase is Phase.STEP:
        return plan.steps[state.step].hold_s
    first = plan.shadow_first if state.phase is Phase.SHADOW else plan.segment_first
    return first.hold_s if first is not None else 0.0


def _is_capped(state: RolloutState) -> bool:
    if state.phase is Phase.SHADOW:  # nobody gets the answers
        return False
    used = (
        (state.exposed_requests - state.granted_requests, state.plan.max_exposed_requests),
        (state.exposed_entities - state.granted_entities, state.plan.max_exposed_entities),
    )
    return any(cap is not None and n >= cap for n, cap in used)


def _granted(state: RolloutState) -> dict[str, int]:
    return {"granted_requests": state.exposed_requests, "granted_entities": state.exposed_entities}


def _noted(state: RolloutState, findings: Findings, now_s: float) -> RolloutState:
    """Take down what was found. A tick that is repeated at the same time counts no error twice."""
    noted: dict[str, object] = {
        "exposed_requests": max(state.exposed_requests, findings.exposed_requests),
        "exposed_entities": max(state.exposed_entities, findings.exposed_entities),
    }
    if findings.verdict is not None and now_s > state.judged_at_s:
        is_error = findings.verdict is Verdict.ERROR
        noted |= {
            "verdict": findings.verdict,
            "judged_at_s": now_s,
            "errors": state.errors + 1 if is_error and state.phase in TRIED else 0,
        }
    return state.model_copy(update=noted)


def _paused(state: RolloutState, why: PauseReason, *, now_s: float, reason: str, actor: str = ITSELF) -> RolloutState:
    stays = state.came_from or state.phase
    return _moved(state, Phase.PAUSED, now_s=now_s, actor=actor, reason=reason, came_from=stays, pause_reason=why)


def _moved(
    state: RolloutState, to: Phase, *, now_s: float, reason: str, actor: str = ITSELF, **changes: object
) -> RolloutState:
    """Make a move of the table; everything that belongs to the former phase only is forgotten."""
    if to not in TRANSITIONS[state.phase]:
        expected = tuple(phase for phase, leads_to in TRANSITIONS.items() if to in leads_to)
        raise RolloutTransitionError(f"go to {to.value}", expected, state.phase)
    moved = state.model_copy(
        update={
            "phase": to,
            "began_at_s": now_s,
            "ended_at_s": now_s if to.is_over else None,
            "came_from": None,
            "pause_reason": None,
            "errors": 0,
            **changes,
        }
    )
    move = Move(at_s=now_s, found=state.phase, to=to, step=moved.step, actor=actor, reason=reason)
    return moved.model_copy(update={"history": (*state.history, move)[-KEPT_MOVES:]})


def _why(reason: str, findings: Findings) -> str:
    return f"{reason}: {findings.detail}" if findings.detail else reason
