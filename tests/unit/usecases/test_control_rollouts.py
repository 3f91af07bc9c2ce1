"""What begins a rollout, what ends one, and how changes of version and rollouts keep out of each other's way."""

import pytest

from serve_app.domain.errors import InvalidInputError, PinnedError, RefusedVersionError, UnavailableError
from serve_app.domain.reload import Operation, Outcome
from serve_app.domain.rollout import Command
from serve_app.domain.rollout_plan import NextPlan, PlanOrigin, RolloutPlan
from serve_app.domain.rollout_state import (
    NoPlanError,
    PauseReason,
    Phase,
    RolloutConflictError,
    RolloutTransitionError,
)
from serve_app.usecases.control_rollouts import RolledFamily, RolloutControl
from serve_app.usecases.keep_plans import DeployedPlan
from tests.fakes.traffic import Behaviour
from tests.unit.usecases.rolled import CANARY, FAMILY, World

BY_TIME = CANARY.model_copy(update={"analysis": None})
FAILING = Behaviour(error_rate=0.06)


async def reload(world: World, version: str | None = None, *, immediate: bool = False) -> Operation:
    return await world.control.reload(
        FAMILY, version=version, force=False, actor="ann", reason="test", wait_s=5, immediate=immediate
    )


async def polled(world: World) -> None:
    """Let the source be looked at, and what it brings begin."""
    world.clock.advance(31)
    await world.turn()
    await world.turn()


async def test_first_version_is_taken_up_at_once() -> None:
    world = await World.made()
    assert world.active == "v1"
    assert world.store.read().family(FAMILY).rollout is None


async def test_new_version_of_the_source_starts_the_plan() -> None:
    world = await World.made()
    world.source.set_current("v2")
    await polled(world)
    assert (world.phase, world.active, world.rollout.state.actor) == (Phase.STEP, "v1", "source")
    assert world.rollout.follows


async def test_look_that_a_webhook_asks_for_starts_the_plan() -> None:
    world = await World.made()
    world.source.set_current("v2")
    await world.control.look(FAMILY)
    await world.turn()
    await world.turn()
    assert world.phase is Phase.STEP


async def test_pin_starts_the_plan_and_is_rolled_out_once() -> None:
    world = await World.made()
    world.fleet.pin = "v2"
    await polled(world)
    assert (world.phase, world.rollout.state.actor) == (Phase.STEP, "user_config")
    await world.command(Command.ABORT)
    await polled(world)
    assert (world.phase, world.active) == (Phase.ABORTED, "v1")
    assert "retry it" in world.control.table.troubles[FAMILY]


async def test_pin_to_another_version_ends_a_rollout() -> None:
    world = await World.made()
    await world.start()
    world.fleet.pin = "v1"
    await world.turn()
    assert (world.phase, world.active, world.rollout.state.history[-2].actor) == (Phase.ABORTED, "v1", "user_config")


async def test_without_a_plan_every_change_is_at_once() -> None:
    world = await World.made(plan=None)
    world.source.set_current("v2")
    await polled(world)
    assert world.active == "v2"
    assert world.store.read().family(FAMILY).rollout is None


async def test_reload_by_call_starts_the_plan_and_is_not_waited_for() -> None:
    world = await World.made()
    operation = await reload(world, "v2")
    assert (operation.outcome, operation.is_rollout, operation.to_version) == (Outcome.RUNNING, True, "v2")
    await world.turn()
    assert world.phase is Phase.STEP
    assert (await reload(world, "v2")).operation_id == operation.operation_id
    found = await world.control.operation(operation.operation_id)
    assert found is not None
    assert (found.outcome, "rollout step" in found.detail) == (Outcome.RUNNING, True)
    with pytest.raises(UnavailableError, match="a rollout of 'forecaster' is under way: v2"):
        await reload(world, "v1")


async def test_immediate_reload_ends_the_rollout_and_takes_all_traffic() -> None:
    world = await World.made()
    await world.start()
    world.publish("v3", current=False)
    operation = await reload(world, "v3", immediate=True)
    assert (operation.outcome, world.active, world.phase) == (Outcome.RELOADED, "v3", Phase.ABORTED)
    assert world.gateways.tables[-1].splits == {}


async def test_rollback_ends_the_rollout_and_stable_answers_everything() -> None:
    world = await World.made()
    await world.start()
    operation = await world.control.rollback(FAMILY, to=None, actor="ann", wait_s=5)
    assert (operation.outcome, operation.from_version, operation.to_version) == (Outcome.RELOADED, "v2", "v1")
    assert (world.phase, world.active, world.gateways.tables[-1].splits) == (Phase.ABORTED, "v1", {})


