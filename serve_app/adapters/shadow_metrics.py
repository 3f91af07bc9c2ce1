"""Metrics of what shadows answer; `route_metrics.py` has what became of their copies."""

from prometheus_client import CollectorRegistry, Counter


class ShadowMetrics:
    """Comparisons of one gateway; implements `CopyMeter`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._compared = Counter(
            "serve_app_shadow_comparisons", "Answers of a shadow, by whether they agree with the live ones.",
            ["family", "version", "outcome"], registry=registry,
        )  # fmt: skip

    def count_compared(self, family: str, version: str, *, agrees: bool) -> None:
        """See `CopyMeter.count_compared`."""
        self._compared.labels(family, version, "agreed" if agrees else "disagreed").inc()
