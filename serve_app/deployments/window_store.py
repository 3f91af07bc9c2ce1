"""WindowStore: keeps the windows of one family. One replica, the only writer of their journal; models never see it."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import structlog
from ray import serve

from serve_app.adapters.clock import SystemClock
from serve_app.adapters.journals import make_journal
from serve_app.adapters.log_setup import set_up_logging
from serve_app.adapters.observation_archive import ObservationArchive
from serve_app.adapters.process_metrics import ProcessMetrics
from serve_app.adapters.prometheus_metrics import MetricSnapshot, snapshot
from serve_app.adapters.window_metrics import WindowMetrics
from serve_app.config import AppConfig
from serve_app.config_windows import WindowsConfig
from serve_app.domain.errors import NotTheWriterError, StoreError, UnavailableError
from serve_app.domain.temporal import TemporalShape
from serve_app.domain.windows import Fate
from serve_app.ingress.observation_bodies import read_records
from serve_app.usecases.read_windows import read_windows
from serve_app.usecases.take_observations import ObservationTaker, Taken
from serve_app.usecases.window_ports import FleetWindows, WindowsStatus

OPEN_TIMEOUT_S = 10.0
"""How long a new replica waits for the one before it to let go of the journal."""
RETRY_S = 1.0
log = structlog.get_logger(__name__)


class WindowStore:
    """Ray's shell around `ObservationTaker` and its table. It says so while its journal cannot be opened."""

    async def __init__(self, config: AppConfig, family: str) -> None:  # type: ignore[misc]  # Ray awaits it
        settings = config.windows(family)
        assert settings is not None, "only families with windows have a store"
        context = serve.get_replica_context()
        self._id = context.replica_id.unique_id
        set_up_logging(config.logging.level, deployment=context.deployment, replica=self._id)
        self._settings, self._rules = settings, settings.rules
        self._metrics = WindowMetrics(family)
        ProcessMetrics(self._metrics.registry, context.deployment)
        self._counts: Counter[Fate] = Counter()
        self._clock = SystemClock()
        self._started_at_s = self._clock.now_s()
        self._journal = make_journal(settings, family=family)
        self._archive = _archive(settings)
        self._taker: ObservationTaker | None = None
        self._last_error: str | None = "the windows are being read"
        self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Open the journal, and keep what it needs to be kept; open it again when it was lost to another writer."""
        while True:
            try:
                if self._taker is None:
                    await self._open()
                else:
                    await asyncio.to_thread(self._journal.renew)
                self._last_error = None
            except NotTheWriterError as error:
                self._tell(error)
                await self._let_go()
            except StoreError as error:  # what is in memory still is right; appending fails by itself
                self._tell(error)
            except Exception:
                log.exception("windows not kept")
            await asyncio.sleep(RETRY_S)

    async def _open(self) -> None:
        started_s = self._clock.monotonic_s()
        table = await asyncio.to_thread(self._journal.open, wait_s=OPEN_TIMEOUT_S)
        self._taker = ObservationTaker(
            table,
            self._journal,
            self._rules,
            clock=self._clock,
            compact_bytes=self._settings.compact_bytes,
            count=self._count,
            archive=self._archive,
        )
        log.info("windows read", entities=len(table.entities), seconds=round(self._clock.monotonic_s() - started_s, 3))

    def _tell(self, error: StoreError) -> None:
        if self._last_error != str(error):
            log.error("windows not kept", reason=str(error), next_try_s=RETRY_S)
        self._last_error = str(error)

    async def _let_go(self) -> None:
        """Forget what another writer now knows better."""
        self._taker = None
        await asyncio.to_thread(self._journal.close)

    def _count(self, fate: Fate, n: int) -> None:
        self._counts[fate] += n
        self._metrics.count_records(fate, n)

    def _opened(self) -> ObservationTaker:
        if self._taker is None:
            raise UnavailableError(f"the windows cannot be used now: {self._last_error}")
        return self._taker

    async def observe(self, body: bytes, content_type: bytes) -> Taken:
        """See `WindowReader.observe`."""
        taker = self._opened()
        max_records = self._settings.max_records
        records = await asyncio.to_thread(read_records, body, content_type, self._rules.names, max_records=max_records)
        return await taker.take(records)

    async def windows(
        self, shape: TemporalShape, entities: Sequence[str] | None, unless_revision: int | None
    ) -> FleetWindows | None:
        """See `WindowReader.windows`."""
        table = self._opened().table
        if table.revision == unless_revision:
            return None
        return read_windows(table, self._rules, shape, entities=entities, warm_up_steps=self._settings.warm_up_steps)

    async def entities(self) -> tuple[str, ...]:
        """See `WindowReader.entities`."""
        return self._opened().table.entities

    async def status(self) -> WindowsStatus:
        """See `WindowReader.status`."""
        table = self._taker.table if self._taker is not None else None
        newest = table.newest_step if table is not None else None
        return WindowsStatus(
            revision=table.revision if table is not None else 0,
            entities=len(table.entities) if table is not None else 0,
            newest_at_s=None if newest is None else float(newest * self._rules.step_s),
            journal_bytes=self._journal.journal_bytes if table is not None else 0,
            memory_bytes=table.memory_bytes if table is not None else 0,
            counts=dict(self._counts),
            last_error=self._last_error,
            started_at_s=self._started_at_s,
            archive_lost=0 if self._archive is None else self._archive.lost,
        )

    async def metrics(self) -> tuple[str, list[MetricSnapshot]]:
        """Return the name of this replica and its metrics."""
        self._metrics.set_state(await self.status())
        return self._id, snapshot(self._metrics.registry)

    async def check_health(self) -> None:
        """Fail when the task that keeps the journal has ended, which nothing but a defect can cause."""
        if self._keeping.done():
            raise RuntimeError(f"the keeping task of the window store ended: {self._keeping}")

    async def __del__(self) -> None:
        """Let go of the journal, so that the next replica need not wait."""
        self._keeping.cancel()
        await asyncio.to_thread(self._journal.close)


def _archive(settings: WindowsConfig) -> ObservationArchive | None:
    if (archive := settings.archive) is None:
        return None
    assert archive.directory is not None, "the configuration names it, as it does the journal's"
    return ObservationArchive(Path(archive.directory), settings.rules.metrics, keep_days=archive.keep_days)
