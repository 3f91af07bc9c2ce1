import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.domain.traffic import (
    FORCED,
    N_BUCKETS,
    Assignment,
    CompiledSplit,
    Group,
    Reason,
    RequestFacts,
    Run,
    Segment,
    Shadow,
    Split,
    Variant,
    assign,
    buckets_of,
    compile_split,
    fallbacks,
    group_of,
    reweighted,
    salt_of,
    shadow_sampled,
    sticky_cookie,
)
from serve_app.domain.validation import problems_of

SALT = salt_of("forecaster", "op-1")
N_KEYS = 100_000


def split(*weights: int, salt: str = SALT, **facts: object) -> Split:
    """Variants `v0`, `v1`, … of versions `1`, `2`, …; the first gets what the given weights leave."""
    all_weights = (N_BUCKETS - sum(weights), *weights)
    variants = tuple(Variant(name=f"v{i}", version=f"{i + 1}", weight=w) for i, w in enumerate(all_weights))
    return Split.model_validate({"variants": variants, "salt": salt, **facts})


def owners(of: Split) -> list[str]:
    """Return the variant that owns each bucket."""
    return [of.variants[index].name for index in compile_split(of).table]


def by_key(compiled: CompiledSplit, key: str) -> Assignment:
    return assign(compiled, RequestFacts(key=key), draw=0)


def keys(n: int = N_KEYS, seed: int = 7) -> list[str]:
    chance = random.Random(seed)
    return [f"user-{chance.getrandbits(64):x}" for _ in range(n)]


# Percent


@pytest.mark.parametrize(
    ("percent", "buckets"), [(0, 0), (0.01, 1), (0.07, 7), (1, 100), (33.33, 3333), (99.99, 9999), (100, 10_000)]
)
def test_percent_is_a_number_of_buckets(percent: float, buckets: int) -> None:
    assert buckets_of(percent) == buckets


@settings(deadline=None)
@given(st.integers(0, N_BUCKETS))
def test_every_step_of_a_hundredth_percent_is_one_bucket(buckets: int) -> None:
    assert buckets_of(buckets / 100) == buckets


@pytest.mark.parametrize("percent", [-0.01, 0.005, 12.345, 100.01, math.nan, math.inf])
def test_percent_between_two_steps_or_beyond_the_whole_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match=f"^expected a percentage from 0 to 100 in steps of 0.01, found {percent}$"):
        buckets_of(percent)


# What a split may be

