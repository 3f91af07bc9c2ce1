import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.residency import (
    EvictionPlan,
    ResidencyPolicy,
    Resident,
    RoomPlan,
    evictions,
    no_room,
    room_for,
)

OLD, MIDDLE, NEW = Resident("old", 30, 1.0), Resident("middle", 20, 2.0), Resident("new", 10, 3.0)


@pytest.mark.parametrize(
    ("pinned", "max_versions", "max_bytes", "plan"),
    [
        ((), 3, None, EvictionPlan((), 0, 0)),
        ((), 2, None, EvictionPlan(("old",), 0, 0)),
        ((), 3, 60, EvictionPlan((), 0, 0)),
        ((), 3, 59, EvictionPlan(("old",), 0, 0)),
        ((), 3, 29, EvictionPlan(("old", "middle"), 0, 0)),
        (("old",), 2, None, EvictionPlan(("middle",), 0, 0)),
        (("old",), 3, 45, EvictionPlan(("middle",), 0, 0)),
        (("old", "new", "absent"), 1, 25, EvictionPlan(("middle",), 1, 15)),
        (("old", "middle", "new"), 1, None, EvictionPlan((), 2, 0)),
    ],
)
def test_least_recently_used_leave_until_the_rest_fits(
    pinned: tuple[str, ...], max_versions: int, max_bytes: int | None, plan: EvictionPlan
) -> None:
    assert evictions([NEW, OLD, MIDDLE], pinned=pinned, max_versions=max_versions, max_bytes=max_bytes) == plan


versions = st.lists(
    st.builds(
        Resident,
        st.text("abcdefgh", min_size=1, max_size=2),
        st.integers(0, 100),
        st.floats(0, 1e9, allow_nan=False),
    ),
    unique_by=lambda resident: resident.version,
    max_size=12,
)


@given(
    versions,
    st.sets(st.text("abcdefgh", min_size=1, max_size=2), max_size=6),
    st.integers(1, 6),
    st.none() | st.integers(1, 300),
)
def test_rule_holds_for_any_residents(
    resident: list[Resident], pinned: set[str], max_versions: int, max_bytes: int | None
) -> None:
    plan = evictions(resident, pinned=pinned, max_versions=max_versions, max_bytes=max_bytes)
    gone = [entry for entry in resident if entry.version in plan.versions]
    stays = [entry for entry in resident if entry.version not in plan.versions]
    n_bytes = sum(entry.artifact_bytes for entry in stays)
    assert not pinned.intersection(plan.versions)
    assert plan.versions_over == max(0, len(stays) - max_versions)
    assert plan.bytes_over == (0 if max_bytes is None else max(0, n_bytes - max_bytes))
    free = [entry for entry in stays if entry.version not in pinned]
    assert not free or (plan.versions_over, plan.bytes_over) == (0, 0)
    assert all(entry.last_used_s <= kept.last_used_s for entry in gone for kept in free)
    if gone:  # the last one had to go, too
        last = next(entry for entry in resident if entry.version == plan.versions[-1])
        assert len(stays) + 1 > max_versions or (max_bytes is not None and n_bytes + last.artifact_bytes > max_bytes)


@given(versions, st.integers(1, 6))
def test_order_of_the_residents_does_not_matter(resident: list[Resident], max_versions: int) -> None:
    one, other = (
        evictions(some, pinned=(), max_versions=max_versions, max_bytes=50) for some in (resident, resident[::-1])
    )
    assert one == other


def sizes(resident: list[Resident]) -> int:
    return sum(entry.artifact_bytes for entry in resident)


@pytest.mark.parametrize(
    ("needed", "free", "pinned", "yielding", "plan"),
    [
        (10, 10, (), (), RoomPlan((), 0)),
        (11, 10, (), (), RoomPlan(("old",), 0)),
        (41, 10, (), (), RoomPlan(("old", "middle"), 0)),
        (11, 10, ("old",), (), RoomPlan(("middle",), 0)),
        (41, 10, ("old", "new"), (), RoomPlan((), 11)),
        (41, 10, ("old", "new"), ("new", "old"), RoomPlan(("middle", "new", "old"), 0)),
        (31, 10, ("old", "new"), ("new", "old"), RoomPlan(("middle", "new"), 0)),
        (71, 10, ("old", "middle", "new"), ("new", "old", "middle"), RoomPlan((), 1)),
        (99, 10, ("old", "middle", "new"), ("absent",), RoomPlan((), 89)),
    ],
)
def test_what_must_go_goes_and_no_more(
    needed: int, free: int, pinned: tuple[str, ...], yielding: tuple[str, ...], plan: RoomPlan
) -> None:
    assert room_for(needed, [NEW, OLD, MIDDLE], free_bytes=free, pinned=pinned, yielding=yielding) == plan


names = st.text("abcdefgh", min_size=1, max_size=2)


@given(versions, st.sets(names, max_size=6), st.lists(names, max_size=6), st.integers(0, 600), st.integers(0, 200))
def test_room_is_made_with_as_little_as_possible(
    resident: list[Resident], pinned: set[str], yielding: list[str], needed: int, free: int
) -> None:
    plan = room_for(needed, resident, free_bytes=free, pinned=pinned, yielding=yielding)
    gone = [next(entry for entry in resident if entry.version == version) for version in plan.versions]
    may_go = [entry for entry in resident if entry.version not in pinned or entry.version in yielding]
    assert pinned.intersection(plan.versions) <= set(yielding)
    assert set(gone) <= set(may_go)
    if plan.bytes_short:
        assert gone == []
        assert free + sizes(may_go) + plan.bytes_short == needed
    else:
        assert free + sizes(gone) >= needed
        assert not gone or free + sizes(gone[:-1]) < needed
    if pinned.intersection(plan.versions):
        assert {entry.version for entry in resident} - pinned <= set(plan.versions)


@given(versions, st.sets(names, max_size=6), st.integers(0, 600), st.integers(0, 200))
def test_pinned_versions_never_leave_unless_they_yield(
    resident: list[Resident], pinned: set[str], needed: int, free: int
) -> None:
    plan = room_for(needed, resident, free_bytes=free, pinned=pinned)
    assert not pinned.intersection(plan.versions)


def test_refusal_says_what_is_missing_and_what_to_do() -> None:
    known = {"needed_bytes": 3 << 29, "free_bytes": 300 << 20, "total_bytes": 2 << 30}
    keeping, unloading = (no_room("v2", staying=["v1"], policy=policy, **known) for policy in ResidencyPolicy)
    assert str(keeping) == (
        "v2 does not fit beside v1: it needs some 1536 MiB and 300 of 2048 MiB are free; give the pool more memory or "
        "a smaller model, or let it unload first with residency.policy resource_preserving, then reload with force"
    )
    assert "or let it unload" not in str(unloading)
