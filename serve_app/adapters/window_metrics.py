"""Metrics of one store of windows."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from serve_app.domain.windows import Fate
from serve_app.usecases.window_ports import WindowsStatus

LABELS: Final = ["family"]


class WindowMetrics:
    """What came in, and what is kept. Labels: family; records also have their fate."""

    def __init__(self, family: str) -> None:
        self.registry = CollectorRegistry()
        self._family = family
        records = Counter(
            "serve_app_observations", "Records of POST /observations, by what became of them.", [*LABELS, "fate"],
            registry=self.registry,
        )  # fmt: skip
        self._records = {fate: records.labels(family, fate.value) for fate in Fate}
        self._entities = Gauge(
            "serve_app_window_entities", "Entities that have a window.", LABELS, registry=self.registry
        ).labels(family)
        self._newest = Gauge(
            "serve_app_window_newest_timestamp_seconds", "Begin of the newest step of all windows; 0 for none.", LABELS,
            registry=self.registry,
        ).labels(family)  # fmt: skip
        self._journal = Gauge(
            "serve_app_window_journal_bytes", "What a restart reads beside the last image.", LABELS,
            registry=self.registry,
        ).labels(family)  # fmt: skip
        self._memory = Gauge(
            "serve_app_window_memory_bytes", "Memory of all windows.", LABELS, registry=self.registry
        ).labels(family)
        self._is_open = Gauge(
            "serve_app_window_store_open", "1 while records can be taken.", LABELS, registry=self.registry
        ).labels(family)
        self._lost = Gauge(
            "serve_app_window_archive_lost_records", "Records since the start that could not be archived.", LABELS,
            registry=self.registry,
        ).labels(family)  # fmt: skip

    def count_records(self, fate: Fate, n: int) -> None:
        """Count records that met the same fate."""
        self._records[fate].inc(n)

    def set_state(self, status: WindowsStatus) -> None:
        """Say what is kept now."""
        self._entities.set(status.entities)
        self._newest.set(status.newest_at_s or 0)
        self._journal.set(status.journal_bytes)
        self._memory.set(status.memory_bytes)
        self._is_open.set(status.last_error is None)
        self._lost.set(status.archive_lost)
