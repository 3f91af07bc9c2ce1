"""Which variant answers a request: splits, the assignment of keys to variants, and what a shadow gets to see.

A targeting key is hashed with the salt of the split into one of 10,000 buckets, and a table says which variant owns
each bucket. So a key keeps its variant while the table stands, and another salt (another family, another experiment)
shuffles all keys anew.

The first variant is the default: it owns every bucket that no other owns. The second takes buckets from the lower end,
all further ones from the upper end. With up to three variants the table therefore follows from the weights alone, and a
weight that grows takes buckets of the default only. With four or more, no rule that knows nothing but the weights can
promise that: what each of three owns would depend on its own weight only, and any two would have to fill the table from
opposite ends. There the table has to remember how it came about: `reweighted` makes the next table out of the present
one, and the split carries it as `layout`.

Precedence: forced version > segment > sticky cookie > hash of the targeting key > draw by weight. The cookie holds the
bucket, not the variant. Its owner stays where it is while the table stands, moves as every key in that bucket does when
a weight changes, and goes back to the default at once when an experiment is aborted.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from itertools import pairwise
from typing import Annotated, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

N_BUCKETS = 10_000
"""One bucket is 0.01 % of all keys: the smallest step of a weight."""
MAX_VARIANTS = 100
"""The table keeps one byte for each bucket; nobody compares more."""
MAX_GROUPS = 8
"""Each is counted by every gateway and compared on its own; intervals of more would be too wide to say anything."""
OTHERS = "others"
"""Name of the group of all that no group names."""
ENTITY_FIELD = "entity"
"""The one field of a body that is read as a targeting key, beside the entity that segments go by."""
FORCED = "forced"
"""Name of what answers when a client forces a version that is none of the split's variants."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Salt = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Buckets = Annotated[int, Field(ge=0, le=N_BUCKETS)]
"""A share in steps of 0.01 %: 10,000 are all."""
Value = TypeVar("Value")


def buckets_of(percent: float) -> int:
    """Return how many of the 10,000 buckets `percent` is.

    Raises:
        ValueError: It is not between 0 and 100, or no multiple of 0.01.
    """
    asked = percent * N_BUCKETS / 100
    if not (0 <= asked <= N_BUCKETS and abs(asked - round(asked)) < 1e-6):  # written so that nan is refused as well
        raise ValueError(f"expected a percentage from 0 to 100 in steps of 0.01, found {percent!r}")
    return round(asked)


def salt_of(family: str, experiment: str) -> str:
    """Return a salt that no other experiment and no other family has."""
    return blake2b(f"{family}\0{experiment}".encode(), digest_size=8).hexdigest()


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Variant(_Document):
    """A version on a pool (None: any pool that holds it), and its weight in buckets of 0.01 %."""

    name: Name
    version: Annotated[str, Field(min_length=1)]
    pool: str | None = None
    weight: Buckets = 0


class KeySource(StrEnum):
    """Where a request carries its targeting key."""

    HEADER = "header"
    COOKIE = "cookie"
    FIELD = "field"


class Targeting(_Document):
    """The header, the cookie or the field of the body whose value is the targeting key."""

    source: KeySource
    name: Annotated[str, Field(min_length=1, max_length=128)]


class Segment(_Document):
    """Named entities that go to one variant, whatever its weight. `edge-*` means all whose name begins with `edge-`."""

    variant: str
    entities: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class Group(_Document):
    """Named entities (patterns as in a segment) that are counted apart. It changes nothing about where they go."""

    name: Name
    entities: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class Shadow(_Document):
    """A version that gets copies of requests after they were answered; `sample` of 10,000 of them."""

    version: Annotated[str, Field(min_length=1)]
    pool: str | None = None
    sample: Buckets = N_BUCKETS


class Run(_Document):
    """A number of neighbouring buckets that one variant owns."""

    variant: str
    buckets: Annotated[int, Field(ge=1, le=N_BUCKETS)]


