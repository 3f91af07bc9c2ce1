"""`Fleet`, `Gateways` and `ControlPlane` over Ray Serve's handles: the control calls between deployments."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import structlog
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from serve_app.domain.diff_report import ShadowDiff
from serve_app.domain.errors import ServeAppError, UnavailableError
from serve_app.domain.events import EventPage
from serve_app.domain.experiment_report import ExperimentReport
from serve_app.domain.exposure import GatewayReport
from serve_app.domain.recording import ReplayReport
from serve_app.domain.reload import AuditEntry, KnownVersion, Operation, RoutingTable, VersionRef
from serve_app.domain.rollout import Command
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutReport
from serve_app.domain.status import ReplicaStatus

GATEWAY: Final = "gateway"
RECONCILER: Final = "reconciler"
CONTROL_TIMEOUT_S: Final = 5.0
ROLLOUT_TIMEOUT_S: Final = 30.0
"""A command may wait for a look at gateways of which one does not answer, or for a source."""
REPLAY_TIMEOUT_S: Final = 3000.0
"""Above what a replay may take by its configuration on a busy machine."""
log = structlog.get_logger(__name__)


async def ask_all(handle: DeploymentHandle[Any], method: str, *args: Any) -> list[Any]:
    """Call a method on every routable replica; those that do not answer in time, or raise, are left out."""
    answers = await _ask_each(handle, method, *args)
    return [answer for answer in answers if not isinstance(answer, BaseException)]


async def _ask_each(handle: DeploymentHandle[Any], method: str, *args: Any) -> list[Any]:
    """Call a method on every routable replica, and return what each answered or why it did not."""
    try:
        return list(
            await handle.broadcast(method, *args).results_async(timeout_s=CONTROL_TIMEOUT_S, return_exceptions=True)
        )
    except Exception as error:  # no replica at all, or the deployment is not known yet
        log.debug("nobody answers", deployment=handle.deployment_name, method=method, reason=str(error))
        return []


class HandleFleet:
    """All model replicas, by family; implements `Fleet`."""

    def __init__(self, pools: Mapping[str, Mapping[str, DeploymentHandle[Any]]]) -> None:
        self._pools = pools

    async def statuses(self, family: str) -> list[ReplicaStatus]:
        """See `Fleet.statuses`."""
        return await self._ask(family, "status")

    async def routable(self, family: str) -> int:
        """See `Fleet.routable`: those that Serve tells every router of, whether they answer or not.

        `serve.status` would say the same, after a quarter of a second of this process and the controller on a busy
        machine: it describes the whole cluster.
        """
        groups = await asyncio.gather(*(_ask_each(handle, "status") for handle in self._pools[family].values()))
        return sum(map(len, groups))

    async def prepare(self, family: str, refs: Sequence[VersionRef], *, unloading: Collection[str] = ()) -> None:
        """See `Fleet.prepare`."""
        await self._ask(family, "prepare", tuple(refs), tuple(unloading))

    async def load(self, family: str, ref: VersionRef) -> None:
        """See `Fleet.load`."""
        await self._ask(family, "load", ref)

    async def hold(self, family: str, refs: Sequence[VersionRef]) -> None:
        """See `Fleet.hold`."""
        await self._ask(family, "hold", tuple(refs))

    async def evict(self, family: str, ref: VersionRef) -> None:
        """See `Fleet.evict`."""
        await self._ask(family, "evict", ref.version)

    async def _ask(self, family: str, method: str, *args: Any) -> list[Any]:
        groups = await asyncio.gather(*(ask_all(handle, method, *args) for handle in self._pools[family].values()))
        return [answer for group in groups for answer in group]


class HandleGateways:
    """All gateways; implements `Gateways`. The handle is looked up late: the gateway is the application's last part."""

    def __init__(self, app_name: str) -> None:
        self._app_name = app_name

    async def refresh(self, family: str) -> None:
        """See `Gateways.refresh`."""
        handle: DeploymentHandle[Any] = serve.get_deployment_handle(GATEWAY, self._app_name)
        await ask_all(handle, "refresh", family)

    async def push(self, table: RoutingTable) -> int:
        """See `Gateways.push`."""
        handle: DeploymentHandle[Any] = serve.get_deployment_handle(GATEWAY, self._app_name)
        return len(await ask_all(handle, "follow", table))

    async def evidence(self) -> list[GatewayReport]:
        """See `Gateways.evidence`."""
        handle: DeploymentHandle[Any] = serve.get_deployment_handle(GATEWAY, self._app_name)
        return await ask_all(handle, "evidence")


