"""Every metric that a server can tell, made by the classes that tell it: names of samples with their labels."""

from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serve_app.adapters.event_metrics import DeliveryMetrics
from serve_app.adapters.label_metrics import LabelMetrics
from serve_app.adapters.process_metrics import ProcessMetrics
from serve_app.adapters.prometheus_metrics import GatewayMetrics, ReloadMetrics, ReplicaMetrics, exposition, snapshot
from serve_app.adapters.retrain_metrics import RetrainMetrics
from serve_app.adapters.rollout_metrics import RolloutMetrics
from serve_app.adapters.route_metrics import RouteMetrics
from serve_app.adapters.shadow_metrics import ShadowMetrics
from serve_app.adapters.window_metrics import WindowMetrics
from serve_app.domain.exposure import ShadowReport
from serve_app.domain.labels import Fate, Predicted
from serve_app.domain.reload import Outcome, Phase
from serve_app.usecases.ports import DemandResult
from tests.kuberay.expressions import Catalogue
from tests.unit.ingress.serving import Server

FAMILY = "iris"


def all_metrics() -> Catalogue:
    """Let every class count once, and read the page that a server would make of it. Needs a running event loop."""
    pages = exposition([("r1", snapshot(registry)) for registry in _registries()])
    return catalogue(pages.decode())


def catalogue(page: str) -> Catalogue:
    """Return the labels of every sample on a page of metrics."""
    found: dict[str, frozenset[str]] = {}
    for metric in text_string_to_metric_families(page):
        for sample in metric.samples:
            found[sample.name] = found.get(sample.name, frozenset()) | frozenset(sample.labels)
    return found


def _registries() -> Iterable[CollectorRegistry]:
    gateway = GatewayMetrics()
    ProcessMetrics(gateway.registry, "gateway", cgroup=Path("/nowhere"))
    gateway.observe(FAMILY, "v1", "stable", 200, 0.01)
    gateway.observe_batch(3)
    gateway.count_refusal("unknown token")
    gateway.set_route(1, FAMILY, "v1", "cpu", "d", metrics={"accuracy": 0.9})
    routes = RouteMetrics(gateway.registry)
    routes.tell(Server().router, is_plane_up=True)
    routes.count_shadows({FAMILY: {"salt": ShadowReport(version="v2", copied=3, dropped=1, failed=1)}})
    labels = LabelMetrics(gateway.registry)
    labels.count_labels(FAMILY, "v1", Fate.JOINED, 1)
    labels.observe_loss(FAMILY, Predicted("v1", "stable", "weight", "salt", ()), "zero_one", 0.0)
    labels.observe_delay(FAMILY, 1.0)
    labels.count_predictions(FAMILY, kept=1, dropped=0)
    labels.set_kept_bytes(FAMILY, 1)
    ShadowMetrics(gateway.registry).count_compared(FAMILY, "v2", agrees=True)
    yield gateway.registry
    replica = ReplicaMetrics(FAMILY, "cpu")
    replica.observe_predict("v1", 0.01)
    replica.observe_load(succeeded=True, seconds=1.0)
    replica.observe_stage("load", 1.0)
    replica.set_resident_versions(1)
    replica.set_resident_bytes(1)
    replica.set_device_fallback(is_fallback=False)
    yield replica.registry
    control = ReloadMetrics([FAMILY])
    control.observe_stage(FAMILY, Phase.TRIAL, 1.0)
    control.observe_commit(FAMILY, 0.1)
    control.count_reload(FAMILY, Outcome.RELOADED)
    control.observe_demand(FAMILY, DemandResult.LOADED, 1.0)
    control.count_source_error(FAMILY)
    RetrainMetrics(control.registry, [FAMILY]).set_new_records(FAMILY, 1)
    RolloutMetrics(control.registry, [FAMILY])
    DeliveryMetrics(control.registry, ["pager"])
    yield control.registry
    yield WindowMetrics(FAMILY).registry
