"""The room of a replica for models: what is free, what a candidate needs, and what its policy lets it do."""

from dataclasses import dataclass
from math import ceil

from serve_app.domain.residency import ResidencyPolicy
from serve_app.domain.status import LoadedVersion
from serve_app.usecases.ports import DeviceMemory

DEVICE_FACTOR = 1.25
"""Bytes on the device for each byte of the bundle's files: the weights as they are, and what allocation rounds up."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a device said a moment ago, in bytes."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class RoomAsked:
    """What a load asks for, beside what there is."""

    needed_bytes: int
    free_bytes: int
    total_bytes: int


class ModelRoom:
    """Measures a device's memory, or takes the byte budget for one.

    A budget binds only under the resource-preserving policy, and only what is pinned: elsewhere a version more than the
    budget allows is better than none. By default anything fits.

    Args:
        policy: Whether a candidate may have others unloaded first.
        memory: Of the device; None: models lie in the process's own.
        max_bytes: Budget of artifacts where there is no device; None: any size fits.
    """

    def __init__(
        self,
        policy: ResidencyPolicy = ResidencyPolicy.AVAILABILITY_PRESERVING,
        *,
        memory: DeviceMemory | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.policy = policy
        self.memory = memory
        self._budget_bytes = max_bytes if self.unloads and memory is None else None
        self._passing_bytes = 0

    @property
    def unloads(self) -> bool:
        """True when a candidate may have others unloaded first."""
        return self.policy is ResidencyPolicy.RESOURCE_PRESERVING

    def binds(self, *, is_pinned: bool) -> bool:
        """Say whether a load has to ask for room at all."""
        return self.memory is not None or (self._budget_bytes is not None and is_pinned)

    def measured(self) -> Measured | None:
        """Measure the device, where there is one. Call it in a thread: a driver answers when it likes."""
        return None if self.memory is None else Measured(self.memory.free_bytes(), self.memory.total_bytes())

    def asked(self, artifact_bytes: int, measured: Measured | None, *, held_bytes: int) -> RoomAsked:
        """Say what a load of so many bytes of files needs, beside versions that hold `held_bytes`."""
        if measured is not None:
            needed_bytes = ceil(artifact_bytes * DEVICE_FACTOR) + self._passing_bytes
            return RoomAsked(needed_bytes, measured.free_bytes, measured.total_bytes)
        assert self._budget_bytes is not None, "a load asks only where something binds it"
        return RoomAsked(artifact_bytes, max(self._budget_bytes - held_bytes, 0), self._budget_bytes)

    def held_bytes(self, facts: LoadedVersion) -> int:
        """Return what comes free when a version leaves."""
        return facts.artifact_bytes if self.memory is None else facts.device_bytes

    def learn(self, facts: LoadedVersion) -> None:
        """Remember what the last load needed beyond what it kept: the next one passes through the same."""
        self._passing_bytes = max(facts.device_peak_bytes - facts.device_bytes, 0)
