"""ModelReplica: holds versions of one family in memory and predicts with the one a batch asks for."""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

import numpy as np
import ray
import structlog
from numpy.typing import NDArray
from ray import serve

from serve_app.adapters.clock import SystemClock
from serve_app.adapters.link.link_server import LinkServer
from serve_app.adapters.loaders import LOADERS
from serve_app.adapters.log_setup import set_up_logging
from serve_app.adapters.prometheus_metrics import MetricSnapshot, ReplicaMetrics, snapshot
from serve_app.adapters.sources import SOURCES
from serve_app.config import AppConfig, PoolConfig, ReplicaUserConfig
from serve_app.domain.errors import ConfigError, UnknownVersionError
from serve_app.domain.status import LinkAddress, ReplicaStatus
from serve_app.usecases.load_model import LoadedModel, LoadPolicy, load_model

FRAME_SLACK_BYTES = 1 << 20
RETRY_DELAYS_S = (5.0, 10.0, 30.0, 60.0)
"""Waiting times between tries while the replica has no model at all; the last one repeats."""
log = structlog.get_logger(__name__)


class ModelReplica:
    """One replica of a pool. A model problem never makes it unhealthy: it keeps what it has and says what is wrong."""

    async def __init__(  # type: ignore[misc]  # Ray awaits a constructor that is async
        self, config: AppConfig, family: str, pool: PoolConfig) -> None:
        self._family, self._pool = family, pool.name
        self._settings = config.families[family]
        self._id = serve.get_replica_context().replica_id.unique_id
        set_up_logging(config.logging.level, family=family, pool=pool.name, replica=self._id)
        source = self._settings.source
        self._source = SOURCES[source.kind](config.source_root(family), manifest_name=source.manifest_name)
        self._policy = LoadPolicy(
            family, self._settings.models_type, self._settings.loader, config.security.allow_pickle_loaders
        )
        self._clock = SystemClock()
        self._metrics = ReplicaMetrics(family, pool.name)
        self._models: dict[str, LoadedModel] = {}
        self._wanted = ReplicaUserConfig().manifest_version
        self._active: str | None = None
        self._last_error: str | None = None
        self._wish_changed = asyncio.Event()
        self._wish_met = asyncio.Event()
        frame_bytes = config.limits.max_batch_bytes + FRAME_SLACK_BYTES
        self._link = LinkServer(self._predict, max_frame_bytes=frame_bytes)
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        self._address = LinkAddress(host=host, port=await self._link.start(host), secret=self._link.secret)
        self._loading = asyncio.create_task(self._load_forever())
        self._is_new = True

    async def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Record the wish and return. Only a new replica waits, so that it takes traffic with its model loaded.

        A configuration that cannot be read is logged and changes nothing: raising here would stop the replica.
        """
        try:
            wish = ReplicaUserConfig.parse(user_config)
        except ConfigError as error:
            self._last_error = f"user_config is refused: {error}"
            log.error("user_config refused", reason=str(error))
            return
        if wish.manifest_version != self._wanted or self._is_new:
            self._wanted = wish.manifest_version
            self._wish_met.clear()
            self._wish_changed.set()
        if self._is_new:
            self._is_new = False
            await self.wait_until_loaded(self._settings.load_timeout_s)

    async def wait_until_loaded(self, timeout_s: float) -> None:
        """Wait until the wish is met or has failed once, at most `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wish_met.wait()

    async def _load_forever(self) -> None:
        """Load what is wished for; with nothing loaded, try again by and by."""
        tries = 0
        while True:
            delay_s = None if self._active is not None else RETRY_DELAYS_S[min(tries, len(RETRY_DELAYS_S)) - 1]
            if tries == 0 or self._wish_changed.is_set():
                delay_s = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._wish_changed.wait()
                    tries = 0
            self._wish_changed.clear()
            wanted = self._wanted
            tries = 0 if await self._load(wanted) else tries + 1
            if wanted == self._wanted:
                self._wish_met.set()

    async def _load(self, version: str) -> bool:
        started_s = self._clock.monotonic_s()
        try:
            async with asyncio.timeout(self._settings.load_timeout_s):
                model = await asyncio.to_thread(
                    load_model, self._source, version, policy=self._policy, loaders=LOADERS, clock=self._clock
                )
        except Exception as error:
            self._last_error = str(error) or type(error).__name__
            self._metrics.observe_load(succeeded=False, seconds=self._clock.monotonic_s() - started_s)
            log.error("model not loaded", version=version, reason=self._last_error)
            return False
        facts = model.facts
        previous = self._active
        self._models[facts.version] = model
        self._active, self._last_error = facts.version, None
        for old in [name for name in self._models if name not in (facts.version, previous)]:
            del self._models[old]
        self._metrics.observe_load(succeeded=True, seconds=facts.load_seconds)
        self._metrics.set_resident_bytes(sum(m.facts.artifact_bytes for m in self._models.values()))
        log.info(
            "model loaded",
            version=facts.version,
            seconds=round(facts.load_seconds, 3),
            engine=facts.engine,
            previous=previous,
        )
        return True

    def _predict(self, version: str, rows: NDArray[np.float64]) -> NDArray[Any] | Awaitable[NDArray[Any]]:
        """Predict float64 rows (batch, n_inputs): at once when the model is quick, else in a thread."""
        model = self._models.get(version)
        if model is None:
            raise UnknownVersionError(self._family, version, list(self._models))
        if model.facts.runs_inline:
            return self._timed(model, rows)
        return asyncio.to_thread(self._timed, model, rows)

    def _timed(self, model: LoadedModel, rows: NDArray[np.float64]) -> NDArray[Any]:
        started_s = self._clock.monotonic_s()
        outputs = model.predictor.predict(rows)
        self._metrics.observe_predict(model.facts.version, self._clock.monotonic_s() - started_s)
        return outputs

    async def predict(self, version: str, rows: NDArray[np.float64]) -> NDArray[Any]:
        """Predict over the handle, the way round when there is no link.

        Raises:
            UnknownVersionError: The version is not loaded here.
        """
        outputs = self._predict(version, rows)
        return outputs if isinstance(outputs, np.ndarray) else await outputs

    async def status(self) -> ReplicaStatus:
        """Say what is loaded, what is wished for and what went wrong last."""
        return ReplicaStatus(
            replica_id=self._id, family=self._family, pool=self._pool, wanted=self._wanted, active=self._active,
            versions=tuple(model.facts for model in self._models.values()), last_error=self._last_error,
            link=self._address,
        )  # fmt: skip

    async def metrics(self) -> tuple[str, list[MetricSnapshot]]:
        """Return the name of this replica and its metrics."""
        return self._id, snapshot(self._metrics.registry)

    async def check_health(self) -> None:
        """Fail when the task that loads models has ended, which nothing but a defect can cause."""
        if self._loading.done():
            raise RuntimeError(f"the loading task of {self._family} ended: {self._loading}")

    async def __del__(self) -> None:
        """Let the batches that are under way finish; Ray calls this when the replica is drained."""
        await self._link.stop(grace_s=10.0)
