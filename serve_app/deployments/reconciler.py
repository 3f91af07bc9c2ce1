"""Reconciler: the control loop; one replica, the only writer of the state store."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import structlog
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.adapters.clock import SystemClock
from serve_app.adapters.last_known import LastKnown
from serve_app.adapters.loaders.environment_check import running_environment
from serve_app.adapters.log_setup import set_up_logging
from serve_app.adapters.process_metrics import ProcessMetrics
from serve_app.adapters.prometheus_metrics import MetricSnapshot, ReloadMetrics, snapshot
from serve_app.adapters.retrain_memory import FileRetrainMemory
from serve_app.adapters.retrain_metrics import RetrainMetrics
from serve_app.adapters.rollout_metrics import RolloutMetrics
from serve_app.adapters.sources import make_source
from serve_app.adapters.state_store import SqlStateStore
from serve_app.adapters.trial import SubprocessTrial, TrialSettings
from serve_app.config import AppConfig
from serve_app.config_rollout import plan_problems
from serve_app.config_sources import RegistryConfig
from serve_app.deployments.deployed_plans import DeployedPlans
from serve_app.deployments.event_wiring import deliver_for_ever, make_deliveries
from serve_app.deployments.handles import HandleFleet, HandleGateways
from serve_app.deployments.ray_jobs import RayJobs
from serve_app.deployments.record_wiring import make_replayer
from serve_app.deployments.window_handles import HandleWindows
from serve_app.domain.diff_report import ShadowDiff
from serve_app.domain.errors import ServeAppError
from serve_app.domain.events import EventPage
from serve_app.domain.experiment_report import ExperimentReport
from serve_app.domain.following import FollowRule
from serve_app.domain.naming import Named
from serve_app.domain.recording import ReplayReport
from serve_app.domain.reload import AuditEntry, KnownVersion, Operation, RoutingTable, VersionRef
from serve_app.domain.residency import ResidencyPolicy
from serve_app.domain.rollout import Command
from serve_app.domain.rollout_record import RolloutReport
from serve_app.usecases.advance_rollout import RolloutAdvancer
from serve_app.usecases.control_replays import ReplayControl
from serve_app.usecases.control_rollouts import RolledFamily
from serve_app.usecases.control_versions import VersionControl
from serve_app.usecases.controlled_family import ControlledFamily
from serve_app.usecases.demand_versions import VersionDemands
from serve_app.usecases.follow_source import SourceFollower
from serve_app.usecases.keep_plans import PlanKeeper
from serve_app.usecases.keep_shadows import ShadowKeeper
from serve_app.usecases.keep_state import StateKeeper
from serve_app.usecases.load_model import LoadPolicy
from serve_app.usecases.ports import TrialLimits
from serve_app.usecases.reload_model import ModelReloader, ReloadPolicy
from serve_app.usecases.retrain_model import ModelRetrainer

log = structlog.get_logger(__name__)


class Reconciler:
    """Ray's shell around `VersionControl`. Predictions do not need it: killed, it goes on where the store says."""

    async def __init__(  # type: ignore[misc]  # Ray awaits a constructor that is async
        self,
        config: AppConfig,
        pools: dict[str, dict[str, DeploymentHandle[Any]]],
        stores: dict[str, DeploymentHandle[Any]],
    ) -> None:
        context = serve.get_replica_context()
        self._id = context.replica_id.unique_id
        set_up_logging(config.logging.level, deployment=context.deployment, replica=self._id)
        self._tick_s = config.reconciler.tick_s
        self._metrics = ReloadMetrics(config.families)
        ProcessMetrics(self._metrics.registry, context.deployment)
        retrained = [name for name, family in config.families.items() if family.retrain is not None]
        self._retrain_metrics = RetrainMetrics(self._metrics.registry, retrained)
        self._rollout_metrics = RolloutMetrics(self._metrics.registry, config.families)
        self._clock = SystemClock()
        self._fleet = HandleFleet(pools)
        self._gateways = ShadowKeeper(
            HandleGateways(context.app_name), memory=LastKnown(config.last_known("shadows")), clock=self._clock
        )
        self._trial = SubprocessTrial({name: _trial_settings(config, name) for name in config.families})
        self._keeper = StateKeeper(SqlStateStore(config.store_url))
        self._plans = PlanKeeper({name: family.rollout for name, family in config.families.items()})
        self._rolled_out = {name: family.rolled_out for name, family in config.families.items()}
        self._deployed = DeployedPlans(
            self._plans, self._rolled_out, last=LastKnown(config.last_known("reconciler-user-config")),
            on_taken=self._rollout_metrics.set_plans_refused,
        )  # fmt: skip
        await self._deployed.recall()
        families = {name: self._controlled(config, name, stores.get(name)) for name in config.families}
        self._control = VersionControl(
            families,
            owner=f"{config.reconciler.cluster}:{context.app_name}",
            keeper=self._keeper,
            fleet=self._fleet,
            gateways=self._gateways,
            clock=self._clock,
            meter=self._metrics,
        )
        self._replays = ReplayControl(
            {name: family.source for name, family in families.items()},
            [name for name, family in config.families.items() if family.record is not None],
            replayer=make_replayer(config, _trial_settings), shadows=self._gateways, rollouts=self._control.rollouts,
        )  # fmt: skip
        self._warming = asyncio.create_task(self._warm_up())
        await self._until_stored()
        self._loops = self._begin_loops(config, families)
        self._preloading = [
            asyncio.create_task(self._preload(name, demands, family.source.preloaded))
            for name, family in config.families.items()
            if isinstance(family.source, RegistryConfig) and (demands := families[name].demands) is not None
        ]

    def _begin_loops(self, config: AppConfig, families: Mapping[str, ControlledFamily]) -> list[asyncio.Task[None]]:
        """Begin all that goes on for as long as this process does."""
        deliveries = make_deliveries(
            config, self._keeper, leads=self._leads, clock=self._clock, registry=self._metrics.registry
        )
        return [
            asyncio.create_task(self._lead()),
            *(asyncio.create_task(self._follow(name)) for name in families),
            *(
                asyncio.create_task(self._retrain(name, family.retrainer))
                for name, family in families.items()
                if family.retrainer is not None
            ),
            *(asyncio.create_task(deliver_for_ever(one, self._keeper, leads=self._leads)) for one in deliveries),
        ]

    def _controlled(self, config: AppConfig, name: str, store: DeploymentHandle[Any] | None) -> ControlledFamily:
        """Put together what controls one family."""
        family = config.families[name]
        source = make_source(config.source(name), family=name, models_type=family.models_type)
        rule = FollowRule(family.reload.mode, family.reload.interval_s)
        policy = ReloadPolicy(
            TrialLimits(family.trial.timeout_s, family.trial.memory_bytes),
            family.load_timeout_s,
            unloads_first=family.residency.policy is ResidencyPolicy.RESOURCE_PRESERVING,
        )
        demands = None
        if isinstance(family.source, RegistryConfig):
            demands = VersionDemands(
                name, family.source.naming, source=source, fleet=self._fleet, trial=self._trial, policy=policy,
                clock=self._clock, meter=self._metrics, remember_s=family.reload.interval_s,
            )  # fmt: skip
        reloader = ModelReloader(
            name, policy, keeper=self._keeper, fleet=self._fleet, gateways=self._gateways, trial=self._trial,
            clock=self._clock, meter=self._metrics,
        )  # fmt: skip
        advancer = RolloutAdvancer(
            name, reloader=reloader, keeper=self._keeper, fleet=self._fleet, gateways=self._gateways,
            clock=self._clock, meter=self._rollout_metrics,
        )  # fmt: skip
        return ControlledFamily(
            source=source,
            follower=SourceFollower(name, source, rule, fleet=self._fleet, clock=self._clock, meter=self._metrics),
            reloader=reloader,
            demands=demands,
            retrainer=self._retrainer(config, name, store),
            rolled=RolledFamily(
                advancer,
                self._plans,
                partial(plan_problems, family=self._rolled_out[name]),
            ),
            tried_under=config.tried_under(name, running_environment()),
        )

    def _retrainer(self, config: AppConfig, name: str, store: DeploymentHandle[Any] | None) -> ModelRetrainer | None:
        settings, windows = config.families[name].retrain, config.windows(name)
        if settings is None or windows is None or store is None:
            return None
        return ModelRetrainer(
            name, settings.rules, store=HandleWindows(store, windows.rules), jobs=RayJobs(config, name),
            memory=FileRetrainMemory(config.last_known(f"retraining-{name}")), clock=self._clock,
            meter=self._retrain_metrics,
        )  # fmt: skip

    async def _warm_up(self) -> None:
        """Have a trial worker ready before the first reload; it takes seconds to import what loaders need."""
        try:
            await self._trial.warm()
        except ServeAppError as error:
            log.warning("no trial worker yet, the first trial starts one", reason=str(error))

    async def _until_stored(self) -> None:
        """Read the store before anything is answered; wait while it cannot be read."""
        while True:
            try:
                await self._keeper.refresh()
                await self._control.keep_lease()
            except ServeAppError as error:
                log.error("state store not readable", reason=str(error), next_try_s=self._tick_s)
                await asyncio.sleep(self._tick_s)
            else:
                return

    async def _lead(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            try:
                await self._control.keep_lease()
            except ServeAppError as error:
                self._metrics.set_store(is_up=False, leads=self._control.leads)
                log.error("lease not renewed", reason=str(error))
            except Exception:
                self._metrics.set_store(is_up=False, leads=self._control.leads)
                log.exception("lease not renewed")
            else:
                self._metrics.set_store(is_up=True, leads=self._control.leads)

    async def reconfigure(self, user_config: Any) -> None:
        """Take the plans of a deploy for the rollouts that begin from now on. Returns at once.

        A configuration that cannot be gone by is told and changes nothing: raising here would stop the replica. Ray
        calls this once before the first request, and again whenever a deploy says something else.
        """
        self._deployed.take(user_config)

    async def _follow(self, family: str) -> None:
        await self._deployed.known.wait()  # else a new version could go by another plan than the one that was deployed
        while True:
            try:
                await self._control.tick(family)
            except ServeAppError as error:
                log.error("family not reconciled", family=family, reason=str(error))
            except Exception:
                log.exception("family not reconciled", family=family)
            await self._control.turn(family, self._tick_s)

    async def _retrain(self, family: str, retrainer: ModelRetrainer) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            try:
                if self._control.leads:
                    await retrainer.tick()
            except Exception:
                log.exception("retraining not looked after", family=family)

    async def _preload(self, family: str, demands: VersionDemands, wanted: Sequence[Named]) -> None:
        """Have what is to be loaded at start loaded, after the family's own model."""
        while wanted and self._control.record(family).active is None:
            await asyncio.sleep(self._tick_s)
        await demands.preload(wanted)

    async def table(self) -> RoutingTable:
        """What gateways are to follow."""
        return self._control.table

    async def wanted(self, family: str) -> tuple[VersionRef, ...]:
        """What a replica of a family is to hold."""
        return self._control.wanted(family)

    async def reload(self, family: str, **wish: Any) -> Operation:
        """See `ControlPlane.reload`."""
        return await self._control.reload(family, **wish)

    async def rollback(self, family: str, **wish: Any) -> Operation:
        """See `ControlPlane.rollback`."""
        return await self._control.rollback(family, **wish)

    async def rollouts(self) -> list[RolloutReport]:
        """See `ControlPlane.rollouts`."""
        return await self._control.rollouts()

    async def rollout_report(self, family: str) -> ExperimentReport:
        """See `ControlPlane.rollout_report`."""
        return await self._control.rollout_report(family)

    async def start_rollout(self, family: str, **wish: Any) -> RolloutReport:
        """See `ControlPlane.start_rollout`."""
        return await self._control.start_rollout(family, **wish)

    async def command_rollout(self, family: str, command: Command, **wish: Any) -> RolloutReport:
        """See `ControlPlane.command_rollout`."""
        return await self._control.command_rollout(family, command, **wish)

    async def shadow(self, family: str) -> ShadowDiff:
        """See `ReplayPlane.shadow`."""
        return await self._replays.shadow(family)

    async def replay(self, family: str, **wish: Any) -> ReplayReport:
        """See `ReplayPlane.replay`."""
        return await self._replays.replay(family, **wish)

    async def demand(self, family: str, **wish: Any) -> VersionRef:
        """See `ControlPlane.demand`."""
        return await self._control.demand(family, **wish)

    async def look(self, family: str) -> None:
        """See `ControlPlane.look`."""
        await self._control.look(family)

    async def operation(self, operation_id: str) -> Operation | None:
        """See `ControlPlane.operation`."""
        return await self._control.operation(operation_id)

    async def versions(self, family: str) -> list[KnownVersion]:
        """See `ControlPlane.versions`."""
        return await self._control.versions(family)

    async def audit(self, *, family: str | None, limit: int) -> list[AuditEntry]:
        """See `ControlPlane.audit`."""
        return await self._control.audit(family=family, limit=limit)

    def _leads(self) -> bool:
        return self._control.leads

    async def events(self, **wish: Any) -> EventPage:
        """See `EventPlane.events`."""
        return await self._control.events(**wish)

    async def metrics(self) -> tuple[str, list[MetricSnapshot]]:
        """Return the name of this replica and its metrics."""
        return self._id, snapshot(self._metrics.registry)

    async def check_health(self) -> None:
        """Fail when a loop has ended, which nothing but a defect can cause."""
        if ended := [loop for loop in self._loops if loop.done()]:
            raise RuntimeError(f"a loop of the reconciler ended: {ended[0]}")

    async def __del__(self) -> None:
        """End the trial's workers."""
        await self._trial.close()


def _trial_settings(config: AppConfig, name: str) -> TrialSettings:
    family = config.families[name]
    return TrialSettings(
        source=config.source(name),
        policy=LoadPolicy(
            name, family.models_type, family.loader, config.security.allow_pickle_loaders, windows=family.kept_windows
        ),
        mlflow=config.security.mlflow,
    )