STABLE = {"name": "stable", "version": "1", "weight": 9_000}
CANARY = {"name": "canary", "version": "2", "weight": 1_000}


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"variants": [STABLE]}, "variants: expected weights that sum to 10000, found 9000"),
        ({"variants": [STABLE, {**CANARY, "name": "stable"}]},
         "variants: expected names that differ, found stable, stable"),
        ({"variants": [STABLE, {**CANARY, "name": FORCED}]},
         "variants: expected none with the reserved name 'forced'"),
        ({"segments": [{"variant": "canry", "entities": ["a"]}]},
         "segments: expected variants among stable, canary, found canry"),
        ({"segments": [{"variant": "canary", "entities": ["a", "b*"]}, {"variant": "stable", "entities": ["b*"]}]},
         "segments: expected every entity once, found b* again"),
        ({"layout": [{"variant": "canary", "buckets": 999}, {"variant": "stable", "buckets": 9_001}]},
         "layout: expected as many buckets as the weights say (stable 9000, canary 1000), "
         "found canary 999, stable 9001"),
    ],
)  # fmt: skip
def test_split_that_cannot_be_is_refused_in_one_sentence(facts: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Split.model_validate({"variants": [STABLE, CANARY], "salt": SALT, **facts})
    assert problems_of(caught.value, Split) == (problem,)


def test_all_problems_of_a_split_are_told_at_once() -> None:
    segment = {"variant": "c", "entities": ["a"]}
    with pytest.raises(ValidationError, match=r"sum to 10000, found 9000; segments: expected variants among stable"):
        Split.model_validate({"variants": [STABLE], "salt": SALT, "segments": [segment]})


def test_split_survives_the_way_to_another_process() -> None:
    grown = reweighted(split(100, 200, 300, shadow=Shadow(version="9", sample=5)), {"v3": 350})
    assert grown.layout
    assert Split.model_validate_json(grown.model_dump_json()) == grown


# Precedence

EVERYTHING = {"key": "user-1", "entity": "edge-1", "cookie": f"9999.{SALT}", "forced_version": "2"}


@pytest.mark.parametrize(
    ("left_out", "reason", "variant"),
    [
        ([], Reason.FORCED, "v1"),
        (["forced_version"], Reason.SEGMENT, "v1"),
        (["forced_version", "entity"], Reason.COOKIE, "v0"),
        (["forced_version", "entity", "cookie"], Reason.HASH, "v1"),
        (["forced_version", "entity", "cookie", "key"], Reason.WEIGHT, "v0"),
    ],
)
def test_what_is_said_first_in_the_order_of_precedence_decides(
    left_out: list[str], reason: Reason, variant: str
) -> None:
    compiled = compile_split(split(9_900, segments=(Segment(variant="v1", entities=("edge-1",)),)))
    facts = RequestFacts(**{name: said for name, said in EVERYTHING.items() if name not in left_out})
    chosen = assign(compiled, facts, draw=0.9999)
    assert (chosen.reason, chosen.variant.name) == (reason, variant)


def test_forced_version_that_is_no_variant_gets_a_variant_of_its_own() -> None:
    chosen = assign(compile_split(split(100)), RequestFacts(forced_version="7"), draw=0)
    assert (chosen.variant.name, chosen.variant.version, chosen.bucket) == (FORCED, "7", None)


@pytest.mark.parametrize(
    ("entity", "variant"),
    [("edge-1", "v0"), ("edge-22", "v2"), ("edge-3", "v1"), ("edge-", "v1"), ("exact", "v2"), ("exactly", None)],
)
def test_name_goes_before_patterns_and_a_longer_pattern_before_a_shorter(entity: str, variant: str | None) -> None:
    segments = (
        Segment(variant="v1", entities=("edge-*",)),
        Segment(variant="v2", entities=("edge-2*", "exact")),
        Segment(variant="v0", entities=("edge-1",)),
    )
    chosen = assign(compile_split(split(0, 0, segments=segments)), RequestFacts(entity=entity), draw=0)
    expected = (Reason.WEIGHT, "v0") if variant is None else (Reason.SEGMENT, variant)
    assert (chosen.reason, chosen.variant.name) == expected


def test_segments_go_by_the_key_where_there_is_no_entity() -> None:
    compiled = compile_split(split(0, segments=(Segment(variant="v1", entities=("user-1",)),)))
    assert assign(compiled, RequestFacts(key="user-1"), draw=0).reason is Reason.SEGMENT
    assert assign(compiled, RequestFacts(key="user-1", entity="host"), draw=0).reason is Reason.HASH


@pytest.mark.parametrize("draw", [0.0, 0.25, 0.4999999, 0.5, 0.999999999999, math.nextafter(1.0, 0.0)])
def test_draw_decides_by_weight_where_nothing_else_does(draw: float) -> None:
    chosen = assign(compile_split(split(5_000)), RequestFacts(), draw=draw)
    assert (chosen.reason, chosen.variant.name) == (Reason.WEIGHT, "v1" if draw < 0.5 else "v0")


def test_only_chance_makes_requests_comparable() -> None:
    assert [reason for reason in Reason if reason.is_random] == [Reason.COOKIE, Reason.HASH, Reason.WEIGHT]


# The sticky cookie


@settings(deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, N_BUCKETS))
def test_cookie_keeps_a_client_that_has_no_key_where_chance_put_it(draw: float, weight: int) -> None:
    compiled = compile_split(split(weight))
    first = assign(compiled, RequestFacts(), draw=draw)
    again = assign(compiled, RequestFacts(cookie=sticky_cookie(compiled, first)), draw=1 - draw if draw else 0)
    assert (again.variant, again.bucket, again.reason) == (first.variant, first.bucket, Reason.COOKIE)


