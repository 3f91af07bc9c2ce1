import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.residency import EvictionPlan, Resident, evictions

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
