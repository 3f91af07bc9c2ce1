"""What recording and replaying need from outside, as protocols."""

from collections.abc import Sequence
from typing import Protocol

from serve_app.domain.diff_report import ShadowDiff
from serve_app.domain.recording import RecordedRequest, RecordHead, ReplayReport


class RequestLog(Protocol):
    """Keeps recorded requests of one family, never more than it may. Blocking; one thread at a time writes."""

    def append(self, head: RecordHead, requests: Sequence[RecordedRequest]) -> int:
        """Keep requests, the oldest give way; return how many were kept: one that is larger than may be is not.

        Raises:
            StoreError: They cannot be written now.
        """
        ...


class RecordMeter(Protocol):
    """Counts recorded requests."""

    def count_recorded(self, family: str, *, kept: int, dropped: int) -> None:
        """Count requests that were kept, and those that were meant to be and were not."""
        ...


class Replayer(Protocol):
    """Runs versions on recorded requests, in a process that may be killed and beside serving."""

    async def run(self, family: str, version: str, *, limit: int | None) -> ReplayReport:
        """Load a version and have it answer the recorded requests, or the newest `limit` of them.

        Raises:
            ReplayError: The version cannot be loaded, or does not take these requests; the message says why.
            NothingRecordedError: There is no request.
            UnavailableError: It cannot be done now.
        """
        ...


class ReplayPlane(Protocol):
    """The part of the control plane that tells how versions would have answered."""

    async def shadow(self, family: str) -> ShadowDiff:
        """Return how the shadow of a family's last rollout has fared.

        Raises:
            NoRolloutError: The family has had none.
            NoShadowError: It has had no shadow.
            UnknownFamilyError, UnavailableError: As `ControlPlane.reload`.
        """
        ...

    async def replay(self, family: str, *, version: str, limit: int | None, actor: str) -> ReplayReport:
        """Run a version on recorded requests.

        Raises:
            UnknownFamilyError: No such family.
            NotOfferedError: Its source has no such version.
            InvalidInputError: The family records nothing.
        and as `Replayer.run`.
        """
        ...
