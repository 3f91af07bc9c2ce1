"""Splits through the router."""

import asyncio
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.domain.errors import UnknownVersionError
from serve_app.domain.evidence import Measurement
from serve_app.domain.reload import Route, RoutingTable
from serve_app.domain.traffic import N_BUCKETS, Group, RequestFacts, Segment, Shadow, Split
from serve_app.usecases.coalesce_requests import BatchLimits
from serve_app.usecases.route_request import RequestRouter, Target
from serve_app.usecases.split_requests import MAX_CHOSEN
from tests.fakes.predict_client import FakePredictClient, row_sums
from tests.reports import report
from tests.splits import canary_split

FAMILY = "forecaster"
N_KEYS = 20_000


class Shared:
    """A router over two pools; v1 and v2 are loaded on `cpu`, v2 on `gpu` as well; v1 answers by default."""

    def __init__(self, split: Split | None = None) -> None:
        models = {"v1": row_sums, "v2": row_sums}
        self.now_s = 100.0
        self.router = RequestRouter(
            (FAMILY, "iris"), default_family=FAMILY,
            clients={(FAMILY, pool): FakePredictClient(models) for pool in ("cpu", "gpu")},
            limits=BatchLimits(10, 1 << 16, 10, 30.0), draw=random.Random(7).random,
            now_s=lambda: self.now_s,
        )  # fmt: skip
        self.observe("v1", "v2")
        self.observe("v2", pool="gpu")
        self.generation = 0
        self.follow(split)

    def observe(self, *versions: str, pool: str = "cpu") -> None:
        self.router.observe(FAMILY, pool, [report(*versions, replica_id=pool, pool=pool)])

    def follow(self, split: Split | None, *, version: str = "v1", last_good: str | None = None) -> None:
        self.generation += 1
        route = Route(version=version, digest="0" * 64, last_good=last_good)
        splits = {FAMILY: split} if split is not None else {}
        self.router.follow(RoutingTable(generation=self.generation, routes={FAMILY: route}, splits=splits))

    def to(self, key: str | None = None, **facts: str) -> Target:
        return self.router.assign(FAMILY, RequestFacts(key=key, **facts))[0]

    def measured(self, variant: str, *, salt: str = "salt-1") -> Measurement:
        return self.router.evidence("g1").families[FAMILY][salt][variant]


def within_binomial_bounds(n: int, of: int, share: float) -> bool:
    """Say whether n is within five standard deviations: a right split fails once in 1.7 million times."""
    return abs(n - of * share) <= 5 * math.sqrt(of * share * (1 - share))


@pytest.mark.parametrize("weight", [100, 500, 5000])
async def test_weights_are_respected_within_binomial_bounds(weight: int) -> None:
    shared = Shared(canary_split(weight))
    chosen = Counter(shared.to(f"user-{i}").variant for i in range(N_KEYS))
    assert within_binomial_bounds(chosen["canary"], N_KEYS, weight / N_BUCKETS)
    drawn = Counter(shared.to().variant for _ in range(N_KEYS))
    assert within_binomial_bounds(drawn["canary"], N_KEYS, weight / N_BUCKETS)


@settings(deadline=None, max_examples=30)
@given(weights=st.lists(st.integers(0, N_BUCKETS), min_size=1, max_size=4).map(sorted), keys=st.sets(st.text()))
def test_key_never_flips_while_weights_stand_and_never_leaves_a_canary_that_grows(
    weights: list[int], keys: set[str]
) -> None:
    async def run() -> None:
        shared = Shared()
        with_canary: set[str] = set()
        for weight in weights:
            shared.follow(canary_split(weight))
            found = {key for key in keys if shared.to(key).variant == "canary"}
            shared.follow(canary_split(weight))
            assert found == {key for key in keys if shared.to(key).variant == "canary"}
            assert with_canary <= found
            with_canary = found

    asyncio.run(run())


async def test_split_ends_with_the_table_that_does_not_name_it() -> None:
    shared = Shared(canary_split(N_BUCKETS))
    assert shared.to("ann").variant == "canary"
    shared.follow(None)
    assert [shared.to(key).version for key in ("ann", None)] == ["v1", "v1"]
    assert shared.to("ann") is shared.router.target(FAMILY)


