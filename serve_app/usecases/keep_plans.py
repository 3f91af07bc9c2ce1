"""Which plan the next rollout of each family goes by: that of the last deploy, else that of the application's args.

A deploy that cannot be read changes nothing: what stood before stands, and is told with what is wrong. Where nothing
stood before (the process has just started), nothing begins by itself, for nobody knows what was wished for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.domain.errors import UnknownFamilyError
from serve_app.domain.rollout_plan import NextPlan, PlanOrigin, RolloutPlan


@dataclass(frozen=True, slots=True)
class DeployedPlan:
    """What a deploy says of a family. `has_plan` is false where it says nothing of a plan."""

    plan: RolloutPlan | None = None
    has_plan: bool = False
    is_paused: bool = False


_SILENT = DeployedPlan()


class PlanKeeper:
    """The plans of all families. Lives on one event loop; nothing here waits or raises for a plan."""

    def __init__(self, configured: Mapping[str, RolloutPlan | None]) -> None:
        self._configured = dict(configured)
        self._deployed: Mapping[str, DeployedPlan] = {}
        self._is_taken = True
        self._problem: str | None = None

    def expect(self) -> None:
        """Say that a deploy is about to be told; if it cannot be read, nothing begins by itself."""
        self._is_taken = False

    def take(self, deployed: Mapping[str, DeployedPlan]) -> None:
        """Go by a deploy from the next rollout on."""
        self._deployed, self._problem, self._is_taken = dict(deployed), None, True

    def refuse(self, problem: str) -> None:
        """Keep to what stands, and tell why."""
        self._problem = problem

    @property
    def problem(self) -> str | None:
        """Why the last deploy is not gone by; None: it is."""
        return self._problem

    def of(self, family: str) -> NextPlan:
        """Return what the next rollout of a family goes by.

        Raises:
            UnknownFamilyError: No such family.
        """
        if family not in self._configured:
            raise UnknownFamilyError(family, list(self._configured))
        said = self._deployed.get(family, _SILENT)
        return NextPlan(
            plan=said.plan if said.has_plan else self._configured[family],
            origin=PlanOrigin.USER_CONFIG if said.has_plan else PlanOrigin.CONFIGURATION,
            is_paused=said.is_paused,
            problem=self._problem,
        )

    def held_because(self, family: str) -> str | None:
        """Return why nothing new begins by itself in a family; None: it may."""
        if self.of(family).is_paused:
            return "rollouts are paused in the user_config of the reconciler"
        return None if self._is_taken else self._problem or "the user_config of the reconciler is not known yet"