def test_cookie_keeps_a_client_whose_key_changes() -> None:
    compiled = compile_split(split(5_000))
    cookie = sticky_cookie(compiled, before := by_key(compiled, "anonymous"))
    assert all(assign(compiled, RequestFacts(key, cookie=cookie), draw=0).variant == before.variant for key in "abcdef")


@pytest.mark.parametrize(
    "cookie",
    ["", ".", SALT, f".{SALT}", f"12345.{SALT}", f"-1.{SALT}", f"1e3.{SALT}", f"²1.{SALT}", f"+1.{SALT}", f"1.{SALT}x",
     f"5.{salt_of('forecaster', 'op-2')}", f"5.{salt_of('tft', 'op-1')}", f" 5.{SALT}", "5"],
)  # fmt: skip
def test_cookie_of_another_experiment_or_none_of_ours_is_ignored(cookie: str) -> None:
    assert assign(compile_split(split(5_000)), RequestFacts("user", cookie=cookie), draw=0).reason is Reason.HASH


@pytest.mark.parametrize("facts", [RequestFacts(forced_version="2"), RequestFacts(entity="edge-1")])
def test_no_cookie_is_given_to_whom_chance_did_not_assign(facts: RequestFacts) -> None:
    compiled = compile_split(split(100, segments=(Segment(variant="v1", entities=("edge-1",)),)))
    assert sticky_cookie(compiled, assign(compiled, facts, draw=0)) is None


# Weights and buckets

WEIGHTS = st.lists(st.integers(0, 3_000), min_size=1, max_size=3)
MANY_WEIGHTS = st.lists(st.integers(0, 1_500), min_size=3, max_size=6)


@settings(deadline=None)
@given(WEIGHTS | MANY_WEIGHTS)
def test_every_variant_owns_as_many_buckets_as_its_weight_says(weights: list[int]) -> None:
    of = split(*weights)
    owned = Counter(owners(of))
    assert [owned[variant.name] for variant in of.variants] == [variant.weight for variant in of.variants]


@pytest.mark.parametrize("of", [split(2_500), reweighted(split(100, 200, 300), {"v3": 350})])
def test_owner_of_a_bucket_gets_its_keys_and_its_cookies(of: Split) -> None:
    compiled, owned = compile_split(of), owners(of)
    for chosen in (by_key(compiled, key) for key in keys(500)):
        assert chosen.variant.name == owned[chosen.bucket or 0]
    for bucket in range(0, N_BUCKETS, 99):
        assert assign(compiled, RequestFacts(cookie=f"{bucket}.{SALT}"), draw=0).variant.name == owned[bucket]


@settings(deadline=None)
@given(st.text(), st.integers(0, N_BUCKETS))
def test_same_key_always_gets_the_same_variant(key: str, weight: int) -> None:
    first, second = compile_split(split(weight)), compile_split(split(weight))
    assert by_key(first, key) == by_key(second, key)


def test_assignment_is_the_same_in_every_process_and_release() -> None:
    compiled = compile_split(split(5_000, salt="fixed"))
    assert [by_key(compiled, key).bucket for key in ("", "user-1", "Zoë", "\ud800")] == [1624, 9730, 8909, 831]


@settings(deadline=None)
@given(st.lists(st.integers(0, N_BUCKETS), min_size=2, max_size=5).map(sorted))
def test_canary_that_grows_only_takes_keys_and_only_from_stable(weights: list[int]) -> None:
    some = keys(100)
    before = {key: by_key(compile_split(split(0)), key).variant.name for key in some}
    for weight in weights:
        compiled = compile_split(split(weight))
        now = {key: by_key(compiled, key).variant.name for key in some}
        assert all(now[key] == "v1" for key in some if before[key] == "v1")
        before = now


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_no_key_moves_but_between_the_default_and_the_variants_that_change(data: st.DataObject) -> None:
    weights = data.draw(WEIGHTS | MANY_WEIGHTS)
    of = split(*weights)
    before = owners(of)
    for _ in range(4):
        changed = data.draw(st.sampled_from(list(of.variants[1:])))
        room = of.default.weight + changed.weight
        weight = data.draw(st.integers(0, room))
        of = reweighted(of, {changed.name: weight})
        now = owners(of)
        gone, come = ("v0", changed.name) if weight > changed.weight else (changed.name, "v0")
        assert {(was, is_) for was, is_ in zip(before, now, strict=True) if was != is_} <= {(gone, come)}
        assert Counter(now) == Counter({v.name: v.weight for v in of.variants if v.weight})
        before = now


