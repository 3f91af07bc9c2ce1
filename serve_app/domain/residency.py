"""Which versions leave the memory of a replica: the least recently used, and a pinned one only to make room.

A byte budget is a wish: what is pinned stays whatever it says. The memory of a device is a fact, so a candidate that
does not fit beside what is pinned needs a policy; `room_for` says what must go, or that nothing helps.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from serve_app.domain.errors import ReloadError

_MEBIBYTE = 1 << 20


class ResidencyPolicy(StrEnum):
    """What happens when a candidate does not fit beside the pinned versions; the names are TensorFlow Serving's.

    Availability preserving: the candidate is refused, what answers goes on. Resource preserving: what answers is let go
    of first, so that this replica has nothing to answer with while it loads.
    """

    AVAILABILITY_PRESERVING = "availability_preserving"
    RESOURCE_PRESERVING = "resource_preserving"


class NoRoomError(ReloadError):
    """A version does not fit into the memory that is left; the message says by how much and what to do."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A version in memory. `artifact_bytes` is the size of its files, `last_used_s` when it was last needed."""

    version: str
    artifact_bytes: int
    last_used_s: float


@dataclass(frozen=True, slots=True)
class EvictionPlan:
    """What is to leave, least recently used first, and by how much what stays is still over each limit.

    The rest is over a limit only when all of it is pinned.
    """

    versions: tuple[str, ...]
    versions_over: int
    bytes_over: int


def evictions(
    resident: Sequence[Resident], *, pinned: Collection[str], max_versions: int, max_bytes: int | None
) -> EvictionPlan:
    """Choose what is evicted so that at most `max_versions` of together `max_bytes` (None: any size) stay."""
    n_versions, n_bytes = len(resident), sum(version.artifact_bytes for version in resident)
    evicted: list[str] = []
    for candidate in sorted(resident, key=lambda version: (version.last_used_s, version.version)):
        if n_versions <= max_versions and (max_bytes is None or n_bytes <= max_bytes):
            break
        if candidate.version not in pinned:
            evicted.append(candidate.version)
            n_versions -= 1
            n_bytes -= candidate.artifact_bytes
    return EvictionPlan(
        versions=tuple(evicted),
        versions_over=max(0, n_versions - max_versions),
        bytes_over=0 if max_bytes is None else max(0, n_bytes - max_bytes),
    )


@dataclass(frozen=True, slots=True)
class RoomPlan:
    """What is to leave so that a candidate fits, in this order. `bytes_short` > 0: it never fits, so nothing leaves."""

    versions: tuple[str, ...]
    bytes_short: int


def room_for(
    needed_bytes: int,
    resident: Sequence[Resident],
    *,
    free_bytes: int,
    pinned: Collection[str],
    yielding: Sequence[str] = (),
) -> RoomPlan:
    """Choose what leaves so that `needed_bytes` are free: the least recently used of those that are not pinned.

    Of the pinned ones only those in `yielding` may follow, in that order, and only once all others have gone.
    """
    free_to_go = sorted(
        (one for one in resident if one.version not in pinned), key=lambda one: (one.last_used_s, one.version)
    )
    by_name = {one.version: one for one in resident if one.version in pinned}
    last_to_go = [by_name[version] for version in dict.fromkeys(yielding) if version in by_name]
    leaving: list[str] = []
    for one in (*free_to_go, *last_to_go):
        if free_bytes >= needed_bytes:
            break
        leaving.append(one.version)
        free_bytes += one.artifact_bytes
    short = max(0, needed_bytes - free_bytes)
    return RoomPlan(versions=() if short else tuple(leaving), bytes_short=short)


def no_room(
    version: str,
    *,
    needed_bytes: int,
    free_bytes: int,
    total_bytes: int,
    staying: Sequence[str],
    policy: ResidencyPolicy,
) -> NoRoomError:
    """Return the error for a version that does not fit beside `staying`: what it needs, what is free, what to do."""
    beside = f" beside {', '.join(staying)}" if staying else ""
    remedy = "give the pool more memory or a smaller model"
    if staying and policy is ResidencyPolicy.AVAILABILITY_PRESERVING:
        remedy = f"{remedy}, or let it unload first with residency.policy {ResidencyPolicy.RESOURCE_PRESERVING}"
    return NoRoomError(
        f"{version} does not fit{beside}: it needs some {_mib(needed_bytes)} MiB and {_mib(free_bytes)} of "
        f"{_mib(total_bytes)} MiB are free; {remedy}, then reload with force"
    )


def _mib(n_bytes: int) -> str:
    n_mib = n_bytes / _MEBIBYTE
    return f"{n_mib:.0f}" if n_mib >= 10 else f"{n_mib:.3g}"
