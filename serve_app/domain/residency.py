"""Which versions leave the memory of a replica: the least recently used, and never one that is pinned."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


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
