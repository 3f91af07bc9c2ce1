"""What is new in the reports of gateways: taken once, or never."""

import pytest

from serve_app.domain.evidence import Measurement
from serve_app.domain.evidence_window import FORGET_AFTER_S, SETTLING_S, Window, moved_on, window_of
from serve_app.domain.exposure import Exposure, GatewayReport
from serve_app.domain.rollout import Command, Findings, Progress, decide, operate, start
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutRecord, is_promoted, report_of, weight_of
from serve_app.domain.rollout_state import Phase
from serve_app.domain.statistics import Moments
from serve_app.domain.version_ref import VersionRef

NOW_S = 1_000_000.0
STABLE, CANDIDATE = VersionRef(version="v1", digest="d1"), VersionRef(version="v2", digest="d2")
PLAN = RolloutPlan.model_validate(
    {
        "strategy": "canary",
        "steps": [{"weight": 10}, {"weight": 50}],
        "shadow_first": {"hold_s": 0},
        "segment_first": {"entities": ["edge-*"]},
        "analysis": None,
    }
)


def in_phase(phase: Phase) -> RolloutRecord:
    state = start(
        PLAN, rollout_id="r", family="f", candidate=CANDIDATE, stable=STABLE, actor="ann", reason="", now_s=NOW_S
    )
    state = decide(state, Findings(progress=Progress.DONE), now_s=NOW_S).state
    while state.phase is not phase:
        state = operate(state, Command.SKIP_STEP, actor="ann", now_s=NOW_S)
    return RolloutRecord(state=state, is_tried=True)


def counted(requests: int, *, compared: int = 0) -> Measurement:
    return Measurement(requests=requests, compared=compared)


def told(
    record: RolloutRecord, gateway: str = "g1", *, exposed: int = 0, entities: int = 0, **counts: int
) -> GatewayReport:
    salt = record.state.salt
    named = {name: counted(n) for name, n in counts.items() if not name.startswith("segment_")}
    segments = {name.removeprefix("segment_"): counted(n) for name, n in counts.items() if name.startswith("segment_")}
    return GatewayReport(
        gateway=gateway,
        families={"f": {salt: named, "older": {"canary": counted(999)}}, "other": {salt: {"canary": counted(999)}}},
        segments={"f": {salt: segments}},
        exposures={"f": {salt: Exposure(requests=exposed, entities=entities)}},
    )


def look(record: RolloutRecord, *reports: GatewayReport, seconds: float = 10.0) -> tuple[Window, RolloutRecord]:
    window = window_of(record, reports, effective_at_s=NOW_S, now_s=NOW_S + seconds)
    return window, record.model_copy(update={"seen": window.seen, "weight": window.weight})


def requests_in(window: Window) -> tuple[int, int]:
    return window.evidence.stable.requests, window.evidence.canary.requests


def test_only_what_is_new_is_taken() -> None:
    record = in_phase(Phase.STEP)
    window, record = look(record, told(record, stable=90, canary=10, exposed=12, entities=7))
    assert (requests_in(window), window.exposed_requests, window.exposed_entities) == ((90, 10), 12, 7)
    window, record = look(record, told(record, stable=100, canary=11, exposed=13, entities=8))
    assert (requests_in(window), window.exposed_requests, window.exposed_entities) == ((10, 1), 1, 8)
    window, _ = look(record, told(record, stable=100, canary=11, exposed=13, entities=8))
    assert (window.is_empty, window.exposed_requests) == (True, 0)


def test_gateways_add_up_and_one_that_is_silent_keeps_what_was_seen_of_it() -> None:
    record = in_phase(Phase.STEP)
    both = told(record, "g1", stable=90, entities=3), told(record, "g2", stable=50, entities=4)
    window, record = look(record, *both)
    assert (requests_in(window), window.exposed_entities) == ((140, 0), 7)
    window, record = look(record, told(record, "g1", stable=91, entities=3))
    assert (requests_in(window), window.exposed_entities) == ((1, 0), 7)
    window, _ = look(record, told(record, "g1", stable=91, entities=3), told(record, "g2", stable=55, entities=4))
    assert requests_in(window) == (5, 0)


def test_gateway_that_was_forgotten_begins_where_it_is_when_it_comes_back() -> None:
    record = in_phase(Phase.STEP)
    _, record = look(record, told(record, "g1", stable=90), told(record, "g2", stable=50, entities=4))
    _, record = look(record, told(record, "g1", stable=90), seconds=FORGET_AFTER_S + 10)
    assert (record.seen["g2"].is_forgotten, record.seen["g2"].counts) == (True, {})
    late = FORGET_AFTER_S + 20
    window, record = look(record, told(record, "g2", stable=70, entities=4), seconds=late)
    assert (requests_in(window), window.exposed_entities) == ((0, 0), 4)
    window, _ = look(record, told(record, "g2", stable=75, entities=4), seconds=late)
    assert requests_in(window) == (5, 0)


