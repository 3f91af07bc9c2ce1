"""Plans that can never come to an end are refused where they are written: at build, by a deploy, by a call."""

from typing import Any

import pytest

from serve_app.config_rollout import ReconcilerUserConfig, RolledOut, plan_problems
from serve_app.domain.errors import ConfigError
from serve_app.domain.residency import ResidencyPolicy
from serve_app.domain.rollout_plan import RolloutPlan

CANARY: dict[str, Any] = {"strategy": "canary", "steps": [{"weight": 5}, {"weight": 50}]}
PLAIN = RolledOut(("cpu", "gpu"))
LABELLED = RolledOut(("cpu",), losses=())
NAMED = RolledOut(("cpu",), losses=("mae", "pinball"))
LOSS = {"kind": "loss", "loss": "mae", "max_increase": 0.1}
DISAGREEMENT = {"kind": "disagreement", "max_increase": 0.05}
ERRORS = {"kind": "error_rate", "max_increase": 0.005}
SHADOW = {"hold_s": 60}


def found(family: RolledOut = PLAIN, **changes: Any) -> tuple[str, ...]:
    return plan_problems(RolloutPlan.model_validate({**CANARY, **changes}), family)


def judged_by(*metrics: dict[str, Any]) -> dict[str, Any]:
    return {"analysis": {"metrics": list(metrics)}}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        (PLAIN, {}),
        (PLAIN, {"pool": "gpu", "stable_pool": "cpu"}),
        (PLAIN, {"targeting": {"source": "field", "name": "entity"}}),
        (PLAIN, {"targeting": {"source": "header", "name": "X-Entity-Id"}}),
        (PLAIN, {"targeting": {"source": "cookie", "name": "session.id"}}),
        (PLAIN, {"shadow_first": SHADOW, **judged_by(DISAGREEMENT)}),
        (PLAIN, {"strategy": "shadow", "steps": [], "shadow_first": SHADOW, **judged_by(DISAGREEMENT)}),
        (NAMED, judged_by(LOSS)),
        (LABELLED, judged_by(LOSS | {"loss": "zero_one"})),
        (LABELLED, judged_by(LOSS | {"loss": "absolute_error.cpu"})),
        (PLAIN, {"max_exposed_requests": 100}),
        (PLAIN, {"max_exposed_requests": 1, "analysis": None}),
        (NAMED, {"max_exposed_requests": 1, **judged_by(LOSS)}),
        (PLAIN, {"steps": [{"weight": 95}], "watch_s": 60}),
        (PLAIN, {"steps": [{"weight": 50}, {"weight": 100}], "watch_s": 60, "holdback": 0}),
        (PLAIN, {"steps": [{"weight": 100}], "analysis": None}),
        (RolledOut(("cpu",), has_windows=True), {"strategy": "immediate", "steps": []}),
        (RolledOut(("cpu",), ResidencyPolicy.RESOURCE_PRESERVING), {"strategy": "immediate", "steps": []}),
    ],
)
def test_plan_that_can_come_to_an_end_is_taken(family: RolledOut, changes: dict[str, Any]) -> None:
    assert found(family, **changes) == ()


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        (PLAIN, {"pool": "gpv"}, "pool: expected one of cpu, gpu, found 'gpv' (did you mean 'gpu'?)"),
        (PLAIN, {"targeting": {"source": "field", "name": "customer"}},
         "targeting.name: expected 'entity', the one field that is read of a body, found 'customer'"),
        (PLAIN, {"targeting": {"source": "header", "name": "X Entity"}},
         "targeting.name: expected what can be the name of a header, found 'X Entity'"),
        (PLAIN, {"targeting": {"source": "cookie", "name": "a=b"}},
         "targeting.name: expected what can be the name of a cookie, found 'a=b'"),
        (PLAIN, judged_by(ERRORS, DISAGREEMENT),
         "analysis.metrics.1: expected shadow_first with disagreement, for nobody else answers the same requests "
         "twice"),
        (PLAIN, judged_by(LOSS),
         "analysis.metrics.0: expected labels to be configured for the family, which the loss 'mae' is made of, found "
         "none"),
        (NAMED, judged_by(LOSS | {"loss": "pinbal"}),
         "analysis.metrics.0: loss: expected one of mae, pinball, found 'pinbal' (did you mean 'pinball'?)"),
        (LABELLED, judged_by(LOSS),
         "analysis.metrics.0: loss: expected absolute_error or zero_one, of several outputs with .<output>, found "
         "'mae'"),
        (NAMED, {"strategy": "shadow", "steps": [], "shadow_first": SHADOW, **judged_by(LOSS)},
         "analysis.metrics.0: expected no loss with the strategy shadow: nobody gets its answers, so no label speaks "
         "of them"),
        (PLAIN, {"max_exposed_requests": 99},
         "max_exposed_requests: expected at least the 100 that error_rate needs, found 99"),
        (PLAIN, {"max_exposed_requests": 499, **judged_by(ERRORS, {"kind": "latency_mean", "max_increase": 0.1})},
         "max_exposed_requests: expected at least the 500 that latency_mean needs, found 499"),
        (PLAIN, {"steps": [{"weight": 100}]},
         "steps.0.weight: expected less than 100, so that the stable version answers some to compare with"),
        (PLAIN, {"steps": [{"weight": 50}, {"weight": 98}], "watch_s": 60},
         "holdback: expected at most the 2 % that the last step leaves to the former version, found 5; 0 watches "
         "without a comparison"),
        (RolledOut(("cpu",), has_windows=True), {},
         "strategy: expected immediate, for one pass over the windows makes the forecasts of all; found canary"),
        (RolledOut(("cpu",), ResidencyPolicy.RESOURCE_PRESERVING), {},
         "strategy: expected immediate, or residency.policy availability_preserving, for both versions answer at the "
         "same time; found canary"),
    ],
)  # fmt: skip
def test_plan_that_never_can_is_refused_in_one_sentence(
    family: RolledOut, changes: dict[str, Any], problem: str
) -> None:
    assert found(family, **changes) == (problem,)


