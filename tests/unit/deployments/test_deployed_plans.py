from pathlib import Path
from typing import Any

import pytest

from serve_app.adapters.last_known import LastKnown
from serve_app.config_rollout import RolledOut
from serve_app.deployments.deployed_plans import DeployedPlans
from serve_app.domain.rollout_plan import PlanOrigin
from serve_app.usecases.keep_plans import PlanKeeper

GOOD: dict[str, Any] = {"rollouts": {"iris": {"plan": {"strategy": "canary", "steps": [{"weight": 5}]}}}}
AT_ONCE: dict[str, Any] = {"rollouts": {"iris": {"plan": None}}}
WRONG: dict[str, Any] = {"rollouts": {"iris": {"plan": {"strategy": "canary", "stepz": []}}}}


class Process:
    """A Reconciler's plans, from a start on; the disk outlives it."""

    def __init__(self, disk: Path) -> None:
        self.plans = PlanKeeper({"iris": None})
        self.refused: list[bool] = []
        self.deployed = DeployedPlans(
            self.plans, {"iris": RolledOut(("cpu",))}, last=LastKnown(disk / "last.json"), on_taken=self.refused.append
        )

    async def begin(self, user_config: Any) -> "Process":
        await self.deployed.recall()
        assert not self.deployed.known.is_set()
        assert self.plans.held_because("iris") is not None or self.plans.of("iris").origin is PlanOrigin.USER_CONFIG
        await self.told(user_config)
        return self

    async def told(self, user_config: Any) -> None:
        self.deployed.take(user_config)
        await self.deployed.saved()
        assert self.deployed.known.is_set()


async def test_deploy_is_taken(tmp_path: Path) -> None:
    process = await Process(tmp_path).begin({"rollouts": {}})
    assert (process.plans.of("iris").plan, process.plans.held_because("iris")) == (None, None)
    await process.told(GOOD)
    assert (process.plans.of("iris").is_gradual, process.refused) == (True, [False, False])


@pytest.mark.parametrize("wrong", [WRONG, [], "plan", {"rollouts": {"irs": {}}}, {7: 8}, {"rollouts": None}])
async def test_wrong_deploy_raises_nothing_keeps_the_plans_and_is_told(tmp_path: Path, wrong: Any) -> None:
    process = await Process(tmp_path).begin(GOOD)
    before = process.plans.of("iris")
    await process.told(wrong)
    told = process.plans.of("iris")
    assert (told.plan, told.origin) == (before.plan, before.origin)
    assert str(told.problem).startswith("user_config of the reconciler is refused: ")
    assert process.refused == [False, True]
    assert process.plans.held_because("iris") is None
    await process.told(AT_ONCE)
    assert (process.plans.of("iris").problem, process.refused[-1]) == (None, False)


async def test_start_while_a_wrong_one_is_deployed_goes_by_the_last_good_one(tmp_path: Path) -> None:
    for good, is_gradual in ((GOOD, True), (AT_ONCE, False), ({"rollouts": {"iris": {"paused": True}}}, False)):
        first = await Process(tmp_path).begin(good)
        second = await Process(tmp_path).begin(WRONG)
        found, before = second.plans.of("iris"), first.plans.of("iris")
        assert (found.plan, found.origin, found.is_paused) == (before.plan, before.origin, before.is_paused)
        assert found.is_gradual is is_gradual
        assert found.problem is not None


async def test_first_start_with_a_wrong_deploy_takes_nothing_up(tmp_path: Path) -> None:
    process = await Process(tmp_path).begin(WRONG)
    assert "did you mean 'steps'" in str(process.plans.held_because("iris"))
    await process.told(GOOD)
    assert process.plans.held_because("iris") is None


async def test_last_good_one_that_fits_no_more_is_not_gone_by(tmp_path: Path) -> None:
    (tmp_path / "last.json").write_text('{"user_config": {"rollouts": {"gone": {"paused": true}}}}')
    process = Process(tmp_path)
    await process.deployed.recall()
    assert process.plans.held_because("iris") is not None


async def test_disk_that_cannot_be_written_costs_nothing_but_the_recall(tmp_path: Path) -> None:
    (tmp_path / "last.json").mkdir()
    process = await Process(tmp_path).begin(GOOD)
    assert process.plans.of("iris").is_gradual
