"""Gateway: takes HTTP, holds the routes, and follows what the model replicas report."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import APIRouter
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve_app.adapters.clock import SystemClock
from serve_app.adapters.last_known import LastKnown
from serve_app.adapters.log_setup import set_up_logging
from serve_app.adapters.process_metrics import ProcessMetrics
from serve_app.adapters.prometheus_metrics import GatewayMetrics, MetricSnapshot, exposition, snapshot
from serve_app.adapters.route_metrics import RouteMetrics
from serve_app.adapters.token_file import TokenFile
from serve_app.config import AppConfig, FamilyConfig
from serve_app.config_limits import LimitsConfig
from serve_app.config_sources import RegistryConfig
from serve_app.deployments import front_door
from serve_app.deployments.event_wiring import make_feed
from serve_app.deployments.explain_client import HandleExplainClient
from serve_app.deployments.handles import HandleControlPlane, ask_all
from serve_app.deployments.label_wiring import Labels, make_labels
from serve_app.deployments.pool_client import PoolClient
from serve_app.deployments.record_wiring import make_mirror, make_recorder
from serve_app.deployments.window_handles import HandleTrainedEntities, HandleWindows
from serve_app.domain.errors import ServeAppError
from serve_app.domain.exposure import GatewayReport
from serve_app.domain.reload import RoutingTable
from serve_app.ingress.admin import Admin
from serve_app.ingress.api import build_api
from serve_app.ingress.explain import Explanations
from serve_app.ingress.feedback import feedback_router
from serve_app.ingress.forecasts import ForecastLimits, Temporal
from serve_app.ingress.hooks import Webhooks, hooks_router
from serve_app.ingress.inference import Inference, RequestLimits
from serve_app.usecases.coalesce_requests import BatchLimits
from serve_app.usecases.explain_prediction import ExplainLimits, ExplainPrediction
from serve_app.usecases.name_versions import NamedVersions, NamingSettings
from serve_app.usecases.ports import Clock
from serve_app.usecases.predict_windows import WindowForecaster
from serve_app.usecases.route_request import RequestRouter, Target

log = structlog.get_logger(__name__)

FIRST_ROUTES_S = 30.0
"""How long a gateway that knows no route waits for some before it takes traffic."""
FIRST_LOOK_PAUSE_S = 0.2

PoolHandles = dict[str, dict[str, DeploymentHandle[Any]]]
"""Handles by family and pool."""


class Gateway:
    """One replica of the HTTP ingress. Predictions go on with the last known routes while replicas do not report."""

    async def __init__(  # type: ignore[misc]  # Ray awaits a constructor that is async
        self,
        config: AppConfig,
        pools: PoolHandles,
        reconciler: DeploymentHandle[Any],
        stores: dict[str, DeploymentHandle[Any]],
    ) -> None:
        context = serve.get_replica_context()
        self._id = context.replica_id.unique_id
        self._own_handle = serve.get_deployment_handle(context.deployment, context.app_name)
        set_up_logging(config.logging.level, deployment=context.deployment, replica=self._id)
        limits = config.limits
        self._interval_s = config.gateway.pull_interval_s
        self._metrics = GatewayMetrics()
        ProcessMetrics(self._metrics.registry, context.deployment)
        self._route_metrics, self._is_plane_up = RouteMetrics(self._metrics.registry), False
        self._control = HandleControlPlane(reconciler)
        self._last_known = LastKnown(config.last_known("routes"))
        clock = SystemClock()
        self._hooks = hooks_router(
            Webhooks(config.webhook_secret, config.families_by_registered_model),
            plane=self._control,
            meter=self._metrics,
            clock=clock,
        )
        self._clients = _clients(pools, limits)
        self._router = _router(config, self._clients, self._metrics)
        self._stores = stores
        trained = HandleTrainedEntities(pools)
        self._forecasters = {
            family: WindowForecaster(family, self._router, store, trained=trained, clock=clock)
            for family, store in _windows(config, stores).items()
        }
        self._temporal = _temporal(config, self._forecasters, meter=self._metrics, clock=clock)
        self._admin = Admin.of(
            config, plane=self._control, tokens=TokenFile(config.token_file, clock=clock, fixed=config.fixed_tokens),
            meter=self._metrics, clock=clock, forecasters=self._forecasters,
            feed=make_feed(config, self._control, self._own_handle, self._id),
        )  # fmt: skip
        names = NamedVersions(
            self._router, self._control, {name: _naming_settings(family) for name, family in config.families.items()},
            refresh=self.refresh, clock=clock, max_waiting=limits.max_queued_requests,
        )  # fmt: skip
        self._labels = make_labels(config, self._metrics, clock=clock)
        self._recorder = make_recorder(config, self._metrics, clock=clock)
        self._inference = Inference(
            self._router, names, limits=RequestLimits(limits.max_body_bytes, limits.max_rows_per_request),
            meter=self._metrics, access_log=config.logging.access_log,
            elsewhere=self._temporal.paths if self._temporal is not None else frozenset(),
            mirror=make_mirror(config, self._metrics), recorder=self._recorder,
            memory=self._labels.memory if self._labels is not None else None,
        )  # fmt: skip
        self._explanations = Explanations(
            self._router, names, _explainer(self._clients, limits), max_body_bytes=limits.max_body_bytes,
            stores={family: forecaster.store for family, forecaster in self._forecasters.items()},
        )  # fmt: skip
        self._required = frozenset(name for name, family in config.families.items() if family.required)
        self._longest_load_s = max(family.load_timeout_s for family in config.families.values())
        await self._begin()

    async def _begin(self) -> None:
        """Take up the routes, wait for models, go on following, and open the door for requests."""
        table = await self._ask_table() or await asyncio.to_thread(self._last_known.read, RoutingTable)
        if table is not None:
            await self.follow(table)
        await self._await_models()
        self._following = asyncio.create_task(self._follow_forever())
        if self._labels is not None:
            self._remembering = asyncio.create_task(self._labels.memory.run())
        if self._recorder is not None:
            self._recording = asyncio.create_task(self._recorder.run())
        front_door.open_for(self._inference)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Give Ray Serve the ASGI application."""
        api = build_api(
            self._router,
            self._inference,
            required=self._required,
            collect_metrics=self._collect_metrics,
            admin=self._admin,
            hooks=self._hooks,
            temporal=self._temporal,
            explanations=self._explanations,
            feedback=_feedback(self._labels, self._admin),
        )
        return front_door.without_request_id(api)

    async def _await_models(self) -> None:
        """Look until every required family can answer or says why not: a gateway that is ready is led clients to."""
        begun_s = time.monotonic()
        while missing := self._router.awaiting_first(self._required):
            longest_s = FIRST_ROUTES_S + (self._longest_load_s if self._router.table.routes else 0)
            if time.monotonic() - begun_s >= longest_s:
                log.warning("no model yet", families=missing, waited_s=longest_s)
                return
            await asyncio.sleep(FIRST_LOOK_PAUSE_S)
            await self._look()

    async def _follow_forever(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(self._interval_s)

    async def _look(self) -> None:
        """Ask the replicas what they hold and the Reconciler for the routes, and follow."""
        try:
            await asyncio.gather(
                *(self._pull(family, pool) for family, pool in self._clients),
                *(forecaster.look() for forecaster in self._forecasters.values()),
            )
            await self.follow(await self._ask_table() or self._router.table)
        except Exception:
            log.exception("routes not refreshed")

    async def _ask_table(self) -> RoutingTable | None:
        """Ask the Reconciler for the table; None while it is away."""
        try:
            table = await self._control.table()
        except ServeAppError as error:
            log.warning("control plane away, the routes stay", reason=str(error))
            self._is_plane_up = False
            return None
        self._is_plane_up = True
        return table

    async def _pull(self, family: str, pool: str) -> None:
        self._router.observe(family, pool, await self._clients[family, pool].pull())

    async def follow(self, table: RoutingTable) -> int:
        """Route by this table from now on and return the generation in use; an older table is ignored."""
        awaited = self._router.awaited(table)
        await asyncio.gather(*(self._pull(family, pool) for family, pool in self._clients if family in awaited))
        known = self._router.table
        is_other = table.generation == known.generation and table.splits != known.splits
        is_new = table.generation > known.generation or is_other
        self._tell(self._router.follow(table))
        if (wait_s := self._router.waits_s()) is not None:
            asyncio.get_running_loop().call_later(wait_s, lambda: self._tell(self._router.take_up()))
        if is_new:
            await asyncio.to_thread(self._last_known.write, table.model_copy(update={"troubles": {}}))
        return self._router.generation

    async def refresh(self, family: str) -> None:
        """Ask the replicas of a family what they hold."""
        await asyncio.gather(*(self._pull(name, pool) for name, pool in self._clients if name == family))

    def _tell(self, changed: list[Target]) -> None:
        """Log and count the routes that have changed."""
        for target in changed:
            loaded = self._router.loaded(target.family, target.version)
            digest = loaded.digest if loaded else ""
            metrics = loaded.metrics if loaded else {}
            self._metrics.set_route(
                target.generation, target.family, target.version, target.pool, digest, metrics=metrics
            )
            log.info("route changed", family=target.family, version=target.version, generation=target.generation)

    async def name(self) -> str:
        """Return the name of this replica."""
        return self._id

    async def metrics(self) -> tuple[str, list[MetricSnapshot]]:
        """Return the name of this replica and its metrics."""
        self._metrics.set_generation(self._router.generation)
        self._route_metrics.tell(self._router, is_plane_up=self._is_plane_up)
        self._route_metrics.count_shadows(self._router.evidence(self._id).shadows)
        return self._id, snapshot(self._metrics.registry)

    async def evidence(self) -> GatewayReport:
        """Return what this process has counted of its splits since it began."""
        report = self._router.evidence(self._id)
        return report if self._labels is None else self._labels.joiner.book.merged_into(report)

    async def _collect_metrics(self) -> bytes:
        """Merge the metrics of all gateways and all model replicas; one that does not answer is left out."""
        pools = [client.handle for client in self._clients.values()]
        pools += self._stores.values()
        answers = await asyncio.gather(
            *(ask_all(handle, "metrics") for handle in (self._own_handle, self._control.handle, *pools))
        )
        by_replica = dict(answer for group in answers for answer in group)
        by_replica.setdefault(*await self.metrics())
        return exposition(sorted(by_replica.items()))

    async def check_health(self) -> None:
        """Fail when the task that follows the replicas has ended, which nothing but a defect can cause."""
        if self._following.done():
            raise RuntimeError(f"the following task of the gateway ended: {self._following}")


def _router(config: AppConfig, clients: dict[tuple[str, str], PoolClient], metrics: GatewayMetrics) -> RequestRouter:
    limits = config.limits
    return RequestRouter(
        tuple(config.families), default_family=config.default_family_name, clients=clients,
        limits=BatchLimits(
            limits.max_batch_rows, limits.max_batch_bytes, limits.max_queued_requests, limits.request_timeout_s
        ),
        on_batch=metrics.observe_batch,
    )  # fmt: skip


def _clients(pools: PoolHandles, limits: LimitsConfig) -> dict[tuple[str, str], PoolClient]:
    """Make what reaches the replicas of each pool, by family and pool."""
    return {
        (family, pool): PoolClient(
            handle, family=family, max_inflight=limits.max_inflight_calls, timeout_s=limits.request_timeout_s,
            max_batch_bytes=limits.max_batch_bytes,
        )
        for family, handles in pools.items()
        for pool, handle in handles.items()
    }  # fmt: skip


def _windows(config: AppConfig, stores: Mapping[str, DeploymentHandle[Any]]) -> dict[str, HandleWindows]:
    """Make what reaches the windows of each temporal family."""
    return {
        family: HandleWindows(handle, settings.rules)
        for family, handle in stores.items()
        if (settings := config.windows(family)) is not None
    }


def _feedback(labels: Labels | None, admin: Admin) -> APIRouter | None:
    """Build the route of labels; None where no family takes any."""
    return None if labels is None else feedback_router(labels.joiner, labels.limits, admin.of_ingest)


def _explainer(clients: Mapping[tuple[str, str], PoolClient], limits: LimitsConfig) -> ExplainPrediction:
    """Make what asks the replicas of each pool for explanations."""
    explainers = {
        key: HandleExplainClient(client.handle, timeout_s=limits.request_timeout_s) for key, client in clients.items()
    }
    return ExplainPrediction(explainers, ExplainLimits(limits.max_explained_rows, limits.max_explanations))


def _temporal(
    config: AppConfig, forecasters: Mapping[str, WindowForecaster], *, meter: GatewayMetrics, clock: Clock
) -> Temporal | None:
    """Put together what the routes of windows are made of; None where no family has windows."""
    if not forecasters:
        return None
    default = config.default_family_name
    windows = {family: settings for family in forecasters if (settings := config.windows(family)) is not None}
    return Temporal(
        forecasters,
        default=default if default in forecasters else next(iter(forecasters)),
        answers_for=default,
        limits=ForecastLimits(
            {family: settings.max_body_bytes for family, settings in windows.items()},
            config.limits.max_body_bytes,
            config.limits.max_rows_per_request,
        ),
        meter=meter,
        clock=clock,
    )


def _naming_settings(family: FamilyConfig) -> NamingSettings:
    source = family.source
    if not isinstance(source, RegistryConfig):
        return NamingSettings()
    return NamingSettings(source.naming, wait_s=source.demand_wait_s, renew_s=family.reload.interval_s)
