"""Where the trainings of a family stand, in a file of this node: read when the control plane starts again."""

import asyncio
from pathlib import Path

from serve_app.adapters.last_known import LastKnown
from serve_app.domain.retraining import RetrainState


class FileRetrainMemory:
    """One file; implements `RetrainMemory`. Losing it forgets the records that were counted, and no more."""

    def __init__(self, path: Path) -> None:
        self._file = LastKnown(path)

    async def read(self) -> RetrainState | None:
        """See `RetrainMemory.read`."""
        return await asyncio.to_thread(self._file.read, RetrainState)

    async def write(self, state: RetrainState) -> None:
        """See `RetrainMemory.write`."""
        await asyncio.to_thread(self._file.write, state)
