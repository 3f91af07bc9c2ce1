"""A replica's place for one version: its states, and which may follow which.

    queued ─▶ fetching ─▶ verifying ─▶ loading ─▶ warming_up ─▶ checking ─▶ ready ─▶ released
       └──────────┴───────────┴───────────┴───────────┴────────────┴─▶ failed

    ready ◀─▶ serving ◀─▶ draining ─▶ ready or released          failed or released ─▶ queued

Serving means: pinned, and used within the grace period. Draining: no longer pinned, but used so lately that more
requests may be on their way.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from serve_app.domain.errors import ServeAppError


class SlotState(StrEnum):
    """How far a version has come inside one replica."""

    QUEUED = "queued"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    LOADING = "loading"
    WARMING_UP = "warming_up"
    CHECKING = "checking"
    READY = "ready"
    SERVING = "serving"
    DRAINING = "draining"
    RELEASED = "released"
    FAILED = "failed"


STAGES = (
    SlotState.FETCHING,
    SlotState.VERIFYING,
    SlotState.LOADING,
    SlotState.WARMING_UP,
    SlotState.CHECKING,
)
"""The stages of a load, in their order."""

_NEXT: Mapping[SlotState, frozenset[SlotState]] = {
    SlotState.QUEUED: frozenset({SlotState.FETCHING, SlotState.FAILED}),
    SlotState.FETCHING: frozenset({SlotState.VERIFYING, SlotState.FAILED}),
    SlotState.VERIFYING: frozenset({SlotState.LOADING, SlotState.FAILED}),
    SlotState.LOADING: frozenset({SlotState.WARMING_UP, SlotState.FAILED}),
    SlotState.WARMING_UP: frozenset({SlotState.CHECKING, SlotState.FAILED}),
    SlotState.CHECKING: frozenset({SlotState.READY, SlotState.FAILED}),
    SlotState.READY: frozenset({SlotState.SERVING, SlotState.RELEASED}),
    SlotState.SERVING: frozenset({SlotState.DRAINING, SlotState.READY}),
    SlotState.DRAINING: frozenset({SlotState.SERVING, SlotState.READY, SlotState.RELEASED}),
    SlotState.RELEASED: frozenset({SlotState.QUEUED}),
    SlotState.FAILED: frozenset({SlotState.QUEUED}),
}


class IllegalSlotTransitionError(ServeAppError):
    """A slot cannot go from the state it is in to the one that was asked for."""

    def __init__(self, version: str, found: SlotState, asked: SlotState) -> None:
        self.version = version
        self.found = found
        self.asked = asked
        allowed = ", ".join(state for state in SlotState if state in _NEXT[found])
        super().__init__(f"slot of version {version!r} is {found}: expected to go on to {allowed}, found {asked}")

    def __reduce__(self) -> tuple[type["IllegalSlotTransitionError"], tuple[str, SlotState, SlotState]]:
        return type(self), (self.version, self.found, self.asked)


@dataclass(frozen=True, slots=True)
class Slot:
    """One version inside one replica.

    `digest` is the manifest's sha256 (hex): the one asked for, later the one found. `since_s` is when the state began,
    in the monotonic seconds of the replica's process. `reason` says why a slot failed. `stage_seconds` are the stages
    of its last load that have ended.
    """

    version: str
    digest: str | None
    state: SlotState
    since_s: float
    reason: str = ""
    stage_seconds: Mapping[SlotState, float] = field(default_factory=dict)

    @classmethod
    def queued(cls, version: str, digest: str | None, *, now_s: float) -> "Slot":
        """Return the slot of a version that was never here."""
        return cls(version, digest, SlotState.QUEUED, now_s)

    def moved(self, to: SlotState, *, now_s: float, digest: str | None = None, reason: str = "") -> "Slot":
        """Return the slot in its next state. `digest` is set where it is given; only `FAILED` keeps a `reason`.

        Raises:
            IllegalSlotTransitionError: `to` may not follow the present state.
        """
        if to not in _NEXT[self.state]:
            raise IllegalSlotTransitionError(self.version, self.state, to)
        stages = dict(self.stage_seconds)
        if to is SlotState.QUEUED:
            stages = {}
        elif self.state in STAGES:
            stages[self.state] = now_s - self.since_s
        return replace(
            self,
            state=to,
            since_s=now_s,
            digest=digest or self.digest,
            reason=reason if to is SlotState.FAILED else "",
            stage_seconds=stages,
        )