class Split(_Document):
    """How the requests of a family are shared out. The first variant is the default; weights sum to 10,000.

    `salt` is what tells this experiment from all others: it enters the hash and the sticky cookie. `layout` says who
    owns which buckets, from the lowest up, where the weights alone do not say it. `groups` are counted apart.
    """

    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=MAX_VARIANTS)]
    salt: Salt
    segments: tuple[Segment, ...] = ()
    targeting: Targeting | None = None
    shadow: Shadow | None = None
    layout: tuple[Run, ...] = ()
    groups: Annotated[tuple[Group, ...], Field(max_length=MAX_GROUPS)] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        problems = [*self._variant_problems(), *self._segment_problems(), *self._layout_problems()]
        problems += group_problems(self.groups)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _variant_problems(self) -> list[str]:
        names = [variant.name for variant in self.variants]
        total = sum(variant.weight for variant in self.variants)
        problems = []
        if len(set(names)) != len(names):
            problems.append(f"variants: expected names that differ, found {', '.join(names)}")
        if FORCED in names:
            problems.append(f"variants: expected none with the reserved name {FORCED!r}")
        if total != N_BUCKETS:
            problems.append(f"variants: expected weights that sum to {N_BUCKETS}, found {total}")
        return problems

    def _segment_problems(self) -> list[str]:
        names = [variant.name for variant in self.variants]
        unknown = sorted({segment.variant for segment in self.segments} - set(names))
        times = Counter(entity for segment in self.segments for entity in segment.entities)
        twice = sorted(entity for entity, n in times.items() if n > 1)
        problems = []
        if unknown:
            problems.append(f"segments: expected variants among {', '.join(names)}, found {', '.join(unknown)}")
        if twice:
            problems.append(f"segments: expected every entity once, found {', '.join(twice)} again")
        return problems

    def _layout_problems(self) -> list[str]:
        owned: dict[str, int] = {}
        for run in self.layout:
            owned[run.variant] = owned.get(run.variant, 0) + run.buckets
        wanted = {variant.name: variant.weight for variant in self.variants if variant.weight}
        if self.layout and owned != wanted:
            return [f"layout: expected as many buckets as the weights say ({_listed(wanted)}), found {_listed(owned)}"]
        return []

    @property
    def default(self) -> Variant:
        """The variant that owns what no other does."""
        return self.variants[0]


class Reason(StrEnum):
    """Why a request goes to its variant."""

    FORCED = "forced"
    SEGMENT = "segment"
    COOKIE = "cookie"
    HASH = "hash"
    WEIGHT = "weight"

    @property
    def is_random(self) -> bool:
        """True when chance chose the variant in the ratio of the weights; only such requests may be compared."""
        return self in _RANDOM


_RANDOM = frozenset({Reason.COOKIE, Reason.HASH, Reason.WEIGHT})
DRAWN = tuple(sorted(reason.value for reason in _RANDOM))
"""What a request is counted as where there are no groups: which kind of chance chose its variant."""
_SEGMENT, _COOKIE, _HASH, _WEIGHT = Reason.SEGMENT, Reason.COOKIE, Reason.HASH, Reason.WEIGHT
"""Names that are found at once: to look up a member of an enumeration costs 50 ns."""


class RequestFacts(NamedTuple):
    """What a request says that matters to its assignment; None for what it does not say.

    A named tuple, as is an assignment: every request makes both, and a frozen dataclass takes twice as long to make.
    `entity` is what the request is about (a host, a customer). Segments go by it, or by `key` where there is none.
    """

    key: str | None = None
    entity: str | None = None
    cookie: str | None = None
    forced_version: str | None = None


class Assignment(NamedTuple):
    """Where a request goes and why; `bucket` is None unless it was what decided."""

    variant: Variant
    reason: Reason
    bucket: int | None = None


def group_problems(groups: Sequence[Group]) -> list[str]:
    """Say what is wrong with some groups."""
    times = Counter(group.name for group in groups)
    entities = Counter(entity for group in groups for entity in group.entities)
    twice = sorted(name for counter in (times, entities) for name, n in counter.items() if n > 1)
    reserved = sorted(times.keys() & {OTHERS, *(reason.value for reason in Reason)})
    problems = [f"groups: expected every name and every entity once, found {', '.join(twice)} again"] if twice else []
    return problems + ([f"groups: expected no reserved name, found {', '.join(reserved)}"] if reserved else [])


@dataclass(frozen=True, slots=True, eq=False)
class CompiledSplit:
    """A split made ready for the hot path. Stays in one process: it is made from the document, not stored."""

    split: Split
    variants: tuple[Variant, ...]
    table: bytes
    """Index of the variant that owns the bucket; uint8, (10,000,)."""
    entities: Mapping[str, Variant]
    prefixes: tuple[tuple[int, Mapping[str, Variant]], ...]
    """Patterns of segments by the length of their prefix, the longest first."""
    has_segments: bool
    group_entities: Mapping[str, str]
    group_prefixes: tuple[tuple[int, Mapping[str, str]], ...]
    has_groups: bool
    bucket_hash: blake2b
    shadow_hash: blake2b
    cookie_end: str
    shadow_sample: int


