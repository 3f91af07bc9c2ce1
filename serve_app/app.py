"""build_app(): the composition root. Turns an AppConfig into the Ray Serve application; the only place that wires."""

import os
from pathlib import Path
from typing import Any

import ray
import structlog
from ray import serve
from ray.serve import Application, Deployment

from serve_app.config import AppConfig, ReplicaUserConfig
from serve_app.config_env import with_overrides
from serve_app.config_pools import PoolConfig
from serve_app.config_rollout import ReconcilerUserConfig
from serve_app.deployments.gateway import Gateway
from serve_app.deployments.handles import GATEWAY, RECONCILER
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.reconciler import Reconciler
from serve_app.deployments.window_store import WindowStore

MANY_REQUESTS = 100_000
"""`max_ongoing_requests`: the coalescers and their bounded queues hold requests back, Ray is not to."""
HEALTH_CHECK_PERIOD_S = 1
"""Serve learns of a dead replica by its next check only: with 5 s, it had no other for up to 5.5 s."""
log = structlog.get_logger(__name__)


def build_app(args: dict[str, Any]) -> Application:
    """Build the application from the `args` of a Serve config file.

    With `allow_env_overrides` the environment counts in which this runs: that of the task in which Serve's controller
    builds an application, so that of the Ray node it runs on, not that of the shell that calls `serve deploy`.

    Raises:
        ConfigError: With one sentence for every wrong key or value.
    """
    config = AppConfig.parse(with_overrides(args, os.environ, working_dir=Path.cwd()))
    pools = {
        family: {pool.name: _pool(config, family, pool) for pool in settings.pools}
        for family, settings in config.families.items()
    }
    stores = {family: _window_store(config, family) for family in config.temporal_families}
    gateway: Deployment = serve.deployment(serve.ingress()(Gateway))  # type: ignore[assignment]  # Ray's overloads
    return gateway.options(
        name=GATEWAY,
        num_replicas=config.gateway.num_replicas,
        max_ongoing_requests=MANY_REQUESTS,
        ray_actor_options={"num_cpus": config.gateway.num_cpus},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        logging_config={"enable_access_log": False},
    ).bind(config, pools, _reconciler(config, pools, stores), stores)


def _reconciler(
    config: AppConfig, pools: dict[str, dict[str, Application]], stores: dict[str, Application]
) -> Application:
    reconciler: Deployment = serve.deployment(Reconciler)  # type: ignore[assignment]  # Ray's overloads
    return reconciler.options(
        name=RECONCILER,
        num_replicas=1,
        max_ongoing_requests=MANY_REQUESTS,
        ray_actor_options={"num_cpus": config.reconciler.num_cpus},
        user_config=ReconcilerUserConfig().model_dump(),
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        logging_config={"enable_access_log": False},
    ).bind(config, pools, stores)


def _window_store(config: AppConfig, family: str) -> Application:
    settings = config.windows(family)
    assert settings is not None, "only families with windows have a store"
    store: Deployment = serve.deployment(WindowStore)  # type: ignore[assignment]  # Ray's overloads
    return store.options(
        name=f"{family}-windows",
        num_replicas=1,
        max_ongoing_requests=MANY_REQUESTS,
        ray_actor_options={"num_cpus": settings.num_cpus},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        logging_config={"enable_access_log": False},
    ).bind(config, family)


def _pool(config: AppConfig, family: str, pool: PoolConfig) -> Application:
    replica: Deployment = serve.deployment(ModelReplica)  # type: ignore[assignment]  # Ray's overloads
    return replica.options(
        name=f"{family}-{pool.name}",
        num_replicas=pool.num_replicas,
        max_ongoing_requests=MANY_REQUESTS,
        ray_actor_options={"num_cpus": pool.num_cpus, "num_gpus": _num_gpus(family, pool)},
        user_config=ReplicaUserConfig().model_dump(),
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        logging_config={"enable_access_log": False},
    ).bind(config, family, pool)


def _num_gpus(family: str, pool: PoolConfig) -> float:
    """Return the GPUs to reserve: none in a cluster that has none, where the replica would wait for one for ever.

    It then runs on the CPU and says so. A cluster that adds GPU nodes only when asked needs one of them from the start.
    """
    if pool.num_gpus == 0 or not ray.is_initialized():
        return pool.num_gpus
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    if resources.get("GPU", 0.0) == 0:
        log.warning("no GPU in this cluster, the pool runs on the CPU", family=family, pool=pool.name)
        return 0.0
    return pool.num_gpus
