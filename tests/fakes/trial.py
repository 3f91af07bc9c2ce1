"""A trial whose verdicts a test decides."""

import asyncio
from collections.abc import Mapping

from serve_app.domain.errors import SourceError, UnknownFamilyError
from serve_app.domain.reload import VersionRef
from serve_app.usecases.ports import TrialLimits


class FakeTrial:
    """Passes the versions it knows. Set `errors[version]` to make one raise; clear `may_end` to make all wait."""

    def __init__(self, digests: Mapping[str, Mapping[str, str]]) -> None:
        self.digests = {family: dict(versions) for family, versions in digests.items()}
        self.errors: dict[str, Exception] = {}
        self.tried: list[tuple[str, str]] = []
        self.n_cancelled = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def run(self, family: str, version: str, limits: TrialLimits) -> VersionRef:
        """Note the version, wait if told to, then raise its error or return it."""
        if family not in self.digests:
            raise UnknownFamilyError(family, list(self.digests))
        self.tried.append((family, version))
        try:
            await asyncio.sleep(0)  # no real one answers at once
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.n_cancelled += 1
            raise
        if version in self.errors:
            raise self.errors[version]
        known = self.digests[family]
        if version not in known:
            raise SourceError(f"expected version {version!r}, found {', '.join(sorted(known)) or 'no bundle'}")
        return VersionRef(version=version, digest=known[version])
