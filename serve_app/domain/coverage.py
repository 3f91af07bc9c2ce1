"""Whether every replica is ready for a candidate: the question that decides a commit.

Replicas that hold one version at a time and unload first cannot all be ready, or nobody would answer until the commit.
So half of them (rounded up) become ready before it, one after the other, while the others answer; those follow after
it, while the first half answers. A single one answers nothing while it loads.
"""

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


def coverage(
    statuses: Sequence[ReplicaStatus], ref: VersionRef, *, expected: int, unloads_first: bool = False
) -> Covered:
    """Compare the reports of a family's replicas with the number that Serve says are routable or about to be.

    One replica that failed is enough to fail: a version that not everyone can serve would be answered at random. One
    that cannot read it is waited for: nodes get a bundle one after the other. Where replicas unload first, half are
    enough, if the others only lack the room.
    """
    for status in statuses:
        if reason := status.failed.get(ref.digest):
            return Covered(False, failure=f"replica {status.replica_id} of pool {status.pool}: {reason}")
    ready = sum(status.holds_bundle(ref.version, ref.digest) for status in statuses)
    lacking = len(_lacking_room(statuses, ref)) if unloads_first else 0
    if statuses and ready + lacking == len(statuses) >= expected and ready >= _half(statuses):
        return Covered(True)
    unread = [f"; replica {one.replica_id}: {one.unread[ref.digest]}" for one in statuses if ref.digest in one.unread]
    counted = f"{ready} of {max(expected, len(statuses))} replicas have {ref.version!r}"
    return Covered(False, waiting_for=counted + "".join(unread[:1]))


def next_to_unload(statuses: Sequence[ReplicaStatus], ref: VersionRef) -> str | None:
    """Name the replica that is to unload now; None while another still loads, and once half have the candidate.

    Only one at a time: a request that meets it goes to another replica, and is not sent a third time.
    """
    lacking = _lacking_room(statuses, ref)
    ready = sum(status.holds_bundle(ref.version, ref.digest) for status in statuses)
    is_anybodys_turn = ready + len(lacking) == len(statuses) and ready < _half(statuses)
    return lacking[0] if lacking and is_anybodys_turn else None


def _half(statuses: Sequence[ReplicaStatus]) -> int:
    return (len(statuses) + 1) // 2


def _lacking_room(statuses: Sequence[ReplicaStatus], ref: VersionRef) -> tuple[str, ...]:
    return tuple(
        sorted(
            status.replica_id
            for status in statuses
            if ref.digest in status.no_room and not status.holds_bundle(ref.version, ref.digest)
        )
    )
