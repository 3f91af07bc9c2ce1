"""Gateway: takes HTTP, holds the routes, and follows what the model replicas report."""

import asyncio
from typing import Any

import structlog
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.adapters.log_setup import set_up_logging
from serve_app.adapters.prometheus_metrics import GatewayMetrics, MetricSnapshot, exposition, snapshot
from serve_app.config import AppConfig
from serve_app.deployments import front_door
from serve_app.deployments.pool_client import PoolClient
from serve_app.ingress.api import Api, build_api
from serve_app.ingress.inference import Inference, RequestLimits
from serve_app.usecases.coalesce_requests import BatchLimits
from serve_app.usecases.route_request import RequestRouter

METRICS_TIMEOUT_S = 3.0
log = structlog.get_logger(__name__)

PoolHandles = dict[str, dict[str, DeploymentHandle[Any]]]
"""Handles by family and pool."""


class Gateway:
    """One replica of the HTTP ingress. Predictions go on with the last known routes while replicas do not report."""

    async def __init__(  # type: ignore[misc]  # Ray awaits a constructor that is async
        self, config: AppConfig, pools: PoolHandles) -> None:
        context = serve.get_replica_context()
        self._id = context.replica_id.unique_id
        self._own_handle = serve.get_deployment_handle(context.deployment, context.app_name)
        set_up_logging(config.logging.level, deployment=context.deployment, replica=self._id)
        limits = config.limits
        self._interval_s = config.gateway.pull_interval_s
        self._metrics = GatewayMetrics()
        self._clients = {
            (family, pool): PoolClient(
                handle, family=family, max_inflight=limits.max_inflight_calls, timeout_s=limits.request_timeout_s,
                max_batch_bytes=limits.max_batch_bytes,
            )
            for family, handles in pools.items()
            for pool, handle in handles.items()
        }  # fmt: skip
        self._router = RequestRouter(
            tuple(config.families), default_family=config.default_family_name, clients=self._clients,
            limits=BatchLimits(
                limits.max_batch_rows, limits.max_batch_bytes, limits.max_queued_requests, limits.request_timeout_s
            ),
            on_batch=self._metrics.observe_batch,
        )  # fmt: skip
        self._inference = Inference(
            self._router, limits=RequestLimits(limits.max_body_bytes, limits.max_rows_per_request), meter=self._metrics,
            access_log=config.logging.access_log,
        )  # fmt: skip
        self._required = frozenset(name for name, family in config.families.items() if family.required)
        await self._pull_all()
        self._following = asyncio.create_task(self._follow_forever())
        front_door.open_for(self._inference)

    def __serve_build_asgi_app__(self) -> Api:
        """Give Ray Serve the ASGI application."""
        return build_api(self._router, self._inference, required=self._required, collect_metrics=self._collect_metrics)

    async def _follow_forever(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self._pull_all()
            except Exception:
                log.exception("routes not refreshed")

    async def _pull_all(self) -> None:
        await asyncio.gather(*(self._pull(family, pool, client) for (family, pool), client in self._clients.items()))

    async def _pull(self, family: str, pool: str, client: PoolClient) -> None:
        target = self._router.follow(family, pool, await client.pull())
        if target is None:
            return
        loaded = self._router.loaded(target.family, target.version)
        self._metrics.set_route(target.generation, family, target.version, pool, loaded.digest if loaded else "")
        log.info("route changed", family=family, version=target.version, pool=pool, generation=target.generation)

    async def metrics(self) -> tuple[str, list[MetricSnapshot]]:
        """Return the name of this replica and its metrics."""
        return self._id, snapshot(self._metrics.registry)

    async def _collect_metrics(self) -> bytes:
        """Merge the metrics of all gateways and all model replicas; one that does not answer is left out."""
        handles = [self._own_handle, *(client.handle for client in self._clients.values())]
        answers = await asyncio.gather(*(_ask_all(handle) for handle in handles))
        by_replica = dict(answer for group in answers for answer in group)
        by_replica.setdefault(*await self.metrics())
        return exposition(sorted(by_replica.items()))

    async def check_health(self) -> None:
        """Fail when the task that follows the replicas has ended, which nothing but a defect can cause."""
        if self._following.done():
            raise RuntimeError(f"the following task of the gateway ended: {self._following}")


async def _ask_all(handle: DeploymentHandle[Any]) -> list[tuple[str, list[MetricSnapshot]]]:
    try:
        answers = await handle.broadcast("metrics").results_async(timeout_s=METRICS_TIMEOUT_S, return_exceptions=True)
    except Exception as error:
        log.warning("metrics of a deployment are left out", reason=str(error))
        return []
    return [answer for answer in answers if isinstance(answer, tuple)]
