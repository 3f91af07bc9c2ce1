"""Plans of rollouts out of the `user_config` of the Reconciler, which Ray hands over at the start and at a deploy."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from pydantic import BaseModel, JsonValue

from serve_app.adapters.last_known import LastKnown
from serve_app.config_rollout import ReconcilerUserConfig, RolledOut
from serve_app.domain.errors import ConfigError
from serve_app.usecases.keep_plans import DeployedPlan, PlanKeeper

log = structlog.get_logger(__name__)


class LastDeployed(BaseModel):
    """The last `user_config` that could be gone by, as it was written: what is absent in it is not null."""

    user_config: dict[str, JsonValue]


class DeployedPlans:
    """Reads what was deployed into the plans that are gone by. Lives on one event loop.

    Args:
        plans: What is gone by.
        families: What plans must agree with, by family.
        last: Keeps the last good `user_config` on this node's disk, for a start while a wrong one is deployed.
        on_taken: Told after each deploy whether it was refused.
    """

    def __init__(
        self,
        plans: PlanKeeper,
        families: Mapping[str, RolledOut],
        *,
        last: LastKnown,
        on_taken: Callable[[bool], None],
    ) -> None:
        self._plans = plans
        self._families = families
        self._last = last
        self._on_taken = on_taken
        self._saving: asyncio.Task[None] | None = None
        self.known = asyncio.Event()
        """Set once a deploy was told, good or not: before that, a new version could go by another plan than its."""

    async def recall(self) -> None:
        """Begin with the plans of the last deploy that could be gone by, should that of now be none."""
        self._plans.expect()
        found = await asyncio.to_thread(self._last.read, LastDeployed)
        if found is None:
            return
        try:
            self._plans.take(_deployed(ReconcilerUserConfig.parse(found.user_config, self._families)))
        except ConfigError as error:
            log.warning("plans of the last deploy do not fit any more", reason=str(error))

    def take(self, user_config: Any) -> None:
        """Take a deploy for the rollouts that begin from now on; returns at once, and raises for nothing in it."""
        try:
            said = ReconcilerUserConfig.parse(user_config, self._families)
            document = LastDeployed(user_config=user_config or {})
        except ConfigError as error:
            self._plans.refuse(f"user_config of the reconciler is refused: {error}")
            log.error("user_config refused, the plans stay", reason=str(error))
        except Exception as error:
            self._plans.refuse(f"user_config of the reconciler is refused: internal error ({type(error).__name__})")
            log.exception("user_config refused, the plans stay")
        else:
            self._plans.take(_deployed(said))
            self._saving = asyncio.create_task(self._save(document, self._saving))
            log.info("plans taken", families=sorted(said.rollouts))
        self._on_taken(self._plans.problem is not None)
        self.known.set()

    async def saved(self) -> None:
        """Wait until what was taken last is on the disk."""
        if self._saving is not None:
            await self._saving

    async def _save(self, document: LastDeployed, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before  # else an older one could be written last
        await asyncio.to_thread(self._last.write, document)


def _deployed(said: ReconcilerUserConfig) -> dict[str, DeployedPlan]:
    return {name: DeployedPlan(one.plan, one.has_plan, one.paused) for name, one in said.rollouts.items()}
