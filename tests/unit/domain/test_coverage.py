import pytest

from serve_app.domain.coverage import coverage, next_to_unload
from serve_app.domain.reload import VersionRef
from serve_app.domain.status import ReplicaStatus
from tests.reports import loaded, report

NEW = VersionRef(version="v2", digest="b" * 64)
HAS = loaded("v2", digest=NEW.digest)


def replicas(word: str) -> list[ReplicaStatus]:
    """Return reports, one for each letter: has the candidate, lacks room, still works, failed, could not read (u)."""
    facts = {"h": {}, "l": {"no_room": {NEW.digest: "no room"}}, "w": {}, "f": {"failed": {NEW.digest: "spoilt"}}}
    facts["u"] = {"unread": {NEW.digest: "the node does not have it"}}
    return [
        report(*([HAS] if letter == "h" else []), replica_id=f"r{i}", **facts[letter]) for i, letter in enumerate(word)
    ]


@pytest.mark.parametrize(
    ("word", "expected", "is_complete"),
    [("hh", 2, True), ("hh", 3, False), ("hw", 2, False), ("hl", 2, False), ("", 0, False)],
)
def test_all_replicas_have_to_be_ready(word: str, expected: int, is_complete: bool) -> None:
    assert coverage(replicas(word), NEW, expected=expected).is_complete is is_complete


@pytest.mark.parametrize(
    ("word", "expected", "is_complete"),
    [("h", 1, True), ("l", 1, False), ("hl", 2, True), ("hl", 3, False), ("hll", 3, False), ("hhl", 3, True),
     ("hhlw", 4, False), ("lhh", 0, True)],
)  # fmt: skip
def test_half_are_enough_where_replicas_unload_first(word: str, expected: int, is_complete: bool) -> None:
    assert coverage(replicas(word), NEW, expected=expected, unloads_first=True).is_complete is is_complete


def test_one_failure_is_enough_to_fail() -> None:
    for unloads_first in (False, True):
        seen = coverage(replicas("hhf"), NEW, expected=3, unloads_first=unloads_first)
        assert (seen.is_complete, seen.failure) == (False, "replica r2 of pool cpu: spoilt")


def test_a_replica_that_cannot_read_it_is_waited_for() -> None:
    seen = coverage(replicas("hu"), NEW, expected=2)
    assert (seen.is_complete, seen.failure) == (False, None)
    assert seen.waiting_for == "1 of 2 replicas have 'v2'; replica r1: the node does not have it"


@pytest.mark.parametrize(
    ("word", "turn"),
    [("l", "r0"), ("ll", "r0"), ("lw", None), ("hl", None), ("lhl", "r0"), ("hhl", None), ("hlll", "r1"), ("w", None),
     ("", None)],
)  # fmt: skip
def test_one_at_a_time_unloads_until_half_have_it(word: str, turn: str | None) -> None:
    assert next_to_unload(replicas(word), NEW) == turn
