from serve_app.usecases.version_slots import KEPT_ENDED_SLOTS, VersionSlots


def test_reasons_of_long_ago_are_forgotten() -> None:
    slots = VersionSlots()
    for i in range(KEPT_ENDED_SLOTS + 5):
        slots.note_failure(f"{i:064}", "spoilt")
        slots.note_unread(f"{i:064}", "not there yet")
    assert list(slots.failed()) == list(slots.unread()) == [f"{i:064}" for i in range(5, KEPT_ENDED_SLOTS + 5)]


def test_a_load_that_is_asked_for_again_forgets_why_the_last_one_failed() -> None:
    slots = VersionSlots()
    slots.note_failure("a", "spoilt")
    slots.note_unread("a", "not there yet")
    slots.leave_out("v1", "a", "no room")
    slots.queue("v1", "a", now_s=0.0)
    assert (slots.failed(), slots.unread(), slots.left_out()) == ({}, {}, {})
