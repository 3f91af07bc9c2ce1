"""What a rollout does to the stored record of its family; each of these is one write.

Whatever the rollout does, the record is whole after every one of them: the version that is active, the phase, and the
evidence change together, so that a crash between two writes leaves something that can be gone on from.
"""

from serve_app.domain import reload
from serve_app.domain.evidence_window import moved_on
from serve_app.domain.reload import FamilyRecord
from serve_app.domain.rollout import Command, Findings, Progress, decide, operate
from serve_app.domain.rollout_record import RolloutRecord
from serve_app.domain.rollout_state import Phase, RolloutConflictError, RolloutState
from serve_app.domain.verdict import Verdict


def begun(record: FamilyRecord, rollout: RolloutRecord) -> FamilyRecord:
    """Begin a rollout. What the source calls current counts as taken up from now on, however the rollout ends.

    Raises:
        IllegalTransitionError: A change is under way.
        RolloutConflictError: The rollout starts from another version than the active one.
    """
    if record.change is not None:
        raise reload.IllegalTransitionError(record.change.phase, "start")
    _check_stable(record, rollout.state)
    followed = rollout.state.candidate.digest if rollout.follows else record.followed
    return record.model_copy(update={"rollout": rollout, "followed": followed})


def tried(record: FamilyRecord) -> FamilyRecord:
    """The candidate has passed its trial: replicas are to hold it."""
    return record.model_copy(update={"rollout": _of(record).model_copy(update={"is_tried": True})})


def advanced(record: FamilyRecord, findings: Findings, *, now_s: float) -> FamilyRecord:
    """Move on by what was found.

    Raises:
        RolloutTransitionError: The rollout is over.
    """
    rollout = _of(record)
    return _with(record, moved_on(rollout, decide(rollout.state, findings, now_s=now_s).state))


def commanded(record: FamilyRecord, command: Command, *, actor: str, reason: str, now_s: float) -> FamilyRecord:
    """Do what an operator asks for.

    Raises:
        RolloutTransitionError: The phase does not allow it.
        RolloutConflictError: It is to be tried again, but another version is active since.
    """
    rollout = _of(record)
    state = operate(rollout.state, command, actor=actor, now_s=now_s, reason=reason)
    if command is Command.RETRY:
        _check_stable(record, state)
    return _with(record, moved_on(rollout, state))


def not_loaded(record: FamilyRecord, *, reason: str, blames_bundle: bool, now_s: float) -> FamilyRecord:
    """The candidate cannot be loaded: abort. Unless the bundle is to blame, it may be taken up again by itself."""
    moved = advanced(record, Findings(progress=Progress.BROKEN, detail=reason), now_s=now_s)
    if blames_bundle:
        return reload.distrust(moved, _of(record).state.candidate, reason=reason, now_s=now_s)
    return moved.model_copy(update={"followed": None}) if _of(record).follows else moved


def promoted(record: FamilyRecord, *, now_s: float) -> FamilyRecord:
    """Make the candidate the active version, and move on, in one write.

    Raises:
        RolloutTransitionError: The rollout is over.
    """
    assert _of(record).state.phase is Phase.PROMOTING, "nothing else is promoted"
    moved = advanced(record, Findings(progress=Progress.DONE), now_s=now_s)
    return reload.made_active(moved, _of(record).state.candidate)


def restored(record: FamilyRecord, *, now_s: float) -> FamilyRecord:
    """Let the stable version be the active one, distrust a candidate that failed, and end the abort, in one write.

    A candidate that was active already is not kept for a rollback: it is what was gone back from.
    """
    state = _of(record).state
    moved = advanced(record, Findings(progress=Progress.DONE), now_s=now_s)
    if record.active == state.candidate != state.stable:
        moved = moved.model_copy(update={"active": state.stable, "last_good": None})
    if state.verdict is Verdict.FAIL:
        moved = reload.distrust(moved, state.candidate, reason=state.history[-1].reason, now_s=now_s)
    return moved


def released(record: FamilyRecord) -> FamilyRecord:
    """Replicas have been told what to hold after the end."""
    return record.model_copy(update={"rollout": _of(record).model_copy(update={"is_released": True})})


def _of(record: FamilyRecord) -> RolloutRecord:
    assert record.rollout is not None, "only a rollout is carried on"
    return record.rollout


def _with(record: FamilyRecord, rollout: RolloutRecord) -> FamilyRecord:
    return record.model_copy(update={"rollout": rollout})


def _check_stable(record: FamilyRecord, state: RolloutState) -> None:
    if record.active != state.stable:
        found = record.active.version if record.active else "no version"
        raise RolloutConflictError(
            f"expected {state.stable.version!r} to be active, found {found!r}; start a new rollout from there"
        )