async def test_rollback_while_the_promotion_is_watched_goes_back() -> None:
    world = await World.made(BY_TIME.model_copy(update={"watch_s": 500.0}))
    await world.start()
    await world.pass_time(50)
    assert world.active == "v2"
    await world.control.rollback(FAMILY, to=None, actor="ann", wait_s=5)
    assert (world.phase, world.active) == (Phase.ABORTED, "v1")


async def test_rollback_to_a_third_version_ends_the_rollout_and_goes_there() -> None:
    world = await World.made()
    world.publish("v0", current=False)
    await world.start()
    operation = await world.control.rollback(FAMILY, to="v0", actor="ann", wait_s=5)
    assert (operation.outcome, world.active, world.phase) == (Outcome.RELOADED, "v0", Phase.ABORTED)


async def test_aborted_version_is_not_taken_up_again_by_itself() -> None:
    world = await World.made()
    world.gateways.behaviours["v2"] = FAILING
    world.source.set_current("v2")
    await polled(world)
    await world.pass_time(600, requests=500)
    assert world.phase is Phase.ABORTED
    rollout_id = world.rollout.state.rollout_id
    await polled(world)
    assert (world.rollout.state.rollout_id, world.active) == (rollout_id, "v1")
    operation = await reload(world, "v2")
    assert operation.outcome is Outcome.FAILED
    with pytest.raises(RefusedVersionError, match="force tries it again"):
        await world.control.start_rollout(FAMILY, version="v2", plan=None, force=False, actor="ann", reason="")


async def test_newer_version_waits_for_the_end_of_the_rollout_and_of_the_cool_down() -> None:
    world = await World.made(BY_TIME.model_copy(update={"cool_down_s": 100.0}))
    world.source.set_current("v2")
    await polled(world)
    world.publish("v3")
    await polled(world)
    assert world.rollout.state.candidate.version == "v2"
    await world.pass_time(60)
    assert (world.phase, world.active) == (Phase.SUCCEEDED, "v2")
    await polled(world)
    assert "cools down" in world.control.table.troubles[FAMILY]
    world.clock.advance(100)
    await polled(world)
    assert (world.rollout.state.candidate.version, world.phase) == ("v3", Phase.STEP)
    assert FAMILY not in world.control.table.troubles


async def test_rollout_starts_with_the_given_plan_where_none_is_configured() -> None:
    world = await World.made(plan=None)
    with pytest.raises(NoPlanError):
        await world.start()
    await world.start(plan=BY_TIME)
    assert world.phase is Phase.STEP
    with pytest.raises(RolloutTransitionError):
        await world.start(plan=BY_TIME)


async def test_active_version_is_not_rolled_out() -> None:
    world = await World.made()
    with pytest.raises(RolloutConflictError, match="answers already"):
        await world.start("v1")


async def test_pin_forbids_the_rollout_of_another_version() -> None:
    world = await World.made()
    world.fleet.pin = "v1"
    with pytest.raises(PinnedError):
        await world.start("v2")


async def test_replica_that_comes_during_a_rollout_gets_both_versions() -> None:
    world = await World.made(BY_TIME)
    await world.start()
    world.fleet.add_replica()
    await world.turn()
    assert [sorted(held) for held in world.fleet.held] == [["v1", "v2"]] * 3


async def test_state_of_an_older_server_is_read() -> None:
    world = await World.made()
    document = world.store.read().model_dump(mode="json")
    for family in document["families"].values():
        del family["rollout"]
    assert type(world.store.read()).model_validate(document) == world.store.read()


async def test_stored_rollout_survives_its_way_through_json() -> None:
    world = await World.made()
    await world.start()
    await world.pass_time(20, requests=200)
    state = world.store.read()
    assert type(state).model_validate_json(state.model_dump_json()) == state


# Plans of a deploy


def deploy(world: World, plan: RolloutPlan | None = None, *, is_paused: bool = False, has_plan: bool = True) -> None:
    world.plans.take({FAMILY: DeployedPlan(plan, has_plan=has_plan, is_paused=is_paused)})


async def test_deployed_plan_is_what_the_next_rollout_goes_by() -> None:
    world = await World.made(plan=None)
    deploy(world, CANARY)
    world.source.set_current("v2")
    await polled(world)
    assert (world.phase, world.rollout.state.plan, world.rollout.state.plan_from) == (
        Phase.STEP, CANARY, PlanOrigin.USER_CONFIG,
    )  # fmt: skip
    deploy(world, BY_TIME)
    await world.pass_time(10)
    assert world.rollout.state.plan == CANARY
    (report,) = await world.control.rollouts()
    assert report.next_plan == NextPlan(plan=BY_TIME, origin=PlanOrigin.USER_CONFIG)
    await world.command(Command.ABORT)
    await world.start("v2")
    assert world.rollout.state.plan == BY_TIME


