"""Whether every replica is ready for a candidate: the question that decides a commit."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.domain.reload import VersionRef
from serve_app.domain.status import ReplicaStatus


@dataclass(frozen=True, slots=True)
class Covered:
    """What the reports add up to: complete, failed for a reason, or still waiting for something."""

    is_complete: bool
    failure: str | None = None
    waiting_for: str = ""


def coverage(statuses: Sequence[ReplicaStatus], ref: VersionRef, *, expected: int) -> Covered:
    """Compare the reports of a family's replicas with the number that Serve says are routable or about to be.

    One replica that failed is enough to fail: a version that not everyone can serve would be answered at random.
    """
    for status in statuses:
        if reason := status.failed.get(ref.digest):
            return Covered(False, failure=f"replica {status.replica_id} of pool {status.pool}: {reason}")
    ready = sum(status.holds_bundle(ref.version, ref.digest) for status in statuses)
    if statuses and ready == len(statuses) and ready >= expected:
        return Covered(True)
    return Covered(False, waiting_for=f"{ready} of {max(expected, len(statuses))} replicas have {ref.version!r}")
