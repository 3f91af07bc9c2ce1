"""How one gateway sees the rest: which families can be answered, what their replicas hold, what waits, who is away."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from serve_app.domain.exposure import ShadowReport
from serve_app.usecases.route_request import RequestRouter


class RouteMetrics:
    """Gauges of the routes, told anew whenever somebody asks for the metrics. Labels: family; replicas have a pool."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ready = Gauge("serve_app_family_ready", "1 while requests are answered.", ["family"], registry=registry)
        self._replicas = Gauge(
            "serve_app_replicas", "Model replicas that report.", ["family", "pool"], registry=registry
        )
        self._behind = Gauge(
            "serve_app_replicas_behind", "Model replicas without the bundle that answers by default.", ["family"],
            registry=registry,
        )  # fmt: skip
        self._queued = Gauge(
            "serve_app_queued_requests", "Requests that wait for a call to a model replica.", ["family"],
            registry=registry,
        )  # fmt: skip
        self._calls = Gauge(
            "serve_app_inflight_calls", "Calls to model replicas that are out.", ["family"], registry=registry
        )
        self._source = Gauge(
            "serve_app_source_up", "0 where the last look at the source failed.", ["family"], registry=registry
        )
        self._plane = Gauge("serve_app_control_plane_up", "0 while the Reconciler does not answer.", registry=registry)
        self._copies = Counter(
            "serve_app_shadow_copies", "Requests for a shadow, by what became of the copy.", ["family", "outcome"],
            registry=registry,
        )  # fmt: skip
        self._counted: dict[tuple[str, str], ShadowReport] = {}

    def tell(self, router: RequestRouter, *, is_plane_up: bool) -> None:
        """Take in how things stand."""
        self._plane.set(int(is_plane_up))
        pools: dict[tuple[str, str], int] = {}
        for family in router.families:
            statuses = router.statuses(family)
            self._ready.labels(family).set(int(router.current(family) is not None))
            for status in statuses:
                pools[family, status.pool] = pools.get((family, status.pool), 0) + 1
            route = router.table.routes.get(family)
            behind = [s for s in statuses if route is not None and not s.holds_bundle(route.version, route.digest)]
            self._behind.labels(family).set(len(behind))
            queued, calls = router.load(family)
            self._queued.labels(family).set(queued)
            self._calls.labels(family).set(calls)
            source = router.source(family)
            self._source.labels(family).set(int(source is None or source.status != "error"))
        self._replicas.clear()
        for (family, pool), n in pools.items():
            self._replicas.labels(family, pool).set(n)

    def count_shadows(self, shadows: dict[str, dict[str, ShadowReport]]) -> None:
        """Bring the counters up to what was counted of shadows, by family and by the salt of their split."""
        counted = {(family, salt): told for family, by_salt in shadows.items() for salt, told in by_salt.items()}
        for (family, salt), told in counted.items():
            before = self._counted.get((family, salt))
            for outcome, n in _outcomes(told).items():
                more = n - (0 if before is None else _outcomes(before)[outcome])
                self._copies.labels(family, outcome).inc(max(more, 0))
        self._counted = counted


def _outcomes(told: ShadowReport) -> dict[str, int]:
    return {"answered": told.copied - told.failed, "failed": told.failed, "dropped": told.dropped}
