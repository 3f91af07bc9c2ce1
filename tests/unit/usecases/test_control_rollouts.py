"""What begins a rollout, what ends one, and how changes of version and rollouts keep out of each other's way."""

import pytest

from serve_app.domain.errors import PinnedError, RefusedVersionError, UnavailableError
from serve_app.domain.reload import Operation, Outcome
from serve_app.domain.rollout import Command
from serve_app.domain.rollout_state import NoPlanError, Phase, RolloutConflictError, RolloutTransitionError
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
