"""Metrics of trainings."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from serve_app.domain.retraining import RetrainOutcome


class RetrainMetrics:
    """Trainings by outcome, told from the start as 0, and new records since the last; implements `RetrainMeter`."""

    def __init__(self, registry: CollectorRegistry, families: Iterable[str]) -> None:
        self._trainings = Counter(
            "serve_app_retrainings", "Trainings that ended, by outcome.", ["family", "outcome"], registry=registry
        )
        self._records = Gauge(
            "serve_app_retraining_new_records", "Records since the last training that succeeded began.", ["family"],
            registry=registry,
        )  # fmt: skip
        for family in families:
            for outcome in RetrainOutcome:
                self._trainings.labels(family, outcome.value)

    def count_retraining(self, family: str, outcome: RetrainOutcome) -> None:
        """See `RetrainMeter.count_retraining`."""
        self._trainings.labels(family, outcome.value).inc()

    def set_new_records(self, family: str, n: int) -> None:
        """See `RetrainMeter.set_new_records`."""
        self._records.labels(family).set(n)
