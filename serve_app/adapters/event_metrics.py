"""Metrics of the delivery of events."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from serve_app.usecases.event_ports import DeliveryOutcome


class DeliveryMetrics:
    """Deliveries by outcome, told from the start as 0, and what is waiting; implements `DeliveryMeter`."""

    def __init__(self, registry: CollectorRegistry, receivers: Iterable[str]) -> None:
        self._deliveries = Counter(
            "serve_app_event_deliveries",
            "Events that a webhook got (delivered), tries that failed, events it refused, and events it missed.",
            ["webhook", "outcome"], registry=registry,
        )  # fmt: skip
        self._backlog = Gauge(
            "serve_app_event_backlog", "Events that are kept and that a webhook has not got yet.", ["webhook"],
            registry=registry,
        )  # fmt: skip
        for receiver in receivers:
            self._backlog.labels(receiver)
            for outcome in DeliveryOutcome:
                self._deliveries.labels(receiver, outcome.value)

    def count_delivery(self, receiver: str, outcome: DeliveryOutcome, n: int = 1) -> None:
        """See `DeliveryMeter.count_delivery`."""
        self._deliveries.labels(receiver, outcome.value).inc(n)

    def set_backlog(self, receiver: str, n: int) -> None:
        """See `DeliveryMeter.set_backlog`."""
        self._backlog.labels(receiver).set(n)
