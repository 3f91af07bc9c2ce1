from prometheus_client import CollectorRegistry

from serve_app.adapters.event_metrics import DeliveryMetrics
from serve_app.usecases.event_ports import DeliveryOutcome


def test_deliveries_are_counted_and_told_as_none_from_the_start() -> None:
    registry = CollectorRegistry()
    metrics = DeliveryMetrics(registry, ["ops"])

    def counted(outcome: str) -> float | None:
        return registry.get_sample_value("serve_app_event_deliveries_total", {"webhook": "ops", "outcome": outcome})

    assert [counted(outcome.value) for outcome in DeliveryOutcome] == [0, 0, 0, 0]
    metrics.count_delivery("ops", DeliveryOutcome.DELIVERED)
    metrics.count_delivery("ops", DeliveryOutcome.MISSED, 4)
    metrics.set_backlog("ops", 3)
    assert (counted("delivered"), counted("missed"), counted("failed")) == (1, 4, 0)
    assert registry.get_sample_value("serve_app_event_backlog", {"webhook": "ops"}) == 3
