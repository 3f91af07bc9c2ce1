from prometheus_client import CollectorRegistry

from serve_app.adapters.rollout_metrics import RolloutMetrics
from serve_app.domain.rollout_state import Phase
from serve_app.domain.verdict import Verdict


def test_phase_and_verdict_are_one_of_all_and_families_are_told_from_the_start() -> None:
    registry = CollectorRegistry()
    metrics = RolloutMetrics(registry, ["a", "b"])

    def phases(family: str) -> list[str]:
        name = "serve_app_rollout_phase"
        return [p.value for p in Phase if registry.get_sample_value(name, {"family": family, "phase": p.value}) == 1]

    def verdicts(family: str) -> list[str]:
        name = "serve_app_rollout_verdict"
        labels = [{"family": family, "verdict": verdict.value} for verdict in Verdict]
        return [one["verdict"] for one in labels if registry.get_sample_value(name, one) == 1]

    assert (phases("a"), verdicts("a")) == ([], [])
    assert registry.get_sample_value("serve_app_rollout_weight", {"family": "b"}) == 0
    metrics.set_rollout("a", Phase.STEP, weight=0.0, verdict=None)
    metrics.set_rollout("a", Phase.PROMOTING, weight=25.0, verdict=Verdict.PASS)
    assert (phases("a"), verdicts("a"), phases("b")) == (["promoting"], ["pass"], [])
    assert registry.get_sample_value("serve_app_rollout_weight", {"family": "a"}) == 25.0
