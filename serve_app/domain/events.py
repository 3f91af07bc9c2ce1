"""What has happened, told to people and to other programs: events, and how they follow from what is saved.

Nobody publishes events. They are the difference between two states of a family that were saved one after the other,
and are saved with the later one in the same write: so whatever crashes, none is lost and none is told that was not so.
"""

from collections.abc import Iterator
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, JsonValue

from serve_app.domain.reload import Change, FamilyRecord
from serve_app.domain.reload import Phase as ChangePhase
from serve_app.domain.rollout import ITSELF
from serve_app.domain.rollout_record import RolloutRecord, is_promoted, report_of
from serve_app.domain.rollout_state import Move, Phase


class EventKind(StrEnum):
    """What may happen; what stands before the dot says to what."""

    RELOAD_BEGUN = "reload.begun"
    RELOAD_COMMITTED = "reload.committed"
    RELOAD_FAILED = "reload.failed"
    ROLLBACK_BEGUN = "rollback.begun"
    ROLLBACK_COMMITTED = "rollback.committed"
    ROLLBACK_FAILED = "rollback.failed"
    BUNDLE_REFUSED = "bundle.refused"
    ROLLOUT_STARTED = "rollout.started"
    ROLLOUT_MOVED = "rollout.moved"
    ROLLOUT_VERDICT = "rollout.verdict"
    ROLLOUT_PAUSED = "rollout.paused"
    ROLLOUT_PROMOTED = "rollout.promoted"
    ROLLOUT_ABORTED = "rollout.aborted"
    ROLLOUT_FAILED = "rollout.failed"
    ROLLOUT_ENDED = "rollout.ended"
    SOURCE_UNREACHABLE = "source.unreachable"
    SOURCE_BACK = "source.back"
    PIN_SET = "pin.set"
    PIN_LIFTED = "pin.lifted"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Event(_Document):
    """One thing that happened to a family.

    `id` counts from 1 in the order in which events were saved, and is 0 until then. `version` is the one that it is
    about, `actor` who wanted it, `facts` what else is known, by kind.
    """

    id: int = 0
    at_s: float
    kind: EventKind
    family: str
    version: str | None = None
    actor: str = ""
    reason: str = ""
    facts: dict[str, JsonValue] = {}


class EventPage(_Document):
    """Some events, the oldest first. `oldest` and `newest` are the ids of all that are kept, 0 where there are none."""

    events: tuple[Event, ...] = ()
    oldest: int = 0
    newest: int = 0


def events_of(
    family: str, before: FamilyRecord, after: FamilyRecord, *, generation: int, now_s: float, reason: str = ""
) -> tuple[Event, ...]:
    """Return what has happened between two records of a family of which the second was saved right after the first.

    `reason` says why a change was given up where the record does not, for it was not the fault of its bundle.
    """
    return (
        *_of_change(family, before, after, generation=generation, now_s=now_s, reason=reason),
        *_of_rollout(family, before, after, generation=generation, now_s=now_s),
    )


def _of_change(
    family: str, before: FamilyRecord, after: FamilyRecord, *, generation: int, now_s: float, reason: str
) -> Iterator[Event]:
    was, now = before.change, after.change
    if was is None and now is not None:
        kind = EventKind.ROLLBACK_BEGUN if _is_rollback(after) else EventKind.RELOAD_BEGUN
        yield _change_event(family, kind, before, now, at_s=now.started_at_s, reason=now.reason)
    if was is None or was.phase is ChangePhase.RELEASE:
        return
    if now is not None and now.phase is ChangePhase.RELEASE:
        kind = EventKind.ROLLBACK_COMMITTED if _is_rollback(before) else EventKind.RELOAD_COMMITTED
        yield _change_event(family, kind, before, was, at_s=now_s, reason=was.reason, generation=generation)
    elif now is None:
        refusal = _refusal(before, after, was.to.digest)
        kind = EventKind.ROLLBACK_FAILED if _is_rollback(before) else EventKind.RELOAD_FAILED
        why = refusal or reason
        yield _change_event(family, kind, before, was, at_s=now_s, reason=why)
        if refusal is not None:
            yield _change_event(family, EventKind.BUNDLE_REFUSED, before, was, at_s=now_s, reason=refusal)


