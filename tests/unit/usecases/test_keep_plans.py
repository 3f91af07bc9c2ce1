import pytest

from serve_app.domain.errors import UnknownFamilyError
from serve_app.domain.rollout_plan import NextPlan, PlanOrigin, RolloutPlan, Strategy
from serve_app.usecases.keep_plans import DeployedPlan, PlanKeeper

CONFIGURED = RolloutPlan.model_validate({"strategy": "canary", "steps": [{"weight": 5}]})
DEPLOYED = RolloutPlan.model_validate({"strategy": "ab", "steps": [{"weight": 50}]})


@pytest.fixture
def plans() -> PlanKeeper:
    return PlanKeeper({"iris": CONFIGURED, "fraud": None})


def test_configured_plan_stands_until_a_deploy_says_another(plans: PlanKeeper) -> None:
    assert plans.of("iris") == NextPlan(plan=CONFIGURED)
    plans.take({"iris": DeployedPlan(DEPLOYED, has_plan=True)})
    assert plans.of("iris") == NextPlan(plan=DEPLOYED, origin=PlanOrigin.USER_CONFIG)
    assert plans.of("fraud") == NextPlan()
    plans.take({})
    assert plans.of("iris") == NextPlan(plan=CONFIGURED)


def test_plan_of_none_lets_every_change_be_at_once(plans: PlanKeeper) -> None:
    plans.take({"iris": DeployedPlan(None, has_plan=True)})
    assert (plans.of("iris").is_gradual, plans.of("iris").origin) == (False, PlanOrigin.USER_CONFIG)
    plans.take({"iris": DeployedPlan(RolloutPlan(strategy=Strategy.IMMEDIATE), has_plan=True)})
    assert not plans.of("iris").is_gradual


def test_pause_keeps_the_plan_and_holds_what_would_begin_by_itself(plans: PlanKeeper) -> None:
    plans.take({"iris": DeployedPlan(is_paused=True)})
    assert plans.of("iris") == NextPlan(plan=CONFIGURED, is_paused=True)
    assert "paused" in str(plans.held_because("iris"))
    assert plans.held_because("fraud") is None


def test_deploy_that_cannot_be_read_changes_nothing_and_is_told_until_one_can(plans: PlanKeeper) -> None:
    plans.take({"iris": DeployedPlan(DEPLOYED, has_plan=True)})
    plans.refuse("rollouts.irs: no such family")
    assert plans.of("iris") == NextPlan(
        plan=DEPLOYED, origin=PlanOrigin.USER_CONFIG, problem="rollouts.irs: no such family"
    )
    assert (plans.problem, plans.held_because("iris")) == ("rollouts.irs: no such family", None)
    plans.take({})
    assert (plans.problem, plans.of("iris").problem) == (None, None)


def test_start_with_a_deploy_that_cannot_be_read_begins_nothing(plans: PlanKeeper) -> None:
    plans.expect()
    assert plans.held_because("iris") is not None
    plans.refuse("wrong")
    assert plans.held_because("fraud") == "wrong"
    plans.take({})
    assert plans.held_because("iris") is None


def test_unknown_family_is_told(plans: PlanKeeper) -> None:
    with pytest.raises(UnknownFamilyError):
        plans.of("irs")
