from typing import Any

from prometheus_client import CollectorRegistry

from serve_app.adapters.route_metrics import RouteMetrics
from serve_app.domain.exposure import ShadowReport
from serve_app.domain.reload import Route, RoutingTable
from serve_app.domain.source_status import SourceStatus
from tests.reports import loaded, report
from tests.unit.ingress.serving import FAMILY, Server


class Told:
    """A gateway's routes and what is told of them."""

    def __init__(self) -> None:
        self.server = Server()
        self.registry = CollectorRegistry()
        self.metrics = RouteMetrics(self.registry)

    def value(self, name: str, **labels: str) -> Any:
        return self.registry.get_sample_value(f"serve_app_{name}", labels)

    def tell(self, *, is_plane_up: bool = True) -> None:
        self.metrics.tell(self.server.router, is_plane_up=is_plane_up)


async def test_families_without_a_model_are_told_as_not_ready() -> None:
    told = Told()
    told.tell(is_plane_up=False)
    assert (told.value("family_ready", family=FAMILY), told.value("family_ready", family="iris")) == (1, 0)
    assert told.value("control_plane_up") == 0
    told.tell()
    assert told.value("control_plane_up") == 1


async def test_replicas_without_the_bundle_that_answers_are_behind() -> None:
    told = Told()
    digest = told.server.router.table.routes[FAMILY].digest
    other = loaded("v1").model_copy(update={"digest": "f" * 64})
    held = [report(loaded("v1").model_copy(update={"digest": digest})), report(other, replica_id="r2")]
    told.server.router.observe(FAMILY, "cpu", [*held, report(replica_id="r3")])
    told.tell()
    assert told.value("replicas_behind", family=FAMILY) == 2
    assert told.value("replicas", family=FAMILY, pool="cpu") == 3
    told.server.router.observe(FAMILY, "cpu", held[:1])
    told.tell()
    assert told.value("replicas_behind", family=FAMILY) == 0
    assert told.value("replicas", family=FAMILY, pool="cpu") == 1


async def test_requests_that_wait_and_calls_that_are_out_are_counted() -> None:
    told = Told()
    target = told.server.router.current(FAMILY)
    assert target is not None
    futures = [target.coalescer.submit([[1.0, 2.0, 3.0]]) for _ in range(3)]
    told.tell()
    assert told.value("queued_requests", family=FAMILY) == 3
    for future in futures:
        await future
    told.tell()
    assert (told.value("queued_requests", family=FAMILY), told.value("inflight_calls", family=FAMILY)) == (0, 0)


async def test_a_source_is_up_until_a_look_at_it_fails() -> None:
    told = Told()
    told.tell()
    assert told.value("source_up", family=FAMILY) == 1
    route = Route(version="v1", digest="0" * 64)
    for generation, (status, up) in enumerate((("error", 0), ("unknown", 1), ("ok", 1)), start=2):
        source = SourceStatus.model_validate({"kind": "mlflow_registry", "status": status})
        told.server.router.follow(RoutingTable(generation=generation, routes={FAMILY: route}, sources={FAMILY: source}))
        told.tell()
        assert told.value("source_up", family=FAMILY) == up, status


def test_copies_for_shadows_only_grow_though_splits_come_and_go() -> None:
    registry = CollectorRegistry()
    metrics = RouteMetrics(registry)

    def copies() -> list[float | None]:
        return [
            registry.get_sample_value("serve_app_shadow_copies_total", {"family": "iris", "outcome": outcome})
            for outcome in ("answered", "failed", "dropped")
        ]

    metrics.count_shadows({"iris": {"a": ShadowReport(version="v2", copied=5, failed=2, dropped=1)}})
    assert copies() == [3, 2, 1]
    metrics.count_shadows({"iris": {"a": ShadowReport(version="v2", copied=6, failed=2, dropped=4)}})
    assert copies() == [4, 2, 4]
    metrics.count_shadows({"iris": {"b": ShadowReport(version="v3", copied=1)}})
    metrics.count_shadows({})
    assert copies() == [5, 2, 4]
