"""Latency histograms that can be added: fixed buckets, sixteen to a doubling, so that one bucket is 4.4 % wide.

Every process counts into the same buckets, therefore histograms of gateways and of windows add up without loss. Counts
above the edge of a bucket are exact; a quantile is known up to its bucket. The idea of buckets of equal relative width
is that of HdrHistogram (Tene) and DDSketch (Masson, Rim and Lee, 2019).
"""

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

BUCKETS_PER_DOUBLING = 16
SHORTEST_S = 0.0001
"""Upper edge of bucket 0; nothing over HTTP is faster."""
LONGEST_S = 60.0
LAST_BUCKET = math.ceil(BUCKETS_PER_DOUBLING * math.log2(LONGEST_S / SHORTEST_S)) + 1
"""The bucket of everything longer than `LONGEST_S`; it has no upper edge."""


def bucket_of(seconds: float) -> int:
    """Return the number of the bucket that counts this latency: bucket i ends, inclusively, at `upper_edge_s(i)`."""
    if seconds <= SHORTEST_S:
        return 0
    return math.ceil(min(BUCKETS_PER_DOUBLING * math.log2(seconds / SHORTEST_S), LAST_BUCKET))


def upper_edge_s(bucket: int) -> float:
    """Return the longest latency of a bucket in seconds; infinite for the last."""
    return SHORTEST_S * math.pow(2.0, bucket / BUCKETS_PER_DOUBLING) if bucket < LAST_BUCKET else math.inf


def buckets_within(increase: float) -> int:
    """Return how many whole buckets a latency may move without growing by more than this share (0.2 is 20 %)."""
    return math.floor(BUCKETS_PER_DOUBLING * math.log2(1 + increase) + 1e-9)


class LatencyHistogram(BaseModel):
    """How many answers each bucket counts; buckets that are missing count none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    counts: dict[Annotated[int, Field(ge=0, le=LAST_BUCKET)], Annotated[int, Field(ge=0)]] = {}

    @property
    def total(self) -> int:
        """Return how many answers are counted."""
        return sum(self.counts.values())

    def merged(self, other: "LatencyHistogram") -> "LatencyHistogram":
        """Return both together."""
        return LatencyHistogram.model_construct(counts=_summed(self.counts, other.counts))

    def without(self, earlier: "LatencyHistogram") -> "LatencyHistogram":
        """Return what was counted since `earlier`, a former state of the same histogram.

        Raises:
            pydantic.ValidationError: Some bucket counted more in `earlier`: it is no former state of this one.
        """
        negated = {bucket: -count for bucket, count in earlier.counts.items()}
        left = _summed(self.counts, negated)
        return LatencyHistogram(counts={bucket: count for bucket, count in left.items() if count})

    def count_above(self, bucket: int) -> int:
        """Return how many answers took longer than the upper edge of a bucket; exact."""
        return sum(count for number, count in self.counts.items() if number > bucket)

    def quantile_bucket(self, q: float) -> int | None:
        """Return the bucket in which the share `q` of all answers is reached, or None when nothing is counted."""
        rank = max(1, math.ceil(q * self.total))
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return bucket
        return None

    def quantile_bounds_s(self, q: float) -> tuple[float, float] | None:
        """Return the edges in seconds between which the sample's quantile lies, or None when nothing is counted."""
        bucket = self.quantile_bucket(q)
        if bucket is None:
            return None
        return (upper_edge_s(bucket - 1) if bucket else 0.0), upper_edge_s(bucket)

    def quantile_s(self, q: float) -> float | None:
        """Return the quantile in seconds, interpolated on the logarithm within its bucket; None without answers.

        In the last bucket, which has no upper edge, it is the lower one.
        """
        bucket = self.quantile_bucket(q)
        if bucket is None or bucket == 0:
            return None if bucket is None else SHORTEST_S
        if bucket == LAST_BUCKET:
            return upper_edge_s(bucket - 1)
        below = self.total - self.count_above(bucket - 1)
        share = min(max((q * self.total - below) / self.counts[bucket], 0.0), 1.0)
        return SHORTEST_S * math.pow(2.0, (bucket - 1 + share) / BUCKETS_PER_DOUBLING)


def _summed(first: Mapping[int, int], second: Mapping[int, int]) -> dict[int, int]:
    summed = dict(first)
    for bucket, count in second.items():
        summed[bucket] = summed.get(bucket, 0) + count
    return summed