@settings(deadline=None, max_examples=50)
@given(MANY_WEIGHTS, st.data())
def test_several_variants_grow_at_once_without_taking_from_each_other(weights: list[int], data: st.DataObject) -> None:
    of = split(*weights)
    room = of.default.weight // len(weights)
    grown = reweighted(of, {v.name: v.weight + data.draw(st.integers(0, room)) for v in of.variants[1:]})
    moves = {(was, is_) for was, is_ in zip(owners(of), owners(grown), strict=True) if was != is_}
    assert all(was == "v0" for was, _ in moves)


def test_what_one_variant_gives_back_another_may_take_in_the_same_step() -> None:
    moved = reweighted(split(6_000, 4_000), {"v1": 0, "v2": 10_000})
    assert set(owners(moved)) == {"v2"}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 5_000)), min_size=1, max_size=4))
def test_up_to_three_variants_need_no_memory_of_how_they_grew(steps: list[tuple[int, int]]) -> None:
    of = split(0, 0)
    for first, second in steps:
        of = reweighted(of, {"v1": first, "v2": second})
        assert of == split(first, second)


@settings(deadline=None)
@given(st.integers(0, N_BUCKETS))
def test_after_an_abort_the_canary_gets_nothing_and_no_cookie_brings_it_back(weight: int) -> None:
    aborted = reweighted(split(weight), {"v1": 0})
    assert set(owners(aborted)) == {"v0"}
    compiled = compile_split(aborted)
    assert {by_key(compiled, key).variant.name for key in keys(100)} == {"v0"}


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"v9": 1}, "expected weights of v1, v2, found v9"),
        ({"v0": 1}, "expected weights of v1, v2, found v0"),
        ({"v1": -1}, "expected weights from 0 that sum to at most 10000, found v1 -1, v2 200"),
        ({"v1": 9_801}, "expected weights from 0 that sum to at most 10000, found v1 9801, v2 200"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: dict[str, int], problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}$"):
        reweighted(split(100, 200), weights)


# Chance


@pytest.mark.parametrize("percent", [0.01, 1, 5, 50])
def test_share_of_keys_lies_within_the_binomial_bounds_of_the_weight(percent: float) -> None:
    share = percent / 100
    compiled = compile_split(split(buckets_of(percent)))
    found = sum(by_key(compiled, key).variant.name == "v1" for key in keys())
    assert abs(found - N_KEYS * share) < 4 * math.sqrt(N_KEYS * share * (1 - share))


def chi_square(pairs: Counter[tuple[int, int]], n_rows: int, n_columns: int) -> float:
    """Return Pearson's statistic for independence, given uniform margins."""
    expected = pairs.total() / (n_rows * n_columns)
    return sum((pairs[i, j] - expected) ** 2 / expected for i in range(n_rows) for j in range(n_columns))


