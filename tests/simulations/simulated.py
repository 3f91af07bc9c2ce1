"""One simulated rollout: its traffic through the real tally, the real analysis and the real `decide`."""

from dataclasses import dataclass

import numpy as np

from serve_app.domain.analysis import Tally, analyse, tallied
from serve_app.domain.reload import VersionRef
from serve_app.domain.rollout import Findings, Progress, decide, start
from serve_app.domain.rollout_state import Phase, RolloutState
from serve_app.domain.verdict import Verdict
from tests.simulations.rivals import NEVER, crossings
from tests.simulations.scenarios import ANALYSIS, LOOK_S, N_LOOKS, Scenario, drawn


@dataclass(frozen=True, slots=True)
class Course:
    """What became of one rollout, as numbers of looks; 0 is never.

    `aborted` and `promoted` are what `decide` did, `exposed` the canary's requests until then (or in all). `failed` is
    the first verdict fail, `split_alarm` the first about the split, `passed` the first pass of each metric. `rivals` is
    when those would have aborted the same traffic.
    """

    aborted: int
    promoted: int
    exposed: int
    failed: int
    split_alarm: int
    passed: tuple[int, ...]
    rivals: tuple[int, ...]
    canary_requests: tuple[int, ...]


def run(scenario: Scenario, rng: np.random.Generator) -> Course:
    """Simulate one rollout."""
    series = drawn(scenario, rng)
    state = _begun(scenario)
    tally = Tally()
    aborted = promoted = failed = split_alarm = NEVER
    passed = [NEVER] * len(ANALYSIS.metrics)
    exposed = 0
    for look in range(1, N_LOOKS + 1):
        tally = tallied(tally, series.evidence(look - 1, scenario.share), ANALYSIS)
        found = analyse(tally, ANALYSIS)
        failed = failed or (look if found.verdict is Verdict.FAIL else NEVER)
        split_alarm = split_alarm or (look if found.p_split <= ANALYSIS.srm_alpha else NEVER)
        for i, metric in enumerate(found.metrics):
            passed[i] = passed[i] or (look if metric.verdict is Verdict.PASS else NEVER)
        if state.phase is Phase.STEP:
            exposed = tally.canary.requests
            findings = Findings(verdict=found.verdict, exposed_requests=exposed, detail=found.reason)
            state = decide(state, findings, now_s=look * LOOK_S).state
            aborted = look if state.phase is Phase.ABORTING else NEVER
            promoted = look if state.phase is Phase.PROMOTING else NEVER
        if state.phase is not Phase.STEP and not scenario.is_watched_on:
            break
    return Course(
        aborted=aborted,
        promoted=promoted,
        exposed=exposed,
        failed=failed,
        split_alarm=split_alarm,
        passed=tuple(passed),
        rivals=crossings(series),
        canary_requests=tuple(series.canary_requests.cumsum().tolist()),
    )


def _begun(scenario: Scenario) -> RolloutState:
    candidate, stable = VersionRef(version="v2", digest="d2"), VersionRef(version="v1", digest="d1")
    state = start(
        scenario.plan,
        rollout_id="simulated",
        family="simulated",
        candidate=candidate,
        stable=stable,
        actor="simulation",
        reason=scenario.name,
        now_s=0.0,
    )
    state = decide(state, Findings(progress=Progress.DONE), now_s=0.0).state
    assert state.phase is Phase.STEP, state.phase
    return state
