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


def test_progress_is_told_of_every_family_from_the_start() -> None:
    registry = CollectorRegistry()
    metrics = RolloutMetrics(registry, ["a", "b"])
    metrics.set_progress("a", requests=120, entities=7, deadline_s=5000.0)
    exposed = [registry.get_sample_value("serve_app_rollout_exposed", {"family": "a", "of": of})
               for of in ("requests", "entities")]  # fmt: skip
    assert exposed == [120, 7]
    deadline = "serve_app_rollout_deadline_timestamp_seconds"
    assert [registry.get_sample_value(deadline, {"family": family}) for family in "ab"] == [5000.0, 0.0]


def test_refused_deploy_of_plans_is_told_until_one_is_taken() -> None:
    registry = CollectorRegistry()
    metrics = RolloutMetrics(registry, ["a"])
    found = []
    for is_refused in (True, False):
        metrics.set_plans_refused(is_refused)
        found.append(registry.get_sample_value("serve_app_rollout_plans_refused"))
    assert found == [1, 0]