async def test_canary_of_an_aborting_split_gets_nothing_from_the_next_request_on() -> None:
    shared = Shared(canary_split(9999))
    shared.follow(canary_split(0))
    assert {shared.to(f"user-{i}").version for i in range(1000)} == {"v1"}


async def test_split_that_ends_at_a_moment_ends_for_the_first_request_after_it() -> None:
    shared = Shared(canary_split(N_BUCKETS))
    route = Route(version="v1", digest="0" * 64)
    later = RoutingTable(generation=9, effective_at_s=shared.now_s + 0.06, routes={FAMILY: route})
    assert shared.router.follow(later) == []
    assert shared.to("ann").variant == "canary"
    shared.now_s += 0.07
    assert (shared.to("ann").variant, shared.to("ann").reason) == ("stable", "default")


async def test_reasons_are_told_in_their_order() -> None:
    shared = Shared(canary_split(0, segments=(Segment(variant="canary", entities=("edge-*",)),)))
    cookie = "1.salt-1"
    found = [
        shared.to("edge-1", cookie=cookie, forced_version="v1"), shared.to("edge-1", cookie=cookie),
        shared.to("ann", cookie=cookie), shared.to("ann"), shared.to(),
    ]  # fmt: skip
    assert [(target.reason, target.variant) for target in found] == [
        ("forced", "stable"), ("segment", "canary"), ("cookie", "stable"), ("hash", "stable"), ("weight", "stable"),
    ]  # fmt: skip


async def test_targets_stay_the_same_until_something_changes() -> None:
    shared = Shared(canary_split(5000))
    before = shared.to("ann")
    assert shared.to("ann") is before
    shared.observe("v1", "v2")
    assert shared.to("ann") is before
    shared.follow(canary_split(5000))
    after = shared.to("ann")
    assert (after.version, after.generation) == (before.version, before.generation + 1)


async def test_variants_of_one_version_on_two_pools_have_batches_of_their_own() -> None:
    shared = Shared(canary_split(N_BUCKETS, versions=("v2", "v2"), pool="gpu"))
    stable, canary = shared.to(cookie="1.other", forced_version="v2"), shared.to("ann")
    assert (stable.variant, stable.pool) == ("stable", "cpu")
    assert (canary.variant, canary.pool) == ("canary", "gpu")
    assert stable.coalescer is not canary.coalescer


async def test_version_of_a_pool_that_lets_it_go_is_answered_by_the_other_pool() -> None:
    shared = Shared()
    shared.follow(None, version="v2")
    assert shared.router.target(FAMILY).pool == "cpu"
    shared.observe("v1")
    assert [shared.router.target(FAMILY, forced).pool for forced in (None, "v2")] == ["gpu", "gpu"]
    shared.observe("v1", pool="gpu")
    with pytest.raises(UnknownVersionError):
        shared.router.target(FAMILY, "v2")


async def test_variant_that_is_not_loaded_falls_back_and_counts_nothing() -> None:
    shared = Shared(canary_split(N_BUCKETS, versions=("v1", "v9")))
    target = shared.to("ann")
    assert (target.version, target.variant, target.reason, target.tally) == ("v1", "stable", "fallback", None)
    assert shared.router.evidence("g1").families == {}
    assert shared.router.awaited(shared.router.table) == [FAMILY]
    shared.observe("v1", "v9")
    assert (shared.to("ann").version, shared.to("ann").reason) == ("v9", "hash")
    assert shared.router.awaited(shared.router.table) == []


async def test_split_of_which_nothing_is_loaded_is_answered_by_the_route() -> None:
    target = Shared(canary_split(N_BUCKETS, versions=("v8", "v9"))).to("ann")
    assert (target.version, target.reason) == ("v1", "fallback")


async def test_forced_version_that_is_not_loaded_is_told() -> None:
    shared = Shared(canary_split(5000))
    with pytest.raises(UnknownVersionError) as caught:
        shared.to("ann", forced_version="v9")
    assert caught.value.known == ("v1", "v2")


