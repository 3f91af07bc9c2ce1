"""Metrics of recorded requests."""

from prometheus_client import CollectorRegistry, Counter


class RecordMetrics:
    """Requests that one gateway recorded; implements `RecordMeter`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._recorded = Counter(
            "serve_app_recorded_requests", "Sampled requests, by whether they were kept for replays or dropped.",
            ["family", "outcome"], registry=registry,
        )  # fmt: skip

    def count_recorded(self, family: str, *, kept: int, dropped: int) -> None:
        """See `RecordMeter.count_recorded`."""
        self._recorded.labels(family, "kept").inc(kept)
        self._recorded.labels(family, "dropped").inc(dropped)
