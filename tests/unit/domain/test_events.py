"""What happened follows from what was saved: every step of reloads and rollouts, and nothing where nothing moved."""

from itertools import pairwise

from serve_app.domain import reload, rollout, rollout_changes
from serve_app.domain.events import Event, EventKind, events_of
from serve_app.domain.reload import Change, FamilyRecord, Phase, VersionRef
from serve_app.domain.rollout import Command, Findings, Progress
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutRecord
from serve_app.domain.verdict import Verdict

V1, V2 = VersionRef(version="v1", digest="d1"), VersionRef(version="v2", digest="d2")
NOW_S = 1_000.0
PLAN = RolloutPlan.model_validate(
    {"strategy": "canary", "steps": [{"weight": 5, "hold_s": 10}, {"weight": 50, "hold_s": 10}]}
)


def told(before: FamilyRecord, after: FamilyRecord, reason: str = "") -> tuple[Event, ...]:
    return events_of("iris", before, after, generation=7, now_s=NOW_S, reason=reason)


def kinds(before: FamilyRecord, after: FamilyRecord) -> list[EventKind]:
    return [event.kind for event in told(before, after)]


def changing(to: VersionRef = V2, record: FamilyRecord | None = None) -> FamilyRecord:
    change = Change(
        operation_id="op", to=to, phase=Phase.TRIAL, actor="ann", reason="news", started_at_s=NOW_S, deadline_s=NOW_S
    )
    return reload.start(record or FamilyRecord(active=V1), change)


def test_a_reload_is_told_when_it_begins_and_when_it_is_committed() -> None:
    before = FamilyRecord(active=V1)
    begun = changing()
    tried = reload.tried(begun)
    committed = reload.commit(tried)
    (first,) = told(before, begun)
    assert (first.kind, first.version, first.actor, first.reason) == (EventKind.RELOAD_BEGUN, "v2", "ann", "news")
    assert first.facts["from_version"] == "v1"
    assert told(begun, tried) == ()
    (last,) = told(tried, committed)
    assert last.kind is EventKind.RELOAD_COMMITTED
    assert last.facts == {"operation_id": "op", "from_version": "v1", "digest": "d2", "generation": 7}
    assert told(committed, reload.released(committed)) == ()


def test_a_bundle_that_is_refused_fails_the_reload_and_is_told_as_such() -> None:
    begun = changing()
    given_up = reload.abort(begun, reason="it hangs", now_s=NOW_S, blame_bundle=True)
    assert [(event.kind, event.reason) for event in told(begun, given_up)] == [
        (EventKind.RELOAD_FAILED, "it hangs"),
        (EventKind.BUNDLE_REFUSED, "it hangs"),
    ]


def test_a_reload_that_fails_by_no_fault_of_its_bundle_says_why_all_the_same() -> None:
    begun = changing()
    given_up = reload.abort(begun, reason="a replica is late", now_s=NOW_S, blame_bundle=False)
    (event,) = told(begun, given_up, "a replica is late")
    assert (event.kind, event.reason) == (EventKind.RELOAD_FAILED, "a replica is late")


def test_a_rollback_is_told_as_one_from_its_beginning_to_its_end() -> None:
    before = FamilyRecord(active=V2, last_good=V1)
    begun = reload.distrust(changing(V1, before), V2, reason="rolled back by ann", now_s=NOW_S)
    assert kinds(before, begun) == [EventKind.ROLLBACK_BEGUN]
    prepared = reload.tried(begun)
    assert kinds(prepared, reload.commit(prepared)) == [EventKind.ROLLBACK_COMMITTED]
    failed = reload.abort(prepared, reason="late", now_s=NOW_S, blame_bundle=False)
    assert kinds(prepared, failed) == [EventKind.ROLLBACK_FAILED]


def rolling(plan: RolloutPlan = PLAN) -> FamilyRecord:
    state = rollout.start(
        plan, rollout_id="r1", family="iris", candidate=V2, stable=V1, actor="ann", reason="try it", now_s=NOW_S
    )
    return rollout_changes.begun(FamilyRecord(active=V1), RolloutRecord(state=state))