def test_all_problems_of_a_plan_are_told_at_once() -> None:
    problems = found(pool="tpu", targeting={"source": "field", "name": "x"}, **judged_by(DISAGREEMENT))
    assert [problem.partition(":")[0] for problem in problems] == ["pool", "targeting.name", "analysis.metrics.0"]


# The user_config of the reconciler

FAMILIES = {"iris": PLAIN, "forecaster": NAMED}


@pytest.mark.parametrize("document", [None, {}, {"rollouts": {}}])
def test_without_plans_nothing_is_said(document: Any) -> None:
    assert ReconcilerUserConfig.parse(document, FAMILIES) == ReconcilerUserConfig()


def test_plan_that_is_absent_is_another_thing_than_none() -> None:
    said = ReconcilerUserConfig.parse(
        {"rollouts": {"iris": {"plan": None}, "forecaster": {"paused": True}}}, FAMILIES
    ).rollouts
    assert (said["iris"].plan, said["iris"].has_plan, said["iris"].paused) == (None, True, False)
    assert (said["forecaster"].plan, said["forecaster"].has_plan, said["forecaster"].paused) == (None, False, True)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"rollout": {}}, "rollout: unknown key (did you mean 'rollouts'?); known: rollouts"),
        ({"rollouts": {"irs": {"plan": CANARY}}}, "rollouts.irs: no such family (did you mean 'iris'?)"),
        ({"rollouts": {"iris": {"pausd": True}}},
         "rollouts.iris.pausd: unknown key (did you mean 'paused'?); known: paused, plan"),
        ({"rollouts": {"iris": {"plan": CANARY | {"steps": [{"wait": 5, "weight": 5}]}}}},
         "rollouts.iris.plan.steps.0.wait: unknown key (did you mean 'weight'?); known: hold_s, weight"),
        ({"rollouts": {"iris": {"plan": CANARY | {"pool": "tpu"}}}},
         "rollouts.iris.plan.pool: expected one of cpu, gpu, found 'tpu' (did you mean 'gpu'?)"),
        ({"rollouts": {"iris": {"plan": CANARY | {"steps": []}}}},
         "rollouts.iris.plan: steps: expected at least one with the strategy canary, found none"),
    ],
)  # fmt: skip
def test_wrong_key_is_named_with_its_path_and_the_nearest_right_one(document: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ReconcilerUserConfig.parse(document, FAMILIES)
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize("document", [[], "canary", 7, {"rollouts": None}, {"rollouts": {"iris": 7}}, {7: {}}])
def test_anything_else_is_a_problem_and_no_crash(document: Any) -> None:
    with pytest.raises(ConfigError):
        ReconcilerUserConfig.parse(document, FAMILIES)
