import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.model_slot import STAGES, IllegalSlotTransitionError, Slot, SlotState

LEGAL = {
    ("queued", "fetching"), ("fetching", "verifying"), ("verifying", "loading"), ("loading", "warming_up"),
    ("warming_up", "checking"), ("checking", "ready"),
    ("queued", "failed"), ("fetching", "failed"), ("verifying", "failed"), ("loading", "failed"),
    ("warming_up", "failed"), ("checking", "failed"),
    ("ready", "serving"), ("ready", "released"), ("serving", "draining"), ("serving", "ready"),
    ("draining", "serving"), ("draining", "ready"), ("draining", "released"),
    ("released", "queued"), ("failed", "queued"),
}  # fmt: skip


def slot(state: SlotState = SlotState.QUEUED) -> Slot:
    return Slot("v1", "d1", state, since_s=10.0)


@pytest.mark.parametrize("found", SlotState)
@pytest.mark.parametrize("asked", SlotState)
def test_exactly_the_transitions_of_the_table_are_legal(found: SlotState, asked: SlotState) -> None:
    before = slot(found)
    if (found, asked) in LEGAL:
        after = before.moved(asked, now_s=12.0)
        assert (after.state, after.since_s, after.version) == (asked, 12.0, "v1")
        return
    with pytest.raises(IllegalSlotTransitionError) as caught:
        before.moved(asked, now_s=12.0)
    assert (caught.value.version, caught.value.found, caught.value.asked) == ("v1", found, asked)
    assert before == slot(found)


def test_error_names_what_was_expected_and_survives_a_process_boundary() -> None:
    with pytest.raises(IllegalSlotTransitionError) as caught:
        slot(SlotState.SERVING).moved(SlotState.RELEASED, now_s=11.0)
    message = "slot of version 'v1' is serving: expected to go on to ready, draining, found released"
    assert str(caught.value) == message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_each_stage_leaves_its_seconds_behind() -> None:
    moving = Slot.queued("v1", None, now_s=0.0)
    for now_s, stage in enumerate((*STAGES, SlotState.READY), start=1):
        moving = moving.moved(stage, now_s=float(now_s**2))
    assert dict(moving.stage_seconds) == dict(zip(STAGES, (3.0, 5.0, 7.0, 9.0, 11.0), strict=True))


def test_retry_forgets_the_reason_and_the_seconds_of_the_last_try() -> None:
    failed = slot(SlotState.LOADING).moved(SlotState.FAILED, now_s=11.0, reason="too big")
    assert (failed.reason, dict(failed.stage_seconds)) == ("too big", {SlotState.LOADING: 1.0})
    again = failed.moved(SlotState.QUEUED, now_s=20.0, digest="d2")
    assert again == replace(Slot.queued("v1", "d2", now_s=20.0))


def test_digest_that_is_found_replaces_the_one_asked_for_and_none_keeps_it() -> None:
    assert slot(SlotState.CHECKING).moved(SlotState.READY, now_s=11.0, digest="found").digest == "found"
    assert slot(SlotState.CHECKING).moved(SlotState.READY, now_s=11.0).digest == "d1"


@given(st.lists(st.sampled_from(SlotState), max_size=40))
def test_from_wherever_a_slot_goes_it_can_come_to_failed_or_released(asked: list[SlotState]) -> None:
    here = Slot.queued("v1", None, now_s=0.0)
    for to in asked:
        if (here.state, to) in LEGAL:
            here = here.moved(to, now_s=0.0)
    reached, front = {here.state}, {here.state}
    while front:
        front = {SlotState(b) for a, b in LEGAL if a in front} - reached
        reached |= front
    assert {SlotState.FAILED, SlotState.RELEASED} <= reached
