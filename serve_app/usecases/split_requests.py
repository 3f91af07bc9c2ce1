"""From what a request says of itself to the variant that answers it: the split of one family, in the hot path.

Only predictions from rows are split. Forecasts from windows go by the route of their family: the pass over a fleet is
one for everybody who asks.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from serve_app.domain.exposure import SHADOW
from serve_app.domain.traffic import (
    N_BUCKETS,
    Assignment,
    Reason,
    RequestFacts,
    Split,
    Variant,
    assign,
    bucket_of,
    compile_split,
    fallbacks,
    group_of,
    shadow_sampled,
)
from serve_app.usecases.count_evidence import ShadowTally, SplitTally, VariantTally
from serve_app.usecases.target import Target

FALLBACK: Final = "fallback"
OF_A_SPLIT: Final = frozenset({Reason.SEGMENT, Reason.COOKIE, Reason.HASH, Reason.WEIGHT})
"""Reasons of a target that a split chose by itself."""
MAX_CHOSEN: Final = 4096
"""Requests that say the same of themselves go where the first of them went; so many kinds are remembered."""
_FORCED, _HASH, _WEIGHT = Reason.FORCED, Reason.HASH, Reason.WEIGHT
"""Names that are found at once: to look up a member of an enumeration costs 50 ns."""
Find = Callable[[str, str | None], Target | None]
"""Finds a loaded version on a pool (None: on any); None where no replica holds it."""


class Placed(NamedTuple):
    """Where a request goes, the cookie that keeps its client there, and the split whose shadow is to get a copy."""

    target: Target
    cookie: tuple[bytes, bytes] | None = None
    copies_to: "SplitRoute | None" = None


class _Owner(NamedTuple):
    """What the owner of a bucket means for a request: where it is placed, and where without a copy for the shadow.

    `uncopied` is None where the shadow gets all of its requests or none.
    """

    variant: Variant
    tally: VariantTally
    placed: Placed
    uncopied: Placed | None


class SplitRoute:
    """Chooses the target of each request. Lives on one event loop.

    Targets are made once for each variant, reason and group, so that whatever is cached by target stays cached.

    Args:
        split: What to do.
        tally: Counts what was done; the same for all splits of a salt.
        find: Where a version is loaded.
        draw: Uniform in [0, 1).
    """

    def __init__(self, split: Split, tally: SplitTally, *, find: Find, draw: Callable[[], float]) -> None:
        self.split = split
        self.tally = tally
        self.compiled = compile_split(split)
        self.has_shadow = split.shadow is not None
        self.is_keyless = split.targeting is None and not split.segments
        """True where nothing that a request says of itself matters, but the version that it forces."""
        self._default = split.default
        self._find = find
        self._draw = draw
        self._has_groups = bool(split.groups)
        self._targets: dict[tuple[str, Reason, str], Target] = {}
        self._chosen: dict[RequestFacts, tuple[Target, Assignment]] = {}
        self._is_plain = not split.segments and not split.groups
        self._keyed: dict[str, Placed] = {}
        self._drawn: dict[int, _Owner] = {}
        self._hashed: dict[int, _Owner] = {}
        """By the index of a variant: what `draw` and `by_key` find once `choose` has been there."""
        self._shadow: Target | None = None
        tally.default = split.default.name
        if split.shadow is not None and tally.shadow is None:
            tally.shadow = ShadowTally(split.shadow.version)

    def renew(self) -> None:
        """Find all targets anew: other versions are loaded, or the table is another one."""
        self._targets.clear()
        self._chosen.clear()
        self._keyed.clear()
        self._drawn.clear()
        self._hashed.clear()
        self._shadow = None

    def draw(self) -> Placed | None:
        """Place a request that says nothing of itself, and count it; None where `choose` has to find its target."""
        owner = self._drawn.get(self.compiled.table[int(self._draw() * N_BUCKETS)])
        if owner is None:
            return None
        _, tally, placed, uncopied = owner
        tally.assigned += 1
        if uncopied is None or self._draw() * N_BUCKETS < self.compiled.shadow_sample:
            return placed
        return uncopied

    def by_key(self, key: str) -> Placed | None:
        """Place a request of which nothing but its key matters, and count the key; None as with `draw`."""
        known = self._keyed.get(key)
        if known is not None:  # nothing new to count either
            return known
        if (
            not self._is_plain
            or (owner := self._hashed.get(self.compiled.table[bucket_of(self.compiled, key)])) is None
        ):
            return None
        variant, tally, placed, uncopied = owner
        if self.tally.seen.add(key):
            tally.assigned += 1
        if variant is not self._default:
            self.tally.exposed.add(key)
        if uncopied is not None and not shadow_sampled(self.compiled, key, draw=0.0):
            placed = uncopied
        if len(self._keyed) >= MAX_CHOSEN:
            self._keyed.clear()
        self._keyed[key] = placed
        return placed

    def choose(self, facts: RequestFacts, *, counts: bool = True) -> tuple[Target | None, Assignment]:
        """Return where a request goes and why; no target where neither the variant nor what replaces it is loaded.

        `counts` is false for whoever only asks.
        """
        known = self._chosen.get(facts)
        if known is not None:  # nothing new to count either
            return known
        assignment = assign(self.compiled, facts, draw=self._draw())
        variant, reason, bucket = assignment
        group = group_of(self.compiled, facts) if self._has_groups else ""
        place = (variant.version if reason is _FORCED else variant.name, reason, group)
        target = self._targets.get(place)
        if target is None:
            target = self._target(assignment, group)
            if target is not None:  # what clients force and nobody has would be kept for ever
                self._targets[place] = target
        if not counts or target is None or (tally := target.tally) is None:
            return target, assignment
        if reason is _WEIGHT:
            tally.assigned += 1
            if bucket is not None and facts.entity is None:
                self._drawn[self.compiled.table[bucket]] = self._owner(variant, target, tally)
        else:
            if reason is _HASH and bucket is not None:
                self._hashed[self.compiled.table[bucket]] = self._owner(variant, target, tally)
            if reason is _HASH and facts.key is not None and self.tally.seen.add(facts.key):
                tally.assigned += 1  # a cookie was counted when it was drawn
            if len(self._chosen) >= MAX_CHOSEN:
                self._chosen.clear()
            self._chosen[facts] = target, assignment
        exposed = facts.entity if facts.key is None else facts.key
        if exposed is not None and variant is not self._default:
            self.tally.exposed.add(exposed)
        return target, assignment

    def _owner(self, variant: Variant, target: Target, tally: VariantTally) -> _Owner:
        sample = self.compiled.shadow_sample if variant is self._default else 0
        alone = Placed(target)
        placed = Placed(target, None, self) if sample else alone
        return _Owner(variant, tally, placed, alone if 0 < sample < N_BUCKETS else None)

    def _target(self, assignment: Assignment, group: str) -> Target | None:
        chosen, reason = assignment.variant, assignment.reason
        if (found := self._find(chosen.version, chosen.pool)) is not None:
            is_ours = chosen in self.split.variants
            tally = self._tally(chosen.name, reason, group or reason.value) if is_ours else None
            is_compared = is_ours and len(self.split.variants) > 1  # else labels of one side alone would be evidence
            salt = self.split.salt if is_compared else ""
            return replace(found, variant=chosen.name, reason=reason.value, tally=tally, salt=salt)
        for other in fallbacks(self.compiled, assignment):
            if (found := self._find(other.version, other.pool)) is not None:
                is_forced = reason is Reason.FORCED
                return replace(found, variant=other.name, reason=reason.value if is_forced else FALLBACK)
        return None

    def _tally(self, variant: str, reason: Reason, group: str) -> VariantTally:
        match reason:
            case Reason.FORCED:
                return self.tally.forced.setdefault(variant, VariantTally())
            case Reason.SEGMENT:
                return self.tally.named.setdefault(variant, VariantTally())
            case _:
                return self.tally.drawn.setdefault((variant, group), VariantTally())

    @property
    def shadow(self) -> Target | None:
        """Where copies go; None where the split has no shadow, or no replica holds it."""
        wanted = self.split.shadow
        if self._shadow is None and wanted is not None:
            found = self._find(wanted.version, wanted.pool)
            if found is not None:
                apart = found.coalescer.apart()  # live requests are not to wait for copies
                tally = self.tally.copies
                self._shadow = replace(found, variant=SHADOW, reason=SHADOW, tally=tally, coalescer=apart)
        return self._shadow

    def is_copied(self, target: Target, key: str | None) -> bool:
        """Say whether the shadow gets a copy of a request with this key; only of those that the default answers."""
        if self.compiled.shadow_sample == 0 or target.variant != self._default.name or target.reason not in OF_A_SPLIT:
            return False
        return shadow_sampled(self.compiled, key, draw=self._draw())
