"""Histograms of how far two answers are apart, which can be added: eight buckets to a doubling, each 9 % wide.

As `histogram.py` does for latencies, but outputs have any scale, so the buckets reach from 2^-100 to 2^100; what is
smaller or larger is counted in the outermost. Equal answers are counted apart.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

BUCKETS_PER_DOUBLING: Final = 8
FIRST_BUCKET: Final = -100 * BUCKETS_PER_DOUBLING
LAST_BUCKET: Final = 100 * BUCKETS_PER_DOUBLING


def bucket_of(difference: float) -> int:
    """Return the bucket of a difference above 0: bucket i ends, inclusively, at `upper_edge(i)`."""
    return min(max(math.ceil(BUCKETS_PER_DOUBLING * math.log2(difference)), FIRST_BUCKET), LAST_BUCKET)


def upper_edge(bucket: int) -> float:
    """Return the largest difference of a bucket."""
    return math.pow(2.0, bucket / BUCKETS_PER_DOUBLING)


class DifferenceHistogram(BaseModel):
    """How many pairs of answers are equal, and how many each bucket counts of those that are not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    equal: Annotated[int, Field(ge=0)] = 0
    counts: dict[Annotated[int, Field(ge=FIRST_BUCKET, le=LAST_BUCKET)], Annotated[int, Field(ge=0)]] = {}

    @property
    def total(self) -> int:
        """Return how many pairs are counted."""
        return self.equal + sum(self.counts.values())

    def merged(self, other: "DifferenceHistogram") -> "DifferenceHistogram":
        """Return both together."""
        return DifferenceHistogram(equal=self.equal + other.equal, counts=_summed(self.counts, other.counts))

    def quantile(self, q: float) -> float | None:
        """Return a bound that the share `q` of all differences does not exceed, None without any.

        It is the upper edge of a bucket: 9 % above the quantile of the sample at most.
        """
        rank = max(1, math.ceil(q * self.total))
        if not self.total or rank <= self.equal:
            return 0.0 if self.total else None
        seen = self.equal
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return upper_edge(bucket)
        return None


def _summed(first: Mapping[int, int], second: Mapping[int, int]) -> dict[int, int]:
    summed = dict(first)
    for bucket, count in second.items():
        summed[bucket] = summed.get(bucket, 0) + count
    return summed
