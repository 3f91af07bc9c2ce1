"""What a gateway counts of its splits: plain numbers while requests go by, documents only when somebody asks."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import numpy as np

from serve_app.domain.differences import DifferenceHistogram, bucket_of
from serve_app.domain.evidence import Measurement
from serve_app.domain.exposure import (
    FORGET_AFTER_S,
    MAX_WORST,
    SHADOW,
    Exposure,
    GatewayReport,
    ShadowReport,
    WorstInput,
)
from serve_app.domain.histogram import LAST_BUCKET, LatencyHistogram, upper_edge_s
from serve_app.domain.statistics import Moments
from serve_app.domain.traffic import Reason

_PLACES = 1 << 20
_EDGES = np.array([upper_edge_s(bucket) for bucket in range(LAST_BUCKET)])
"""Upper edges of all buckets but the last: to search them is faster than to compute a logarithm."""
MAX_UNSORTED: Final = 1024
"""Times that are put into buckets together: a tenth of what it costs for each of them."""
Told = TypeVar("Told")
_EMPTY = Measurement()
_NAMED, _FORCED = Reason.SEGMENT.value, Reason.FORCED.value


class KeySketch:
    """Remembers which keys were seen, in 128 KiB whatever their number.

    A bitmap with one hash, as in linear counting (Whang, Vander-Zanden and Taylor, 1990). A new key may be taken for
    one that was seen, with a chance that is the share of places in use (10 % after 100,000 keys) and has nothing to do
    with its variant: fewer are counted then, in the same ratio.
    """

    __slots__ = ("_free", "_places")

    def __init__(self) -> None:
        self._places = bytearray(_PLACES >> 3)
        self._free = _PLACES

    def add(self, key: str) -> bool:
        """Remember a key, and say whether it is new."""
        place = hash(key) & (_PLACES - 1)
        bit = 1 << (place & 7)
        if self._places[place >> 3] & bit:
            return False
        self._places[place >> 3] |= bit
        self._free -= 1
        return True

    @property
    def distinct(self) -> int:
        """About how many different keys were added."""
        return round(_PLACES * math.log(_PLACES / max(self._free, 1)))


class VariantTally:
    """Counts the answers of one variant. Answers that were the client's fault (4xx) count nowhere."""

    __slots__ = (
        "_buckets", "_squares", "_total_s", "_unsorted_s", "assigned", "compared", "disagreed", "errors", "requests"
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.assigned = 0
        self.compared = 0
        self.disagreed = 0
        self._total_s = 0.0
        self._squares = 0.0
        self._buckets = np.zeros(LAST_BUCKET + 1, np.int64)
        self._unsorted_s: list[float] = []

    def count(self, status: int, seconds: float) -> None:
        """Count one answer."""
        if status >= 400:
            if status < 500:
                return
            self.errors += 1
        self.requests += 1
        self._unsorted_s.append(seconds)
        if len(self._unsorted_s) >= MAX_UNSORTED:
            self._sort()

    def _sort(self) -> None:
        """Put the times that were counted since the last call into their buckets."""
        seconds = np.array(self._unsorted_s)
        self._unsorted_s.clear()
        self._total_s += float(seconds.sum())
        self._squares += float(seconds @ seconds)
        self._buckets += np.bincount(np.searchsorted(_EDGES, seconds), minlength=LAST_BUCKET + 1)

    def measured(self) -> Measurement:
        """Return all of it."""
        told = self.counted()
        counts = {int(bucket): int(self._buckets[bucket]) for bucket in np.flatnonzero(self._buckets)}
        return told.model_copy(update={"latency": LatencyHistogram(counts=counts)})

    def counted(self) -> Measurement:
        """Return all of it but the histogram."""
        self._sort()
        return Measurement(
            requests=self.requests,
            errors=self.errors,
            latency_s=Moments(count=self.requests, total=self._total_s, squares=self._squares),
            compared=self.compared,
            disagreed=self.disagreed,
            assigned=self.assigned,
        )


class ShadowTally:
    """Counts the copies for one shadow."""

    __slots__ = ("copied", "dropped", "equal", "failed", "live", "spread", "sums", "version", "worst")

    def __init__(self, version: str) -> None:
        self.version = version
        self.copied = 0
        self.dropped = 0
        self.failed = 0
        self.sums = _Sums()
        self.equal = 0
        self.spread: dict[int, int] = {}
        self.live = VariantTally()
        self.worst: list[WorstInput] = []

    def add_difference(self, difference: float) -> None:
        """Count how far two answers were apart: 0 or more, and finite."""
        self.sums.add(difference)
        if difference > 0:
            bucket = bucket_of(difference)
            self.spread[bucket] = self.spread.get(bucket, 0) + 1
        else:
            self.equal += 1

    def is_among_worst(self, difference: float) -> bool:
        """Say whether an input that was answered this differently would be kept."""
        return difference > 0 and (len(self.worst) < MAX_WORST or difference > self.worst[-1].difference)

    def keep(self, worst: WorstInput) -> None:
        """Keep an input, the worst first, and no more than the bound."""
        self.worst = sorted([*self.worst, worst], key=lambda one: -one.difference)[:MAX_WORST]

    def reported(self) -> ShadowReport:
        """Return all of it."""
        live = self.live.measured()
        return ShadowReport(
            version=self.version,
            copied=self.copied,
            dropped=self.dropped,
            failed=self.failed,
            differences=self.sums.moments(),
            spread=DifferenceHistogram(equal=self.equal, counts=dict(self.spread)),
            live_s=live.latency_s,
            live=live.latency,
            worst=tuple(self.worst),
        )


class _Sums:
    __slots__ = ("_count", "_squares", "_total")

    def __init__(self) -> None:
        self._count = 0
        self._total = 0.0
        self._squares = 0.0

    def add(self, value: float) -> None:
        self._count += 1
        self._total += value
        self._squares += value * value

    def moments(self) -> Moments:
        return Moments(count=self._count, total=self._total, squares=self._squares)


class SplitTally:
    """Counts of one split. `drawn` by chance, `named` by segments, `forced` by clients; each by variant.

    What was drawn is counted by group as well: by variant and group, or by the kind of chance where there is none.
    """

    def __init__(self) -> None:
        self.drawn: dict[tuple[str, str], VariantTally] = {}
        self.named: dict[str, VariantTally] = {}
        self.forced: dict[str, VariantTally] = {}
        self.seen = KeySketch()
        self.exposed = KeySketch()
        self.default = ""
        self.shadow: ShadowTally | None = None
        self.copies = VariantTally()
        self.left_at_s: float | None = None
        """When the table ceased to name the salt (monotonic seconds); None while it does."""

    def measurements(self) -> dict[str, Measurement]:
        """Return what may be compared."""
        found: dict[str, Measurement] = {}
        for (variant, _), tally in self.drawn.items():
            found[variant] = found.get(variant, _EMPTY).merged(tally.measured())
        return found if self.shadow is None else {**found, SHADOW: self.copies.measured()}

    def named_measurements(self) -> dict[str, Measurement]:
        """Return what the entities of segments got."""
        return _measured(self.named)

    def group_measurements(self) -> dict[str, dict[str, Measurement]]:
        """Return what each group got, by variant; beside the groups those that segments named or clients forced.

        Without histograms: there may be many groups, and what is shown of them are errors and means.
        """
        found: dict[str, dict[str, Measurement]] = {}
        places = [(group, variant, tally) for (variant, group), tally in self.drawn.items()]
        places += [(_NAMED, variant, tally) for variant, tally in self.named.items()]
        places += [(_FORCED, variant, tally) for variant, tally in self.forced.items()]
        for group, variant, tally in places:
            if tally.requests:
                found.setdefault(group, {})[variant] = tally.counted()
        return found

    def exposure(self) -> Exposure:
        """Return what was exposed to any other variant than the default."""
        tallies = [tally for (name, _), tally in self.drawn.items() if name != self.default]
        tallies += [
            tally for by_name in (self.named, self.forced) for name, tally in by_name.items() if name != self.default
        ]
        return Exposure(requests=sum(tally.requests for tally in tallies), entities=self.exposed.distinct)


def _measured(tallies: Mapping[str, VariantTally]) -> dict[str, Measurement]:
    return {name: tally.measured() for name, tally in tallies.items()}


class EvidenceBook:
    """All counts of one gateway, by family and by the salt of its split. Lives on one event loop."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._tallies: dict[tuple[str, str], SplitTally] = {}

    def of(self, family: str, salt: str) -> SplitTally:
        """Return the counts of a split; those of before where it was known already."""
        tally = self._tallies.get((family, salt))
        if tally is None:
            tally = self._tallies[family, salt] = SplitTally()
        return tally

    def keep(self, salts: Mapping[str, str]) -> None:
        """Forget the splits that have not been among these, salts by family, for a minute."""
        now_s = self._now_s()
        for key, tally in list(self._tallies.items()):
            if salts.get(key[0]) == key[1]:
                tally.left_at_s = None
            elif tally.left_at_s is None:
                tally.left_at_s = now_s
            elif now_s >= tally.left_at_s + FORGET_AFTER_S:
                del self._tallies[key]

    def report(self, gateway: str) -> GatewayReport:
        """Return all counts since the process began."""
        return GatewayReport(
            gateway=gateway,
            families=self._by_family(SplitTally.measurements),
            segments=self._by_family(SplitTally.named_measurements),
            groups=self._by_family(SplitTally.group_measurements),
            exposures=self._by_family(SplitTally.exposure),
            shadows=self._by_family(lambda tally: tally.shadow.reported() if tally.shadow is not None else None),
        )

    def _by_family(self, told: Callable[[SplitTally], Told | None]) -> dict[str, dict[str, Told]]:
        found: dict[str, dict[str, Told]] = {}
        for (family, salt), tally in self._tallies.items():
            if document := told(tally):
                found.setdefault(family, {})[salt] = document
        return found
