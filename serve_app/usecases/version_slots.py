"""What is known of each version in one replica: its slot, why its bundle failed, or why it is not here for now."""

from collections.abc import Collection

from serve_app.domain.model_slot import STAGES, Slot, SlotState
from serve_app.usecases.forget_oldest import forget_oldest

KEPT_ENDED_SLOTS = 20
"""How many failed and released versions, and how many failed bundles, are still told of."""


class VersionSlots:
    """The slots of all versions that are here or on their way, and of the last that failed or left."""

    def __init__(self) -> None:
        self._slots: dict[str, Slot] = {}
        self._failed: dict[str, str] = {}
        self._left_out: dict[str, tuple[str, str]] = {}
        self._unread: dict[str, str] = {}

    def __getitem__(self, version: str) -> Slot:
        return self._slots[version]

    def all(self) -> tuple[Slot, ...]:
        """Return all slots, the one that was queued last at the end."""
        return tuple(self._slots.values())

    def loading(self) -> dict[str, str]:
        """Return the versions on their way, each with its state."""
        on_their_way = {SlotState.QUEUED, *STAGES}
        return {name: str(slot.state) for name, slot in self._slots.items() if slot.state in on_their_way}

    def failed(self) -> dict[str, str]:
        """Return why bundles were refused, by digest, the newest last."""
        return dict(self._failed)

    def unread(self) -> dict[str, str]:
        """Return why bundles could not be read the last time, by digest: the source was away, or had none of it yet."""
        return dict(self._unread)

    def left_out(self) -> dict[str, str]:
        """Return why bundles wait until others are let go of for them, by digest."""
        return {digest: reason for digest, (_, reason) in self._left_out.items()}

    def queue(self, version: str, digest: str | None, *, now_s: float) -> None:
        """A load is asked for; what is known of earlier ones of the same bundle is forgotten."""
        slot = self._slots.pop(version, None)  # the newest is last
        if slot is None:
            self._slots[version] = Slot.queued(version, digest, now_s=now_s)
        else:
            self._slots[version] = slot.moved(SlotState.QUEUED, now_s=now_s, digest=digest)
        if digest is not None:
            for known in (self._failed, self._left_out, self._unread):
                known.pop(digest, None)

    def move(
        self, version: str, to: SlotState, now_s: float, *, digest: str | None = None, reason: str = ""
    ) -> SlotState:
        """Move a slot on, and return the state it is in now."""
        self._slots[version] = self._slots[version].moved(to, now_s=now_s, digest=digest, reason=reason)
        ended = [name for name, slot in self._slots.items() if slot.state in (SlotState.FAILED, SlotState.RELEASED)]
        for name in ended[:-KEPT_ENDED_SLOTS]:
            del self._slots[name]
        return to

    def note_failure(self, digest: str, reason: str) -> None:
        """A bundle was refused."""
        self._failed.pop(digest, None)
        self._failed[digest] = reason
        forget_oldest(self._failed, most=KEPT_ENDED_SLOTS)

    def note_unread(self, digest: str, reason: str) -> None:
        """A bundle could not be read, which says nothing against it."""
        self._unread.pop(digest, None)
        self._unread[digest] = reason
        forget_oldest(self._unread, most=KEPT_ENDED_SLOTS)

    def leave_out(self, version: str, digest: str, reason: str) -> None:
        """A bundle has to wait for room."""
        self._left_out[digest] = version, reason

    def keep_left_out(self, versions: Collection[str]) -> None:
        """Forget what is left out but for these: nobody waits for the others any more."""
        self._left_out = {digest: left for digest, left in self._left_out.items() if left[0] in versions}