@pytest.mark.parametrize(
    "other", [salt_of("tft", "op-1"), salt_of("forecaster", "op-2")], ids=["other family", "other experiment"]
)
def test_experiments_with_other_salts_are_independent(other: str) -> None:
    ours, theirs = compile_split(split(1, salt=SALT)), compile_split(split(1, salt=other))
    pairs = Counter(
        ((by_key(ours, key).bucket or 0) // 1_000, (by_key(theirs, key).bucket or 0) // 1_000) for key in keys()
    )
    assert 50 < chi_square(pairs, 10, 10) < 160  # 99 degrees of freedom: outside with a chance below 1e-4


def test_shadow_sees_an_independent_sample_of_all_variants() -> None:
    compiled = compile_split(split(5_000, shadow=Shadow(version="3", sample=5_000)))
    pairs = Counter(
        (int(by_key(compiled, key).variant.name == "v1"), int(shadow_sampled(compiled, key, draw=0))) for key in keys()
    )
    assert chi_square(pairs, 2, 2) < 21.1  # 3 degrees of freedom: above with a chance of 1e-4


@pytest.mark.parametrize(
    ("sample", "draw", "sampled"), [(0, 0.0, False), (10_000, 0.9999999, True), (100, 0.01, False)]
)
def test_shadow_sample_of_requests_without_a_key_is_drawn(sample: int, draw: float, sampled: bool) -> None:
    compiled = compile_split(split(0, shadow=Shadow(version="3", sample=sample)))
    assert shadow_sampled(compiled, None, draw=draw) is sampled


def test_split_without_a_shadow_samples_nothing() -> None:
    assert not any(shadow_sampled(compile_split(split(0)), key, draw=0) for key in (None, "user-1"))


# Fallbacks


def test_version_that_is_not_loaded_is_looked_for_on_other_pools_and_then_the_default_answers() -> None:
    variants = (
        Variant(name="stable", version="1", pool="cpu", weight=9_700),
        Variant(name="canary", version="2", pool="cpu", weight=100),
        Variant(name="trial", version="3", pool="cpu", weight=100),
        Variant(name="canary-gpu", version="2", pool="gpu", weight=100),
    )
    compiled = compile_split(Split(variants=variants, salt=SALT))

    def names(index: int, reason: Reason = Reason.HASH) -> list[str]:
        return [variant.name for variant in fallbacks(compiled, Assignment(variants[index], reason))]

    assert [names(i) for i in range(4)] == [[], ["canary-gpu", "stable"], ["stable"], ["canary", "stable"]]
    assert names(1, Reason.FORCED) == ["canary-gpu"]


def test_default_falls_back_to_the_caller() -> None:
    compiled = compile_split(Split(variants=(Variant(name="stable", version="1", weight=N_BUCKETS),), salt=SALT))
    assert fallbacks(compiled, by_key(compiled, "user-1")) == ()


def test_run_knows_its_bounds() -> None:
    with pytest.raises(ValidationError):
        Run(variant="v1", buckets=0)


# Groups


def grouped_split(*groups: Group) -> CompiledSplit:
    variants = (Variant(name="stable", version="1", weight=N_BUCKETS),)
    return compile_split(Split(variants=variants, salt=SALT, groups=groups))


def test_request_is_counted_in_the_group_that_names_its_entity_best() -> None:
    compiled = grouped_split(
        Group(name="edge", entities=("edge-*", "lab-1")), Group(name="north", entities=("edge-north-*",))
    )
    found = [
        group_of(compiled, RequestFacts(key=key, entity=entity))
        for key, entity in (
            ("edge-1", None), ("edge-north-1", None), ("lab-1", None), ("edge-1", "core-1"), (None, "edge-1"),
            (None, None),
        )
    ]  # fmt: skip
    assert found == ["edge", "north", "edge", "others", "edge", "others"]


def test_groups_change_nothing_about_where_requests_go() -> None:
    plain = compile_split(split(500))
    told = compile_split(split(500).model_copy(update={"groups": (Group(name="edge", entities=("user-1*",)),)}))
    assert all(by_key(plain, f"user-{i}") == by_key(told, f"user-{i}") for i in range(200))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([("a", "x"), ("a", "y")], "every name and every entity once, found a again"),
        ([("a", "x"), ("b", "x")], "every name and every entity once, found x again"),
        ([("others", "x")], "no reserved name, found others"),
        ([("forced", "x")], "no reserved name, found forced"),
        ([(f"g{i}", f"x{i}") for i in range(9)], "at most 8"),
    ],
)
def test_groups_that_cannot_be_told_apart_are_refused(groups: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        grouped_split(*(Group(name=name, entities=(entity,)) for name, entity in groups))
