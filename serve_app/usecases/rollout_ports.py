"""What rollouts need from outside and offer to it, as protocols."""

from typing import Protocol

from serve_app.domain.experiment_report import ExperimentReport
from serve_app.domain.rollout import Command
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutReport
from serve_app.domain.rollout_state import Phase
from serve_app.domain.verdict import Verdict


class RolloutPlane(Protocol):
    """The part of the control plane that carries rollouts on."""

    async def rollouts(self) -> list[RolloutReport]:
        """Return the last rollout of each family that has had one, under way or over."""
        ...

    async def rollout_report(self, family: str) -> ExperimentReport:
        """Return the report of a family's last rollout: what was compared, what was found, what was done.

        Raises:
            NoRolloutError: The family has had none.
            UnknownFamilyError, UnavailableError: As `reload`.
        """
        ...

    async def start_rollout(
        self, family: str, *, version: str | None, plan: RolloutPlan | None, force: bool, actor: str, reason: str
    ) -> RolloutReport:
        """Begin a rollout of `version`, or of what the source calls current, by `plan` or the configured one.

        Raises:
            NoPlanError: None is given and none configured.
            RolloutTransitionError: Another rollout of the family is under way.
            RolloutConflictError: The version cannot be rolled out: it is active, or nothing is.
            RefusedVersionError: This very bundle was refused before, and `force` is false.
        and as `reload`.
        """
        ...

    async def command_rollout(self, family: str, command: Command, *, actor: str, reason: str) -> RolloutReport:
        """Carry out what an operator asks of a family's rollout, as far as that goes at once.

        Raises:
            NoRolloutError: The family has had none.
            RolloutTransitionError: The phase does not allow it; nothing has changed.
            RolloutConflictError: Another version became active since; it cannot be tried again.
            UnknownFamilyError, UnavailableError, StoreError: As `reload`.
        """
        ...


class RolloutMeter(Protocol):
    """Says how rollouts stand."""

    def set_rollout(self, family: str, phase: Phase, *, weight: float, verdict: Verdict | None) -> None:
        """Say the phase of a family's rollout, the candidate's share of the requests in percent, the last verdict."""
        ...

    def set_progress(self, family: str, *, requests: int, entities: int, deadline_s: float) -> None:
        """Say what the candidate has answered, and when it is taken back (seconds since the epoch; 0: it is over)."""
        ...