async def test_forced_version_that_is_no_variant_is_a_variant_of_its_own() -> None:
    shared = Shared(canary_split(5000))
    shared.observe("v1", "v2", "v3")
    target = shared.to("ann", forced_version="v3")
    assert (target.version, target.variant, target.tally) == ("v3", "forced", None)
    assert shared.to("ann", forced_version="v3") is target


async def test_canary_that_is_let_go_of_amid_a_request_is_replaced_by_the_default() -> None:
    shared = Shared(canary_split(N_BUCKETS))
    other = shared.router.fallback(shared.to("ann"))
    assert other is not None
    assert (other.version, other.reason, other.tally) == ("v1", "fallback", None)


async def test_keys_are_assigned_once_and_requests_without_a_key_every_time() -> None:
    shared = Shared(canary_split(N_BUCKETS))
    for key in ("ann", "ann", "bob", None, None):
        shared.to(key)
    shared.to(cookie="1.salt-1")
    assert shared.measured("canary").assigned == 4
    assert shared.router.evidence("g1").exposed_entities == {FAMILY: {"salt-1": 2}}


async def test_more_keys_than_are_remembered_are_counted_all_the_same() -> None:
    shared = Shared(canary_split(N_BUCKETS))
    n = MAX_CHOSEN + 100
    for _ in range(2):
        assert all(shared.to(f"user-{i}").variant == "canary" for i in range(n))
    assert shared.measured("canary").assigned == pytest.approx(n, rel=0.01)


async def test_same_key_is_counted_once_even_where_a_weight_has_moved_it() -> None:
    shared = Shared(canary_split(0))
    shared.to("ann")
    shared.follow(canary_split(N_BUCKETS))
    shared.to("ann")
    assert [shared.measured(variant).assigned for variant in ("stable", "canary")] == [1, 0]
    assert shared.router.evidence("g1").exposures[FAMILY]["salt-1"].entities == 1


@pytest.mark.parametrize("sample", [0, 3000, N_BUCKETS])
async def test_short_way_of_keys_and_of_chance_places_and_counts_as_the_long_one(sample: int) -> None:
    split = canary_split(3000).model_copy(update={"shadow": Shadow(version="v2", sample=sample)})
    by_hand, short = Shared(split), Shared(split)
    route = short.router.splits[FAMILY]
    for key in [f"user-{i % 300}" for i in range(900)]:
        target = by_hand.to(key)
        is_copied = by_hand.router.splits[FAMILY].is_copied(target, key)
        placed = route.by_key(key)
        if placed is None:  # its owner is met for the first time
            short.to(key)
            continue
        assert (placed.target.variant, placed.target.reason) == (target.variant, "hash")
        assert (placed.copies_to is route) is is_copied
    evidence = [shared.router.evidence("g1") for shared in (by_hand, short)]
    assert evidence[0] == evidence[1]
    n_copied = drawn = 0
    for _ in range(N_KEYS):
        placed = route.draw()
        if placed is None:
            short.to()
        elif placed.target.variant == "stable":
            drawn += 1
            n_copied += placed.copies_to is not None
    assert within_binomial_bounds(drawn, N_KEYS, 0.7)
    assert within_binomial_bounds(n_copied, drawn, sample / N_BUCKETS)
    told = [short.measured(variant).assigned for variant in ("stable", "canary")]
    assert sum(told) == N_KEYS + sum(by_hand.measured(variant).assigned for variant in ("stable", "canary"))


async def test_groups_leave_no_short_way() -> None:
    split = canary_split(3000).model_copy(update={"groups": (Group(name="vip", entities=("ann",)),)})
    shared = Shared(split)
    shared.to("ann")
    assert shared.router.splits[FAMILY].by_key("ann") is None


async def test_who_only_asks_is_not_counted() -> None:
    shared = Shared(canary_split(N_BUCKETS))
    target, assignment = shared.router.assign(FAMILY, RequestFacts(key="ann"), counts=False)
    assert (target.variant, assignment and assignment.reason) == ("canary", "hash")
    assert shared.measured("canary").assigned == 0


