"""What a rollout comes down to for other controllers, which ask yes or no."""

from pydantic import BaseModel, ConfigDict

from serve_app.domain.rollout_record import RolloutReport
from serve_app.domain.rollout_state import Phase
from serve_app.domain.verdict import Verdict

VALUES = {Verdict.PASS: 1, Verdict.INCONCLUSIVE: 0, Verdict.ERROR: 0, Verdict.FAIL: -1}


class RolloutVerdict(BaseModel):
    """The verdict on a rollout, as a word and as a number: 1 pass, 0 not known, -1 fail.

    `is_pass` and `is_fail` are the answers to "may it go on?" and "must it be taken back?". `metrics` has the verdict
    on each metric.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    version: str
    phase: Phase
    verdict: Verdict
    value: int
    is_pass: bool
    is_fail: bool
    reason: str
    metrics: dict[str, Verdict] = {}


def verdict_of(report: RolloutReport) -> RolloutVerdict:
    """Return the verdict on a rollout; one that has ended, or is about to, is judged by how it ends."""
    state, analysis = report.state, report.analysis
    match state.phase:
        case Phase.ABORTING | Phase.ABORTED | Phase.FAILED:
            verdict, reason = Verdict.FAIL, state.history[-1].reason
        case Phase.PROMOTING | Phase.WATCHING | Phase.SUCCEEDED:
            verdict, reason = Verdict.PASS, state.history[-1].reason
        case _ if analysis is None:
            verdict, reason = Verdict.INCONCLUSIVE, "nothing was judged yet"
        case _:
            verdict, reason = analysis.verdict, analysis.reason
    return RolloutVerdict(
        family=report.family,
        version=state.candidate.version,
        phase=state.phase,
        verdict=verdict,
        value=VALUES[verdict],
        is_pass=verdict is Verdict.PASS,
        is_fail=verdict is Verdict.FAIL,
        reason=reason,
        metrics={metric.name: metric.verdict for metric in analysis.metrics} if analysis is not None else {},
    )
