"""ModelReplica: holds versions of one family in memory and predicts with the one a batch asks for."""

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import ray
import structlog
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from ray import serve

from serve_app.adapters.beside_serving import beside_serving
from serve_app.adapters.clock import SystemClock
from serve_app.adapters.last_known import LastKnown
from serve_app.adapters.link.frames import FRAME_SLACK_BYTES
from serve_app.adapters.link.link_server import LinkServer
from serve_app.adapters.loaders import make_loaders
from serve_app.adapters.log_setup import set_up_logging
from serve_app.adapters.process_memory import ProcessMemory
from serve_app.adapters.process_metrics import ProcessMetrics
from serve_app.adapters.prometheus_metrics import MetricSnapshot, ReplicaMetrics, snapshot
from serve_app.adapters.sources import make_source
from serve_app.adapters.torch_device import Device, choose_device, give_back_device_memory
from serve_app.config import AppConfig, ReplicaUserConfig
from serve_app.config_pools import PoolConfig
from serve_app.deployments.handles import RECONCILER, HandleControlPlane
from serve_app.domain.errors import (
    CannotExplainError,
    ConfigError,
    ServeAppError,
    SourceError,
    UnavailableError,
    UnknownVersionError,
)
from serve_app.domain.model_slot import Slot, SlotState
from serve_app.domain.reload import VersionRef
from serve_app.domain.residency import NoRoomError
from serve_app.domain.status import LinkAddress, ReplicaStatus
from serve_app.usecases.explanation import Explaining, Explanation
from serve_app.usecases.hold_models import ResidencyLimits, ResidentModels
from serve_app.usecases.load_model import LoadedModel, LoadPolicy
from serve_app.usecases.model_room import ModelRoom
from serve_app.usecases.ports import TemporalPredictor

log = structlog.get_logger(__name__)

FIRST_WORD_S = 30.0
"""How long a replica that was never told anything waits for the Reconciler before it takes traffic."""
FIRST_WORD_PAUSE_S = 0.2