def _change_event(
    family: str, kind: EventKind, before: FamilyRecord, change: Change, *, at_s: float, reason: str, **facts: JsonValue
) -> Event:
    return Event(
        at_s=at_s,
        kind=kind,
        family=family,
        version=change.to.version,
        actor=change.actor,
        reason=reason,
        facts={
            "operation_id": change.operation_id,
            "from_version": before.active.version if before.active else None,
            "digest": change.to.digest,
            **facts,
        },
    )


def _is_rollback(record: FamilyRecord) -> bool:
    """True while the active version is one that is being gone back from: only a rollback distrusts what is active."""
    return record.active is not None and record.active.digest in record.failed


def _refusal(before: FamilyRecord, after: FamilyRecord, digest: str) -> str | None:
    """Return why a bundle was refused, if that is what happened between the two records."""
    failure = after.failed.get(digest)
    return failure.reason if failure is not None and failure != before.failed.get(digest) else None


def _of_rollout(
    family: str, before: FamilyRecord, after: FamilyRecord, *, generation: int, now_s: float
) -> Iterator[Event]:
    was, now = before.rollout, after.rollout
    if now is None or now == was:
        return
    if was is None or was.state.rollout_id != now.state.rollout_id:
        state = now.state
        yield _rollout_event(
            family, EventKind.ROLLOUT_STARTED, now, at_s=state.started_at_s, actor=state.actor, reason=state.reason
        )
        return
    if now.state.verdict is not None and now.state.verdict is not was.state.verdict:
        reason = now.analysis.reason if now.analysis is not None else ""
        yield _rollout_event(family, EventKind.ROLLOUT_VERDICT, now, at_s=now_s, actor=ITSELF, reason=reason)
    for move in _new_moves(was.state.history, now.state.history):
        facts: dict[str, JsonValue] = {"from_phase": move.found.value, "to_phase": move.to.value, "step": move.step}
        if now.state.pause_reason is not None:
            facts["pause_reason"] = now.state.pause_reason.value
        if after.active != before.active:
            facts["generation"] = generation
        told = _why_aborted(now.state.history) if move.to is Phase.ABORTED else move
        for kind in _kinds_of(move):
            yield _rollout_event(family, kind, now, at_s=move.at_s, actor=told.actor, reason=told.reason, **facts)
        refusal = _refusal(before, after, now.state.candidate.digest)
        if move.found is Phase.PENDING and refusal is not None:
            yield _rollout_event(
                family, EventKind.BUNDLE_REFUSED, now, at_s=move.at_s, actor=now.state.actor, reason=refusal
            )


def _rollout_event(
    family: str, kind: EventKind, record: RolloutRecord, *, at_s: float, actor: str, reason: str, **facts: JsonValue
) -> Event:
    state = record.state
    return Event(
        at_s=at_s,
        kind=kind,
        family=family,
        version=state.candidate.version,
        actor=actor,
        reason=reason,
        facts={
            "rollout_id": state.rollout_id,
            "from_version": state.stable.version,
            "strategy": state.plan.strategy.value,
            "phase": state.phase.value,
            "weight_percent": report_of(record).weight,
            "verdict": state.verdict.value if state.verdict is not None else None,
            "is_promoted": is_promoted(state),
            **facts,
        },
    )


def _new_moves(before: tuple[Move, ...], after: tuple[Move, ...]) -> tuple[Move, ...]:
    """Return the moves that were added; of a long history the first ones are not kept."""
    if not before:
        return after
    known = max((i for i, move in enumerate(after) if move == before[-1]), default=-1)
    return after[known + 1 :]


def _why_aborted(history: tuple[Move, ...]) -> Move:
    """Return the move that decided an abort; the one that ends it says only that it is done."""
    return next((move for move in reversed(history) if move.to is Phase.ABORTING), history[-1])


def _kinds_of(move: Move) -> tuple[EventKind, ...]:
    match move.to:
        case Phase.WATCHING:
            return (EventKind.ROLLOUT_PROMOTED,)
        case Phase.SUCCEEDED if move.found is Phase.PROMOTING:
            return (EventKind.ROLLOUT_PROMOTED, EventKind.ROLLOUT_ENDED)
        case Phase.SUCCEEDED:
            return (EventKind.ROLLOUT_ENDED,)
        case Phase.PAUSED:
            return (EventKind.ROLLOUT_PAUSED,)
        case Phase.ABORTED:
            return (EventKind.ROLLOUT_ABORTED,)
        case Phase.FAILED:
            return (EventKind.ROLLOUT_FAILED,)
        case _:
            return (EventKind.ROLLOUT_MOVED,)
