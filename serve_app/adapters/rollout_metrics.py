"""Metrics of rollouts."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge

from serve_app.domain.rollout_state import Phase
from serve_app.domain.verdict import Verdict


class RolloutMetrics:
    """Phase and verdict as 1 for the one that holds and 0 for all others; implements `RolloutMeter`.

    A family that has had no rollout is told of as well, all 0, so that an alert finds its line.
    """

    def __init__(self, registry: CollectorRegistry, families: Iterable[str]) -> None:
        self._phase = Gauge(
            "serve_app_rollout_phase", "1 for the phase of the family's last rollout.", ["family", "phase"],
            registry=registry,
        )  # fmt: skip
        self._weight = Gauge(
            "serve_app_rollout_weight", "Share of the requests that the candidate is to get, in percent.", ["family"],
            registry=registry,
        )  # fmt: skip
        self._verdict = Gauge(
            "serve_app_rollout_verdict", "1 for the last verdict on the family's rollout.", ["family", "verdict"],
            registry=registry,
        )  # fmt: skip
        self._exposed = Gauge(
            "serve_app_rollout_exposed", "What the candidate has answered: requests, and different entities.",
            ["family", "of"], registry=registry,
        )  # fmt: skip
        self._deadline = Gauge(
            "serve_app_rollout_deadline_timestamp_seconds", "When the rollout that is under way is aborted; 0: none.",
            ["family"], registry=registry,
        )  # fmt: skip
        self._refused = Gauge(
            "serve_app_rollout_plans_refused", "1 while the last deploy of user_config is not gone by.",
            registry=registry,
        )  # fmt: skip
        for family in families:
            self._tell(family, None, 0.0, None)
            self.set_progress(family, requests=0, entities=0, deadline_s=0.0)

    def set_rollout(self, family: str, phase: Phase, *, weight: float, verdict: Verdict | None) -> None:
        """See `RolloutMeter.set_rollout`."""
        self._tell(family, phase, weight, verdict)

    def set_progress(self, family: str, *, requests: int, entities: int, deadline_s: float) -> None:
        """See `RolloutMeter.set_progress`."""
        self._exposed.labels(family, "requests").set(requests)
        self._exposed.labels(family, "entities").set(entities)
        self._deadline.labels(family).set(deadline_s)

    def set_plans_refused(self, is_refused: bool) -> None:
        """Say whether the last deploy of plans could be gone by."""
        self._refused.set(is_refused)

    def _tell(self, family: str, phase: Phase | None, weight: float, verdict: Verdict | None) -> None:
        for one in Phase:
            self._phase.labels(family, one.value).set(one is phase)
        for each in Verdict:
            self._verdict.labels(family, each.value).set(each is verdict)
        self._weight.labels(family).set(weight)