async def test_segments_and_forced_versions_are_exposed_but_not_compared() -> None:
    shared = Shared(canary_split(0, segments=(Segment(variant="canary", entities=("node-7",)),)))
    for target in (shared.to("ann", entity="node-7"), shared.to("ann", forced_version="v2")):
        assert target.tally is not None
        target.tally.count(200, 0.01)
    told = shared.router.evidence("g1")
    assert told.families == {}
    assert told.segments[FAMILY]["salt-1"]["canary"].requests == 1
    assert told.exposures[FAMILY]["salt-1"].requests == 2


async def test_family_without_a_split_has_no_evidence_and_its_usual_target() -> None:
    shared = Shared()
    target, assignment = shared.router.assign(FAMILY, RequestFacts(key="ann"))
    assert target is shared.router.target(FAMILY) is shared.router.current(FAMILY)
    assert (assignment, target.tally, shared.router.splits) == (None, None, {})
    assert shared.router.evidence("g1").model_dump(exclude={"gateway"}) == {
        "families": {}, "segments": {}, "groups": {}, "exposures": {}, "shadows": {},
    }  # fmt: skip


async def test_split_of_a_family_that_is_not_configured_is_left_out() -> None:
    shared = Shared()
    route = Route(version="v1", digest="0" * 64)
    splits = {"other": canary_split(5000)}
    shared.router.follow(RoutingTable(generation=5, routes={FAMILY: route}, splits=splits))
    assert shared.router.splits == {}
    assert shared.router.awaited(shared.router.table) == []


async def test_shadow_is_found_where_it_is_loaded() -> None:
    shared = Shared(canary_split(0, shadow=Shadow(version="v2", pool="gpu")))
    route = shared.router.splits[FAMILY]
    assert route.shadow is not None
    assert (route.shadow.version, route.shadow.pool, route.shadow.variant) == ("v2", "gpu", "shadow")
    assert route.shadow is route.shadow
    shared.observe("v1", pool="gpu")
    assert route.shadow is None


async def test_groups_are_counted_apart_and_sum_up_to_what_is_compared() -> None:
    groups = (Group(name="edge", entities=("edge-*",)),)
    shared = Shared(canary_split(5_000, groups=groups))
    for i in range(400):
        target = shared.to(f"{'edge' if i % 4 == 0 else 'core'}-{i}")
        assert target.tally is not None
        target.tally.count(500 if i % 40 == 0 else 200, 0.01)
    told = shared.router.evidence("g1")
    found = told.groups[FAMILY]["salt-1"]
    assert set(found) == {"edge", "others"}
    assert sum(side.requests for side in found["edge"].values()) == 100
    assert sum(side.errors for side in found["edge"].values()) == 10
    for variant in ("stable", "canary"):
        parts = found["edge"][variant].merged(found["others"][variant])
        assert parts == shared.measured(variant).model_copy(update={"latency": parts.latency})
        assert (parts.assigned, parts.latency.total) == (parts.requests, 0)


async def test_without_groups_the_kind_of_chance_is_counted_apart_and_so_is_what_nobody_drew() -> None:
    shared = Shared(canary_split(5_000, segments=(Segment(variant="canary", entities=("edge-*",)),)))
    for target in (shared.to("user-1"), shared.to(), shared.to("edge-1"), shared.to(forced_version="v2")):
        assert target.tally is not None
        target.tally.count(200, 0.01)
    found = shared.router.evidence("g1").groups[FAMILY]["salt-1"]
    assert {group: sum(side.requests for side in sides.values()) for group, sides in found.items()} == {
        "hash": 1, "weight": 1, "segment": 1, "forced": 1,
    }  # fmt: skip
    assert sum(side.requests for side in shared.router.evidence("g1").families[FAMILY]["salt-1"].values()) == 2


@settings(deadline=None, max_examples=20)
@given(keys=st.lists(st.text(max_size=8), max_size=60))
def test_number_of_groups_that_are_counted_is_bounded_whatever_is_asked(keys: list[str]) -> None:
    async def run() -> None:
        shared = Shared(canary_split(5_000, groups=(Group(name="edge", entities=("a*",)),)))
        for key in keys:
            target = shared.to(key, entity=key)
            assert target.tally is not None
            target.tally.count(200, 0.01)
        told = shared.router.evidence("g1").groups
        assert not keys or set(told[FAMILY]["salt-1"]) <= {"edge", "others"}

    asyncio.run(run())
