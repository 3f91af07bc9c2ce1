from prometheus_client import CollectorRegistry

from serve_app.adapters.label_metrics import LabelMetrics
from serve_app.adapters.prometheus_metrics import exposition, snapshot
from serve_app.domain.labels import Fate, Predicted


def test_the_page_tells_labels_and_losses_by_version() -> None:
    registry = CollectorRegistry()
    meter = LabelMetrics(registry)
    by = Predicted("v2", "canary", "hash", "salt-1", (("y", "float64"),))
    meter.count_labels("iris", "v2", Fate.JOINED, 3)
    meter.count_labels("", "", Fate.UNKNOWN, 2)
    for loss in (1.0, 0.0, 0.5):
        meter.observe_loss("iris", by, "absolute_error", loss)
    meter.observe_delay("iris", 90.0)
    meter.count_predictions("iris", kept=5, dropped=1)
    meter.set_kept_bytes("iris", 1234)
    lines = set(exposition([("g1", snapshot(registry))]).decode().splitlines())
    of_loss = 'family="iris",loss="absolute_error",replica="g1",variant="canary",version="v2"'
    assert lines >= {
        'serve_app_labels_total{family="iris",outcome="joined",replica="g1",version="v2"} 3.0',
        'serve_app_labels_total{family="",outcome="unknown",replica="g1",version=""} 2.0',
        f"serve_app_loss_count{{{of_loss}}} 3.0",
        f"serve_app_loss_sum{{{of_loss}}} 1.5",
        'serve_app_label_delay_seconds_bucket{family="iris",le="600.0",replica="g1"} 1.0',
        'serve_app_remembered_predictions_total{family="iris",outcome="kept",replica="g1"} 5.0',
        'serve_app_remembered_predictions_total{family="iris",outcome="dropped",replica="g1"} 1.0',
        'serve_app_remembered_bytes{family="iris",replica="g1"} 1234.0',
    }