def compile_split(split: Split) -> CompiledSplit:
    """Make a split ready for `assign`; some 10 µs, to be done once for every split that arrives."""
    by_name = {variant.name: variant for variant in split.variants}
    entities, prefixes = _patterns((segment.entities, by_name[segment.variant]) for segment in split.segments)
    group_entities, group_prefixes = _patterns((group.entities, group.name) for group in split.groups)
    salt = split.salt.encode()
    return CompiledSplit(
        split=split,
        variants=split.variants,
        table=_table_of(split),
        entities=entities,
        prefixes=prefixes,
        has_segments=bool(split.segments),
        group_entities=group_entities,
        group_prefixes=group_prefixes,
        has_groups=bool(split.groups),
        bucket_hash=blake2b(digest_size=8, key=salt, person=b"variant"),
        shadow_hash=blake2b(digest_size=8, key=salt, person=b"shadow"),
        cookie_end=f".{split.salt}",
        shadow_sample=split.shadow.sample if split.shadow else 0,
    )


def assign(split: CompiledSplit, facts: RequestFacts, *, draw: float) -> Assignment:
    """Choose the variant for a request. `draw`, uniform in [0, 1), decides only where nothing else does.

    A forced version that is none of the variants gets a variant of its own, named `forced`. Whether what is chosen is
    loaded is for the caller to see; `fallbacks` says what to do when it is not.
    """
    if facts.forced_version is not None:
        return Assignment(_forced(split, facts.forced_version), Reason.FORCED)
    key = facts.key
    if split.has_segments:
        entity = key if facts.entity is None else facts.entity
        if entity is not None and (chosen := _named(split.entities, split.prefixes, entity)) is not None:
            return Assignment(chosen, _SEGMENT)
    if facts.cookie is not None and (kept := _kept_bucket(split, facts.cookie)) is not None:
        return Assignment(split.variants[split.table[kept]], _COOKIE, kept)
    if key is not None:
        bucket = bucket_of(split, key)
        return Assignment(split.variants[split.table[bucket]], _HASH, bucket)
    bucket = int(draw * N_BUCKETS)
    return Assignment(split.variants[split.table[bucket]], _WEIGHT, bucket)


def bucket_of(split: CompiledSplit, key: str) -> int:
    """Return the bucket, 0 to 9,999, that a targeting key falls into: by a hash with the salt of the split."""
    return _bucket(split.bucket_hash, key)


def shadow_sampled(split: CompiledSplit, key: str | None, *, draw: float) -> bool:
    """Say whether the shadow gets a copy: by a hash of the key that has nothing to do with the variant's.

    Where there is no key, `draw` decides; it must be another one than the one that `assign` was given.
    """
    if split.shadow_sample == 0 or key is None:
        return draw * N_BUCKETS < split.shadow_sample
    return _bucket(split.shadow_hash, key) < split.shadow_sample


def group_of(split: CompiledSplit, facts: RequestFacts) -> str:
    """Return the group that a request is counted in, by its entity, or by its key where there is none."""
    entity = facts.key if facts.entity is None else facts.entity
    found = None if entity is None else _named(split.group_entities, split.group_prefixes, entity)
    return OTHERS if found is None else found


def sticky_cookie(split: CompiledSplit, assignment: Assignment) -> str | None:
    """Return the value of the cookie that keeps a client where it is, or None where chance did not put it there."""
    return None if assignment.bucket is None else f"{assignment.bucket}{split.cookie_end}"


def fallbacks(split: CompiledSplit, assignment: Assignment) -> tuple[Variant, ...]:
    """Return where to go, best first, when the version of the chosen variant is not loaded.

    First the same version on another pool, then the default. Never another version on trial, and nothing else for a
    forced version: the client asked for that one.
    """
    chosen = assignment.variant
    twins = [other for other in split.variants if other.version == chosen.version and other is not chosen]
    default = [] if assignment.reason is Reason.FORCED else [split.variants[0]]
    return tuple(other for other in dict.fromkeys([*twins, *default]) if other is not chosen)