def advanced(record: FamilyRecord, now_s: float, **findings: object) -> FamilyRecord:
    return rollout_changes.advanced(record, Findings(**findings), now_s=now_s)  # type: ignore[arg-type]  # by name


def test_a_rollout_is_told_from_its_start_over_each_step_to_its_promotion() -> None:
    records = [FamilyRecord(active=V1), rolling()]
    records.append(advanced(records[-1], 1001, progress=Progress.DONE))
    records.append(advanced(records[-1], 1002, verdict=Verdict.INCONCLUSIVE))
    records.append(advanced(records[-1], 1020, verdict=Verdict.PASS))
    records.append(advanced(records[-1], 1040, verdict=Verdict.PASS))
    records.append(rollout_changes.promoted(records[-1], now_s=1041))
    found = [told(*pair) for pair in pairwise(records)]
    assert [[event.kind for event in each] for each in found] == [
        [EventKind.ROLLOUT_STARTED],
        [EventKind.ROLLOUT_MOVED],
        [EventKind.ROLLOUT_VERDICT],
        [EventKind.ROLLOUT_VERDICT, EventKind.ROLLOUT_MOVED],
        [EventKind.ROLLOUT_MOVED],
        [EventKind.ROLLOUT_PROMOTED, EventKind.ROLLOUT_ENDED],
    ]
    weights = [each[-1].facts["weight_percent"] for each in found]
    assert weights == [0, 5, 5, 50, 50, 100]
    assert found[-1][0].facts["generation"] == 7
    assert found[-1][0].facts["from_version"] == "v1"
    assert found[0][0].actor == "ann"


def test_an_abort_is_told_with_what_decided_it() -> None:
    step = advanced(rolling(), 1001, progress=Progress.DONE)
    aborting = rollout_changes.commanded(step, Command.ABORT, actor="bob", reason="too slow", now_s=1005)
    aborted = rollout_changes.restored(aborting, now_s=1006)
    assert kinds(step, aborting) == [EventKind.ROLLOUT_MOVED]
    (event,) = told(aborting, aborted)
    assert (event.kind, event.actor, event.reason) == (EventKind.ROLLOUT_ABORTED, "bob", "too slow")


def test_a_pause_and_a_promotion_that_breaks_are_told() -> None:
    step = advanced(rolling(), 1001, progress=Progress.DONE)
    paused = rollout_changes.commanded(step, Command.PAUSE, actor="bob", reason="lunch", now_s=1005)
    (event,) = told(step, paused)
    assert (event.kind, event.facts["pause_reason"]) == (EventKind.ROLLOUT_PAUSED, "operator")
    promoting = rollout_changes.commanded(paused, Command.PROMOTE, actor="bob", reason="", now_s=1006)
    broken = advanced(promoting, 1007, progress=Progress.BROKEN, detail="a replica is gone")
    assert kinds(promoting, broken) == [EventKind.ROLLOUT_FAILED]


def test_a_candidate_that_cannot_be_loaded_is_told_as_a_refused_bundle() -> None:
    pending = rolling()
    given_up = rollout_changes.not_loaded(pending, reason="no weights", blames_bundle=True, now_s=1001)
    assert kinds(pending, given_up) == [EventKind.ROLLOUT_MOVED, EventKind.BUNDLE_REFUSED]
    kept = rollout_changes.not_loaded(pending, reason="a replica is late", blames_bundle=False, now_s=1001)
    assert kinds(pending, kept) == [EventKind.ROLLOUT_MOVED]


def test_counts_alone_are_no_event() -> None:
    step = advanced(rolling(), 1001, progress=Progress.DONE)
    assert told(step, advanced(step, 1002, exposed_requests=5)) == ()
    assert told(step, step) == ()


def test_a_long_history_of_which_the_first_moves_are_not_kept_tells_the_new_one_alone() -> None:
    record = advanced(rolling(), 1001, progress=Progress.DONE)
    for i in range(2 * rollout.KEPT_MOVES):
        command = Command.RESUME if i % 2 else Command.PAUSE
        after = rollout_changes.commanded(record, command, actor="bob", reason="", now_s=1002 + i)
        assert len(told(record, after)) == 1
        record = after