class HandleControlPlane:
    """The Reconciler as its callers see it; implements `ControlPlane`."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self.handle = handle

    async def table(self) -> RoutingTable:
        """Return the table to follow.

        Raises:
            UnavailableError: The Reconciler does not answer.
        """
        table: RoutingTable = await self._call("table", CONTROL_TIMEOUT_S)
        return table

    async def wanted(self, family: str) -> tuple[VersionRef, ...]:
        """Return what a replica of a family is to hold.

        Raises:
            UnavailableError: The Reconciler does not answer.
        """
        refs: tuple[VersionRef, ...] = await self._call("wanted", CONTROL_TIMEOUT_S, family)
        return refs

    async def reload(
        self,
        family: str,
        *,
        version: str | None,
        force: bool,
        actor: str,
        reason: str,
        wait_s: float,
        immediate: bool = False,
    ) -> Operation:
        """See `ControlPlane.reload`."""
        operation: Operation = await self._call(
            "reload",
            wait_s + CONTROL_TIMEOUT_S,
            family,
            version=version,
            force=force,
            actor=actor,
            reason=reason,
            wait_s=wait_s,
            immediate=immediate,
        )
        return operation

    async def rollback(self, family: str, *, to: str | None, actor: str, wait_s: float) -> Operation:
        """See `ControlPlane.rollback`."""
        operation: Operation = await self._call(
            "rollback", wait_s + CONTROL_TIMEOUT_S, family, to=to, actor=actor, wait_s=wait_s
        )
        return operation

    async def demand(
        self, family: str, *, model: str | None, version: str | None, wait_s: float, renew: bool = False
    ) -> VersionRef:
        """See `ControlPlane.demand`."""
        ref: VersionRef = await self._call(
            "demand", wait_s + CONTROL_TIMEOUT_S, family, model=model, version=version, wait_s=wait_s, renew=renew
        )
        return ref

    async def rollouts(self) -> list[RolloutReport]:
        """See `ControlPlane.rollouts`."""
        reports: list[RolloutReport] = await self._call("rollouts", CONTROL_TIMEOUT_S)
        return reports

    async def rollout_report(self, family: str) -> ExperimentReport:
        """See `ControlPlane.rollout_report`."""
        report: ExperimentReport = await self._call("rollout_report", CONTROL_TIMEOUT_S, family)
        return report

    async def start_rollout(
        self, family: str, *, version: str | None, plan: RolloutPlan | None, force: bool, actor: str, reason: str
    ) -> RolloutReport:
        """See `ControlPlane.start_rollout`. The source may be a registry far away, which is waited for."""
        report: RolloutReport = await self._call(
            "start_rollout", ROLLOUT_TIMEOUT_S, family, version=version, plan=plan, force=force, actor=actor,
            reason=reason,
        )  # fmt: skip
        return report

    async def command_rollout(self, family: str, command: Command, *, actor: str, reason: str) -> RolloutReport:
        """See `ControlPlane.command_rollout`."""
        report: RolloutReport = await self._call(
            "command_rollout", ROLLOUT_TIMEOUT_S, family, command, actor=actor, reason=reason
        )
        return report

    async def shadow(self, family: str) -> ShadowDiff:
        """See `ReplayPlane.shadow`."""
        told: ShadowDiff = await self._call("shadow", ROLLOUT_TIMEOUT_S, family)
        return told

    async def replay(self, family: str, *, version: str, limit: int | None, actor: str) -> ReplayReport:
        """See `ReplayPlane.replay`. It ends by itself."""
        report: ReplayReport = await self._call(
            "replay", REPLAY_TIMEOUT_S, family, version=version, limit=limit, actor=actor
        )
        return report

    async def look(self, family: str) -> None:
        """See `ControlPlane.look`."""
        await self._call("look", CONTROL_TIMEOUT_S, family)

    async def operation(self, operation_id: str) -> Operation | None:
        """See `ControlPlane.operation`."""
        operation: Operation | None = await self._call("operation", CONTROL_TIMEOUT_S, operation_id)
        return operation

    async def versions(self, family: str) -> list[KnownVersion]:
        """See `ControlPlane.versions`."""
        versions: list[KnownVersion] = await self._call("versions", CONTROL_TIMEOUT_S, family)
        return versions

    async def audit(self, *, family: str | None, limit: int) -> list[AuditEntry]:
        """See `ControlPlane.audit`."""
        entries: list[AuditEntry] = await self._call("audit", CONTROL_TIMEOUT_S, family=family, limit=limit)
        return entries

    async def events(self, *, after: int | None, family: str | None, limit: int) -> EventPage:
        """See `EventPlane.events`."""
        page: EventPage = await self._call("events", CONTROL_TIMEOUT_S, after=after, family=family, limit=limit)
        return page

    async def _call(self, method: str, timeout_s: float, *args: Any, **kwargs: Any) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await getattr(self.handle, method).remote(*args, **kwargs)
        except RayTaskError as error:
            if isinstance(error.cause, ServeAppError):
                raise error.cause from None
            raise
        except ServeAppError:  # Serve's own transport between replicas brings it as it was raised
            raise
        except Exception as error:  # killed, restarting, not deployed: all mean that it cannot be reached now
            raise UnavailableError(f"the control plane cannot be reached now ({type(error).__name__})") from error