def reweighted(split: Split, weights: Mapping[str, int]) -> Split:
    """Return the split with these weights (buckets), the default getting the rest; no other key moves than must.

    A variant that shrinks gives buckets to the default, one that grows takes them from it.

    Raises:
        ValueError: A name is not one of the variants, or is the default's; a weight is negative; they exceed 10,000.
    """
    others = {variant.name: variant.weight for variant in split.variants[1:]}
    wanted = {**others, **weights}
    if wanted.keys() != others.keys():
        found = ", ".join(sorted(wanted.keys() - others.keys()))
        raise ValueError(f"expected weights of {', '.join(others) or 'no variant'}, found {found}")
    if min(wanted.values(), default=0) < 0 or sum(wanted.values()) > N_BUCKETS:
        raise ValueError(f"expected weights from 0 that sum to at most {N_BUCKETS}, found {_listed(wanted)}")
    table = bytearray(_table_of(split))
    steps = [(wanted[variant.name] - variant.weight, i) for i, variant in enumerate(split.variants) if i]
    for growth, index in sorted(steps):  # first those that shrink: what they give may be taken
        giver, taker = (index, 0) if growth < 0 else (0, index)
        own = [bucket for bucket in range(N_BUCKETS) if table[bucket] == giver]
        from_below = (index == 1) == (growth > 0)
        for bucket in own[: abs(growth)] if from_below else own[len(own) - abs(growth) :]:
            table[bucket] = taker
    rest = N_BUCKETS - sum(wanted.values())
    variants = tuple(
        variant.model_copy(update={"weight": wanted.get(variant.name, rest)}) for variant in split.variants
    )
    plain = Split.model_validate({**dict(split), "variants": variants, "layout": ()})
    return plain if _table_of(plain) == table else plain.model_copy(update={"layout": _runs(variants, bytes(table))})


def _bucket(hash_: blake2b, key: str) -> int:
    started = hash_.copy()  # a third cheaper than to begin with the salt every time
    try:
        started.update(key.encode())
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can carry
        started.update(key.encode("utf-8", "surrogatepass"))
    return int.from_bytes(started.digest(), "big") % N_BUCKETS


def _kept_bucket(split: CompiledSplit, cookie: str) -> int | None:
    """Read the bucket out of a cookie; None when it is of another experiment, or none of ours at all."""
    if not cookie.endswith(split.cookie_end):
        return None
    digits = cookie[: -len(split.cookie_end)]
    return int(digits) if 0 < len(digits) <= 4 and digits.isascii() and digits.isdigit() else None


def _forced(split: CompiledSplit, version: str) -> Variant:
    found = next((variant for variant in split.variants if variant.version == version), None)
    return found or Variant.model_construct(name=FORCED, version=version, pool=None, weight=0)


def _patterns(
    named: Iterable[tuple[Sequence[str], Value]],
) -> tuple[dict[str, Value], tuple[tuple[int, Mapping[str, Value]], ...]]:
    """Sort names and patterns: whole names, and prefixes by their length, the longest first."""
    whole: dict[str, Value] = {}
    prefixes: dict[int, dict[str, Value]] = {}
    for entities, value in named:
        for entity in entities:
            if entity.endswith("*"):
                prefixes.setdefault(len(entity) - 1, {})[entity[:-1]] = value
            else:
                whole[entity] = value
    return whole, tuple(sorted(prefixes.items(), reverse=True))


def _named(
    whole: Mapping[str, Value], prefixes: Sequence[tuple[int, Mapping[str, Value]]], entity: str
) -> Value | None:
    """Find what an entity was named for: its own name before patterns, a longer pattern before a shorter one."""
    if (found := whole.get(entity)) is not None:
        return found
    for length, patterns in prefixes:
        if (found := patterns.get(entity[:length])) is not None:
            return found
    return None


def _table_of(split: Split) -> bytes:
    index_of = {variant.name: index for index, variant in enumerate(split.variants)}
    if split.layout:
        return b"".join(bytes([index_of[run.variant]]) * run.buckets for run in split.layout)
    above = [bytes([index]) * variant.weight for index, variant in enumerate(split.variants) if index >= 2]
    below = bytes([1]) * split.variants[1].weight if len(split.variants) > 1 else b""
    return below + bytes([0]) * split.variants[0].weight + b"".join(above)


def _runs(variants: tuple[Variant, ...], table: bytes) -> tuple[Run, ...]:
    starts = [0, *(at for at in range(1, N_BUCKETS) if table[at] != table[at - 1]), N_BUCKETS]
    return tuple(Run(variant=variants[table[start]].name, buckets=end - start) for start, end in pairwise(starts))


def _listed(weights: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {weight}" for name, weight in weights.items()) or "none"