async def test_rollout_says_where_its_plan_came_from() -> None:
    world, found = await World.made(), []
    for given in (None, BY_TIME):
        await world.start(plan=given)
        found.append(world.rollout.state.plan_from)
        await world.command(Command.ABORT)
    deploy(world, BY_TIME)
    await world.start()
    found.append(world.rollout.state.plan_from)
    assert found == [PlanOrigin.CONFIGURATION, PlanOrigin.CALL, PlanOrigin.USER_CONFIG]


async def test_deployed_plan_of_none_makes_every_change_at_once() -> None:
    world = await World.made()
    deploy(world, None)
    world.source.set_current("v2")
    await polled(world)
    assert (world.active, world.store.read().family(FAMILY).rollout) == ("v2", None)


@pytest.mark.parametrize("plan", [CANARY, None])
async def test_paused_family_takes_up_nothing_by_itself_until_it_is_paused_no_more(plan: RolloutPlan | None) -> None:
    world = await World.made(plan)
    deploy(world, is_paused=True, has_plan=False)
    world.source.set_current("v2")
    await polled(world)
    assert (world.active, world.store.read().family(FAMILY).rollout) == ("v1", None)
    assert world.control.table.troubles[FAMILY].startswith("v2 waits: rollouts are paused")
    if plan is not None:
        with pytest.raises(RolloutConflictError, match="paused in the user_config"):
            await world.start()
    deploy(world, has_plan=False)
    await polled(world)
    if plan is None:
        assert world.active == "v2"
    else:
        assert world.phase is Phase.STEP
    assert FAMILY not in world.control.table.troubles


async def test_first_version_does_not_wait_for_a_pause_to_end() -> None:
    world = World(plan=None)
    world.publish("v1")
    await world.begin()
    deploy(world, is_paused=True, has_plan=False)
    await world.turn()
    assert world.active == "v1"


async def test_deployed_pause_holds_what_is_under_way_and_nobody_resumes_it_by_call() -> None:
    world = await World.made(BY_TIME)
    await world.start()
    deploy(world, is_paused=True, has_plan=False)
    await world.turn()
    move = world.rollout.state.history[-1]
    assert (world.phase, world.rollout.state.pause_reason, move.actor) == (
        Phase.PAUSED, PauseReason.OPERATOR, "user_config",
    )  # fmt: skip
    with pytest.raises(RolloutConflictError, match="paused in the user_config"):
        await world.command(Command.RESUME)
    await world.pass_time(100)
    assert world.phase is Phase.PAUSED
    deploy(world, has_plan=False)
    await world.pass_time(100)
    assert (world.phase, world.active) == (Phase.SUCCEEDED, "v2")


async def test_pause_of_an_operator_outlives_a_deploy_that_pauses_nothing() -> None:
    world = await World.made(BY_TIME)
    await world.start()
    await world.command(Command.PAUSE)
    deploy(world, BY_TIME)
    await world.pass_time(100)
    assert world.phase is Phase.PAUSED


async def test_deployed_pause_lets_an_operator_abort_and_go_back() -> None:
    world = await World.made(BY_TIME)
    await world.start()
    deploy(world, is_paused=True, has_plan=False)
    await world.turn()
    await world.command(Command.ABORT)
    assert (world.phase, world.active) == (Phase.ABORTED, "v1")
    with pytest.raises(RolloutConflictError):
        await world.command(Command.RETRY)


async def test_refused_deploy_is_told_and_the_plan_of_before_goes_on() -> None:
    world = await World.made(plan=None)
    deploy(world, CANARY)
    world.plans.refuse("user_config of the reconciler is refused: stepz")
    assert world.control.table.troubles == {FAMILY: "user_config of the reconciler is refused: stepz"}
    world.source.set_current("v2")
    await polled(world)
    assert (world.phase, world.rollout.state.plan) == (Phase.STEP, CANARY)
    (report,) = await world.control.rollouts()
    assert report.next_plan is not None
    assert report.next_plan.problem == "user_config of the reconciler is refused: stepz"


async def test_plan_of_a_call_that_does_not_fit_is_refused_with_all_that_is_wrong() -> None:
    world = await World.made()
    rolled = world.control._families[FAMILY].rolled
    assert rolled is not None
    problems = RolledFamily(rolled.advancer, rolled.plans, lambda _: ("pool: one thing", "targeting: another"))
    with pytest.raises(InvalidInputError, match=r"^plan\.pool: one thing; plan\.targeting: another$"):
        RolloutControl({FAMILY: problems}).plan(FAMILY, BY_TIME)
