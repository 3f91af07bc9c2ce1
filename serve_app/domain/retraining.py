"""When a family is trained anew: enough new records, not too often, one training at a time, later after each failure.

A training is a job that runs elsewhere. What is known of it is one document, written before the job is started: whoever
reads it after a kill knows which job may be at work, and never starts a second one beside it.
"""

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

FIRST_DELAY_S = 60.0
"""Waiting time after a training failed; it doubles with each further failure."""
MAX_DELAY_S = 6 * 3600.0


class RetrainOutcome(StrEnum):
    """How a training ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


class RetrainAction(StrEnum):
    """What is to be done now."""

    WAIT = "wait"
    START = "start"
    LOOK = "look"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class RetrainRules:
    """Train after so many new records, with so many seconds between two starts; end a training that takes longer."""

    after_records: int
    min_interval_s: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What a store of windows has counted: records that count for a training, since it started (seconds, epoch)."""

    started_at_s: float
    records: int


class RetrainState(BaseModel):
    """What is known of a family's trainings. Times are seconds since the epoch.

    Attributes:
        records: New ones since the last training that succeeded began.
        seen_started_at_s: When the store started whose count was taken over last.
        seen_records: That count.
        job: The training that runs, or may.
        began_at_s: When the last training was started.
        records_at_begin: `records` at that time.
        ended_at_s: When the last training that ended did.
        outcome: How it ended.
        error: Why, where it failed.
        n_failed: Failures since the last success.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    records: int = 0
    seen_started_at_s: float | None = None
    seen_records: int = 0
    job: str | None = None
    began_at_s: float | None = None
    records_at_begin: int = 0
    ended_at_s: float | None = None
    outcome: RetrainOutcome | None = None
    error: str | None = None
    n_failed: int = 0


def counted(state: RetrainState, seen: Seen) -> RetrainState:
    """Add what came in since the last look. A store that started anew counts from 0, and all of that is new."""
    is_same = state.seen_started_at_s == seen.started_at_s
    new = seen.records - state.seen_records if is_same else seen.records
    if is_same and new == 0:
        return state
    return state.model_copy(
        update={
            "records": state.records + max(new, 0),
            "seen_started_at_s": seen.started_at_s,
            "seen_records": seen.records,
        }
    )


def decide(state: RetrainState, seen: Seen | None, rules: RetrainRules, *, now_s: float) -> RetrainAction:
    """Say what is to be done; `seen` is None while the store is away, and nothing new is known then."""
    if state.job is not None:
        is_late = state.began_at_s is not None and now_s - state.began_at_s > rules.timeout_s
        return RetrainAction.STOP if is_late else RetrainAction.LOOK
    known = state if seen is None else counted(state, seen)
    if known.records < rules.after_records or now_s < next_start_s(state, rules):
        return RetrainAction.WAIT
    return RetrainAction.START


def next_start_s(state: RetrainState, rules: RetrainRules) -> float:
    """Return the time before which no training starts; 0 where none ever did."""
    earliest_s = 0.0 if state.began_at_s is None else state.began_at_s + rules.min_interval_s
    if state.n_failed and state.ended_at_s is not None:
        delay_s = min(FIRST_DELAY_S * 2.0 ** min(state.n_failed - 1, 30), MAX_DELAY_S)
        earliest_s = max(earliest_s, state.ended_at_s + delay_s)
    return earliest_s


def begun(state: RetrainState, job: str, *, now_s: float) -> RetrainState:
    """Note a training that is about to be started."""
    return state.model_copy(update={"job": job, "began_at_s": now_s, "records_at_begin": state.records})


def ended(state: RetrainState, outcome: RetrainOutcome, error: str | None, *, now_s: float) -> RetrainState:
    """Note how the training ended. One that failed used no record up: they count for the next."""
    is_good = outcome is RetrainOutcome.SUCCEEDED
    return state.model_copy(
        update={
            "job": None,
            "ended_at_s": now_s,
            "outcome": outcome,
            "error": error,
            "n_failed": 0 if is_good else state.n_failed + 1,
            "records": state.records - state.records_at_begin if is_good else state.records,
            "records_at_begin": 0,
        }
    )


class RetrainStatus(BaseModel):
    """What is told of a family's trainings. It crosses processes; times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    records: int
    after_records: int
    job: str | None = None
    began_at_s: float | None = None
    ended_at_s: float | None = None
    outcome: RetrainOutcome | None = None
    error: str | None = None
    next_start_s: float | None = None

    @classmethod
    def of(cls, state: RetrainState, rules: RetrainRules) -> "RetrainStatus":
        """Describe a state. `next_start_s` is None where nothing but records is waited for."""
        return cls(
            records=state.records,
            after_records=rules.after_records,
            job=state.job,
            began_at_s=state.began_at_s,
            ended_at_s=state.ended_at_s,
            outcome=state.outcome,
            error=state.error,
            next_start_s=next_start_s(state, rules) or None,
        )