class HeldVersions(BaseModel):
    """What a replica was last told to hold: its document on disk for a start without the control plane."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refs: tuple[VersionRef, ...] = ()


class ModelReplica:
    """One replica of a pool. A model problem never makes it unhealthy: it keeps what it has and says what is wrong."""

    async def __init__(  # type: ignore[misc]  # Ray awaits a constructor that is async
        self, config: AppConfig, family: str, pool: PoolConfig
    ) -> None:
        self._family, self._pool = family, pool.name
        settings = config.families[family]
        context = serve.get_replica_context()
        self._id, self._app_name = context.replica_id.unique_id, context.app_name
        set_up_logging(config.logging.level, family=family, pool=pool.name, replica=self._id)
        self._metrics = ReplicaMetrics(family, pool.name)
        ProcessMetrics(self._metrics.registry, context.deployment)
        self._device = await asyncio.to_thread(
            choose_device, wants_cuda=pool.wants_cuda, precision=pool.precision, loader=settings.loader,
            num_gpus=pool.num_gpus,
        )  # fmt: skip
        self._metrics.set_device_fallback(is_fallback=self._device.is_fallback)
        if self._device.note is not None:
            log.warning("device", device=self._device.kind, reason=self._device.note)
        self._source = make_source(config.source(family), family=family, models_type=settings.models_type)
        self._models = ResidentModels(
            self._source,
            policy=LoadPolicy(
                family, settings.models_type, settings.loader, config.security.allow_pickle_loaders,
                golden_slack=self._device.golden_slack, windows=settings.kept_windows,
            ),
            loaders=make_loaders(config.security.mlflow, self._device),
            clock=SystemClock(),
            limits=ResidencyLimits(
                max_versions=settings.residency.max_versions,
                max_bytes=settings.residency.max_bytes,
                load_timeout_s=settings.load_timeout_s,
                grace_s=config.limits.request_timeout_s,
            ),
            room=ModelRoom(
                settings.residency.policy, memory=self._device.memory, max_bytes=settings.residency.max_bytes
            ),
            on_load_ended=self._count_load,
            beside_serving=beside_serving,
            give_back_memory=partial(_give_back, ProcessMemory(), self._device),
        )  # fmt: skip
        self._wanted = ReplicaUserConfig().manifest_version
        self._last_error: str | None = None
        self._config_error: str | None = None
        self._load_timeout_s = settings.load_timeout_s
        self._last_known = LastKnown(config.last_known(f"{family}-{pool.name}"))
        self._tasks: set[asyncio.Task[None]] = set()
        self._explaining = ThreadPoolExecutor(1, thread_name_prefix="explain")  # one: predictions come first
        self._link = LinkServer(self._predict, max_frame_bytes=config.limits.max_batch_bytes + FRAME_SLACK_BYTES)
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        self._address = LinkAddress(host=host, port=await self._link.start(host), secret=self._link.secret)
        await self._catch_up()

    async def reconfigure(self, user_config: Any) -> None:
        """Record the wish and return; the Reconciler reads it from `status` and acts on it.

        A configuration that cannot be read is told and changes nothing: raising here would stop the replica.
        """
        try:
            self._wanted = ReplicaUserConfig.parse(user_config).manifest_version
        except ConfigError as error:
            self._config_error = f"user_config is refused, {self._wanted!r} stays the wish: {error}"
            log.error("user_config refused", reason=str(error))
        else:
            self._config_error = None

    async def _catch_up(self) -> None:
        """Load what is in use before taking traffic: as the Reconciler says, or as it last said while it is away."""
        refs = await self._wanted_at_start()
        if refs:
            self._models.pin([ref.version for ref in refs])  # else versions on demand could push them out
            try:
                async with asyncio.timeout(self._load_timeout_s):
                    await self._load_all(refs)
            except TimeoutError:
                log.error("not all versions loaded at start", wanted=[ref.version for ref in refs])

    async def _wanted_at_start(self) -> tuple[VersionRef, ...]:
        """Return what the Reconciler says, or last said while it is away; where nothing was said here yet, wait for it.

        In a new cluster both start at once, and a replica that is ready without a model would be led traffic to.
        """
        reconciler = HandleControlPlane(serve.get_deployment_handle(RECONCILER, self._app_name))
        deadline_s = time.monotonic() + FIRST_WORD_S
        while True:
            try:
                return await reconciler.wanted(self._family)
            except UnavailableError as error:
                held = await asyncio.to_thread(self._last_known.read, HeldVersions)
                if held is None and time.monotonic() < deadline_s:
                    await asyncio.sleep(FIRST_WORD_PAUSE_S)
                    continue
                refs = held.refs if held is not None else ()
                log.warning("control plane away at start", reason=str(error), last_known=[ref.version for ref in refs])
                return refs

    async def prepare(self, refs: tuple[VersionRef, ...], unloading: tuple[str, ...] = ()) -> None:
        """Start to load these beside what is served, and return.

        Where `unloading` names this replica, one that does not fit is loaded in the place of less important ones.
        """
        self._models.pin([ref.version for ref in refs])
        self._start(self._load_all(refs, may_unload=self._id in unloading))

    async def load(self, ref: VersionRef) -> None:
        """Start to load a version that requests name, and return; it stays for as long as it is used enough."""
        self._start(self._load_on_demand(ref))

    async def hold(self, refs: tuple[VersionRef, ...]) -> None:
        """Keep these, cancel other loads, let go of versions that are neither these nor lately used, and return."""
        versions = [ref.version for ref in refs]
        self._models.pin(versions)
        self._models.cancel_others(versions)
        self._start(self._let_go(refs))

    async def evict(self, version: str) -> None:
        """Let go of a version now, unless it is one to hold."""
        await self._models.evict(version)

    async def _load_all(self, refs: Sequence[VersionRef], *, may_unload: bool = False) -> None:
        """Load all, in this order; all are known at once, so that `hold` can cancel those that still wait."""
        names = [ref.version for ref in refs]
        loads = [
            self._models.prepare(ref.version, ref.digest, yielding=names[:i:-1] if may_unload else None)
            for i, ref in enumerate(refs)
        ]
        outcomes = await asyncio.gather(*loads, return_exceptions=True)
        told, self._last_error = self._last_error, None
        left_out = self._models.left_out()
        for ref, outcome in zip(refs, outcomes, strict=True):
            if isinstance(outcome, NoRoomError) and ref.digest in left_out:
                log.info("version left out for now", version=ref.version, reason=str(outcome))
            elif isinstance(outcome, Exception):
                self._last_error = f"{ref.version}: {outcome}"
                if self._last_error == told and isinstance(outcome, SourceError):
                    continue  # it is tried again and again until it can be read
                log.error("model not loaded", version=ref.version, reason=str(outcome))

    async def _load_on_demand(self, ref: VersionRef) -> None:
        """Load one; what goes wrong is told by its digest, and is no trouble of this replica."""
        try:
            await self._models.demand(ref.version, ref.digest)
        except ServeAppError as error:
            log.warning("model not loaded on demand", version=ref.version, reason=str(error))

    async def _let_go(self, refs: tuple[VersionRef, ...]) -> None:
        await asyncio.to_thread(self._last_known.write, HeldVersions(refs=refs))
        await asyncio.to_thread(self._source.keep, [ref.version for ref in refs])
        await self._models.release()

    def _count_load(self, slot: Slot) -> None:
        self._metrics.observe_load(succeeded=slot.state is SlotState.READY, seconds=sum(slot.stage_seconds.values()))
        for stage, seconds in slot.stage_seconds.items():
            self._metrics.observe_stage(stage, seconds)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _predict(self, version: str, rows: NDArray[np.float64]) -> NDArray[Any] | Awaitable[NDArray[Any]]:
        """Predict float64 rows (batch, n_inputs): at once when the model is quick, else in a thread."""
        model = self._models.get(version)
        if model is None:
            raise UnknownVersionError(self._family, version, [facts.version for facts in self._models.facts()])
        if model.facts.runs_inline:
            return self._timed(model, rows)
        return asyncio.to_thread(self._timed, model, rows)

    def _timed(self, model: LoadedModel, rows: NDArray[np.float64]) -> NDArray[Any]:
        started_s = time.perf_counter()
        outputs = model.predictor.predict(rows)
        self._metrics.observe_predict(model.facts.version, time.perf_counter() - started_s)
        return outputs

    async def predict(self, version: str, rows: NDArray[np.float64]) -> NDArray[Any]:
        """Predict over the handle, the way round when there is no link.

        Raises:
            UnknownVersionError: The version is not loaded here.
        """
        outputs = self._predict(version, rows)
        return outputs if isinstance(outputs, np.ndarray) else await outputs

    async def explain(self, version: str, rows: NDArray[np.float64]) -> Explanation:
        """Say what the predictions of these rows by this version rest on; explanations wait for each other.

        Raises:
            UnknownVersionError: The version is not loaded here.
            CannotExplainError: It is of a kind that cannot be explained.
        """
        model = self._models.get(version)
        if model is None:
            raise UnknownVersionError(self._family, version, [facts.version for facts in self._models.facts()])
        if not isinstance(model.predictor, Explaining):
            raise CannotExplainError(f"version {version!r} of {self._family!r} is of a kind that cannot be explained")
        return await asyncio.get_running_loop().run_in_executor(self._explaining, model.predictor.explain, rows)

    async def entities(self, version: str) -> tuple[str, ...] | None:
        """Return what a temporal version was trained on; None where it is not loaded here or is no such model."""
        model = self._models.get(version)
        predictor = None if model is None else model.predictor
        return predictor.entities if isinstance(predictor, TemporalPredictor) else None

    async def status(self) -> ReplicaStatus:
        """Say what is loaded, what is wished for and what went wrong last."""
        return ReplicaStatus(
            replica_id=self._id,
            family=self._family,
            pool=self._pool,
            wanted=self._wanted,
            versions=tuple(self._models.facts()),
            loading=self._models.loading(),
            failed=self._models.failed(),
            last_error=self._config_error or self._last_error,
            link=self._address,
            device=self._device.kind,
            device_note=self._device.note,
            no_room=self._models.left_out(),
            unread=self._models.unread(),
        )

    async def metrics(self) -> tuple[str, list[MetricSnapshot]]:
        """Return the name of this replica and its metrics."""
        facts = self._models.facts()
        self._metrics.set_resident_versions(len(facts))
        self._metrics.set_resident_bytes(sum(version.artifact_bytes for version in facts))
        self._metrics.count_cache(self._models.counts())
        return self._id, snapshot(self._metrics.registry)

    async def __del__(self) -> None:
        """Let the batches that are under way finish; Ray calls this when the replica is drained."""
        self._explaining.shutdown(wait=False, cancel_futures=True)
        await self._link.stop(grace_s=10.0)


def _give_back(process: ProcessMemory, device: Device) -> None:
    """Give back what models left that were let go of: first that of the process, for the device's hangs on it."""
    process.give_back()
    if device.kind == "cuda":
        give_back_device_memory()
