"""Metrics of predictions that are remembered, of their labels, and of the losses that these make known."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from serve_app.domain.labels import Fate, Predicted

DELAY_BUCKETS_S: Final = (1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 259_200.0, 604_800.0, 2_592_000.0)


class LabelMetrics:
    """Labels of one gateway; implements `LabelMeter`.

    `serve_app_loss_sum` over `serve_app_loss_count` is MAE, pinball loss, log loss, or, of `zero_one`, 1 - accuracy.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._labels = Counter(
            "serve_app_labels", "Rows of POST /feedback, by what became of their labels.",
            ["family", "version", "outcome"], registry=registry,
        )  # fmt: skip
        self._losses = Summary(
            "serve_app_loss", "Losses of labelled rows.", ["family", "version", "variant", "loss"], registry=registry
        )
        self._delays = Histogram(
            "serve_app_label_delay_seconds", "From the prediction of a row to when its label was known.", ["family"],
            buckets=DELAY_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._predictions = Counter(
            "serve_app_remembered_predictions", "Predictions kept for their labels, or dropped.", ["family", "outcome"],
            registry=registry,
        )  # fmt: skip
        self._kept_bytes = Gauge(
            "serve_app_remembered_bytes", "Files of predictions and labels, of all processes that share them.",
            ["family"], registry=registry,
        )  # fmt: skip

    def count_labels(self, family: str, version: str, fate: Fate, n: int) -> None:
        """See `LabelMeter.count_labels`."""
        self._labels.labels(family, version, fate.value).inc(n)

    def observe_loss(self, family: str, by: Predicted, loss: str, value: float) -> None:
        """See `LabelMeter.observe_loss`."""
        self._losses.labels(family, by.version, by.variant, loss).observe(value)

    def observe_delay(self, family: str, seconds: float) -> None:
        """See `LabelMeter.observe_delay`."""
        self._delays.labels(family).observe(seconds)

    def count_predictions(self, family: str, *, kept: int, dropped: int) -> None:
        """See `LabelMeter.count_predictions`."""
        self._predictions.labels(family, "kept").inc(kept)
        self._predictions.labels(family, "dropped").inc(dropped)

    def set_kept_bytes(self, family: str, n_bytes: int) -> None:
        """See `LabelMeter.set_kept_bytes`."""
        self._kept_bytes.labels(family).set(n_bytes)
