"""Runs versions on recorded requests in a worker of the trial's kind: killable, and behind everything that serves."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from serve_app.adapters.request_files import has_requests
from serve_app.adapters.trial import SubprocessTrial, TrialSettings
from serve_app.adapters.trial_messages import ReplayTask
from serve_app.domain.errors import TrialError, UnavailableError
from serve_app.domain.recording import NothingRecordedError, ReplayError, ReplayReport
from serve_app.usecases.compare_answers import Comparison
from serve_app.usecases.ports import TrialLimits

LINES_FACTOR: Final = 2
"""Memory that recorded lines take, against their size on disk."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """Of one family: how a version is loaded, where the record lies and how large it is, and when answers agree."""

    trial: TrialSettings
    limits: TrialLimits
    directory: Path
    max_bytes: int
    max_s: float
    comparison: Comparison


class ProcessReplayer:
    """A `Replayer` over a process that lives for one replay. One at a time: a second one would slow down both.

    It has nothing to do with the trial of versions that are to serve, which so never waits for a replay.
    """

    def __init__(self, settings: Mapping[str, ReplaySettings]) -> None:
        self._settings = dict(settings)
        self._turn = asyncio.Lock()

    async def run(self, family: str, version: str, *, limit: int | None) -> ReplayReport:
        """See `Replayer.run`. Cancelling it kills the process."""
        settings = self._settings.get(family)
        if settings is None or not await asyncio.to_thread(has_requests, settings.directory):
            raise NothingRecordedError(f"nothing is recorded of {family!r} yet")
        if self._turn.locked():
            raise UnavailableError("another replay is under way; try again when it is over", retry_after_s=10)
        async with self._turn:
            trial = SubprocessTrial({family: settings.trial})
            try:
                report = await trial.replay(family, version, _limits(settings), _task(settings, limit))
            except TrialError as error:
                if error.blames_bundle:
                    raise ReplayError(str(error)) from error
                raise UnavailableError(f"the replay could not be held: {error}") from error
            finally:
                await trial.close()
        log.info("replayed", family=family, version=version, requests=report.replayed, failed=report.diff.failed)
        return report


def _limits(settings: ReplaySettings) -> TrialLimits:
    """Return what a replay may use: two versions may have to be loaded, and the record is read."""
    return TrialLimits(
        timeout_s=2 * settings.limits.timeout_s + settings.max_s,
        memory_bytes=2 * settings.limits.memory_bytes + LINES_FACTOR * settings.max_bytes,
    )


def _task(settings: ReplaySettings, limit: int | None) -> ReplayTask:
    comparison = settings.comparison
    return ReplayTask(
        directory=str(settings.directory),
        newest=limit,
        max_s=settings.max_s,
        rtol=comparison.rtol,
        atol=comparison.atol,
        keeps_inputs=comparison.keeps_inputs,
    )