def test_long_absence_of_the_one_who_looks_forgets_no_gateway_that_answers() -> None:
    record = in_phase(Phase.STEP)
    _, record = look(record, told(record, stable=90))
    window, _ = look(record, told(record, stable=95), seconds=10 * FORGET_AFTER_S)
    assert requests_in(window) == (5, 0)


def test_counts_that_have_fallen_say_nothing() -> None:
    record = in_phase(Phase.STEP)
    _, record = look(record, told(record, stable=90, canary=10))
    window, record = look(record, told(record, stable=95, canary=9))
    assert window.is_empty
    assert requests_in(look(record, told(record, stable=96, canary=10))[0]) == (1, 1)


@pytest.mark.parametrize(
    ("phase", "canary"), [(Phase.SHADOW, 30), (Phase.SEGMENT, 20), (Phase.STEP, 10)], ids=lambda value: str(value)
)
def test_each_phase_compares_its_own(phase: Phase, canary: int) -> None:
    record = in_phase(phase)
    report = told(record, stable=90, canary=10, segment_canary=20, shadow=30)
    assert requests_in(look(record, report)[0]) == (90, canary)


def test_share_holds_for_windows_in_which_the_weight_stood() -> None:
    record = in_phase(Phase.STEP)
    window, record = look(record, seconds=SETTLING_S - 1)
    assert (window.weight, window.evidence.canary_share) == (None, None)
    window, record = look(record, seconds=SETTLING_S)
    assert (window.weight, window.evidence.canary_share) == (1_000, None)
    window, record = look(record, seconds=SETTLING_S + 1)
    assert window.evidence.canary_share == 0.1
    grown = moved_on(record, operate(record.state, Command.SKIP_STEP, actor="ann", now_s=NOW_S))
    window = window_of(grown, (), effective_at_s=NOW_S + 20, now_s=NOW_S + 30)
    assert (window.weight, window.evidence.canary_share) == (5_000, None)


def test_new_kind_of_evidence_begins_a_new_tally_that_keeps_comparisons() -> None:
    record = in_phase(Phase.SHADOW)
    tally = record.tally.model_copy(update={"canary": counted(50, compared=40), "n_windows": 3})
    record = record.model_copy(update={"tally": tally})
    after = moved_on(record, in_phase(Phase.STEP).state)
    assert (after.tally.n_windows, after.tally.canary.requests, after.tally.canary.compared) == (0, 0, 40)
    paused = operate(record.state, Command.PAUSE, actor="ann", now_s=NOW_S)
    assert moved_on(record, paused).tally == tally


def test_weight_is_that_of_the_split_and_all_of_it_after_a_promotion() -> None:
    state = in_phase(Phase.STEP).state
    assert (weight_of(state), report_of(RolloutRecord(state=state)).weight) == (1_000, 10.0)
    state = operate(state, Command.PROMOTE, actor="ann", now_s=NOW_S)
    assert (weight_of(state), is_promoted(state)) == (1_000, False)
    state = decide(state, Findings(progress=Progress.DONE), now_s=NOW_S).state
    assert (state.phase, weight_of(state), is_promoted(state)) == (Phase.SUCCEEDED, 10_000, True)


def test_groups_are_taken_once_while_chance_assigns() -> None:
    record = in_phase(Phase.STEP)

    def grouped(stable: int, canary: int) -> GatewayReport:
        sides = {"stable": counted(stable), "canary": counted(canary)}
        groups = {"edge": sides, "forced": {"canary": counted(1)}, "unasked": {"stable": counted(0)}}
        return told(record, stable=stable, canary=canary).model_copy(
            update={"groups": {"f": {record.state.salt: groups}, "other": {record.state.salt: groups}}}
        )

    window, record = look(record, grouped(90, 10))
    assert {name: (one.stable.requests, one.canary.requests) for name, one in window.groups.items()} == {
        "edge": (90, 10), "forced": (0, 1),
    }  # fmt: skip
    window, record = look(record, grouped(100, 11))
    assert {name: one.stable.requests for name, one in window.groups.items()} == {"edge": 10}
    record = in_phase(Phase.SEGMENT)
    assert look(record, grouped(90, 10))[0].groups == {}


def test_window_of_late_labels_alone_is_not_empty() -> None:
    record = in_phase(Phase.STEP)
    _, record = look(record, told(record, stable=90, canary=10))
    labelled = {"canary": Measurement(requests=10, means={"mae": Moments.of([1.0])}), "stable": counted(90)}
    report = told(record).model_copy(update={"families": {"f": {record.state.salt: labelled}}})
    assert not look(record, report)[0].is_empty
