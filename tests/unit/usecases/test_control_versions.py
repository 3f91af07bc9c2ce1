"""The control plane over fakes: what is asked for becomes active or nothing changes; any crash is resumed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from serve_app.domain.errors import (
    NotOfferedError,
    PinnedError,
    ReloadDisabledError,
    SourceError,
    StoreError,
    TrialError,
    UnavailableError,
    UnknownFamilyError,
    UnknownVersionError,
)
from serve_app.domain.following import FollowRule, ReloadMode
from serve_app.domain.naming import NamingRule
from serve_app.domain.reload import Operation, Outcome, Phase, VersionRef
from serve_app.usecases.control_versions import VersionControl
from serve_app.usecases.controlled_family import ControlledFamily
from serve_app.usecases.demand_versions import VersionDemands
from serve_app.usecases.follow_source import SourceFollower
from serve_app.usecases.keep_state import StateKeeper
from serve_app.usecases.ports import TrialLimits
from serve_app.usecases.reload_model import REREAD_S, ModelReloader, ReloadPolicy
from tests import builders
from tests.fakes.bundle_source import FakeBundleSource
from tests.fakes.clock import FakeClock
from tests.fakes.fleet import FakeFleet, FakeGateways, FakeReloadMeter
from tests.fakes.state_store import FakeStateStore

FAMILY = "forecaster"


class FakeTrial:
    """Passes every bundle but those in `refuses` (version -> reason); waits at the gate where there is one."""

    def __init__(self, source: FakeBundleSource) -> None:
        self.source = source
        self.refuses: dict[str, str] = {}
        self.gate: asyncio.Event | None = None
        self.tried: list[str] = []
        self.tries_copies = False  # which need no source

    async def run(self, family: str, version: str, limits: TrialLimits) -> VersionRef:
        self.tried.append(version)
        if self.gate is not None:
            await self.gate.wait()
        if version in self.refuses:
            raise TrialError(self.refuses[version])
        error, self.source.error = self.source.error, None if self.tries_copies else self.source.error
        try:
            return VersionRef(version=version, digest=self.source.fetch(version).digest)
        finally:
            self.source.error = error


@dataclass
class World:
    """All that outlives a Reconciler: store, source, replicas, gateways."""

    source: FakeBundleSource = field(default_factory=FakeBundleSource)
    store: FakeStateStore = field(default_factory=FakeStateStore)
    fleet: FakeFleet = field(default_factory=FakeFleet)
    gateways: FakeGateways = field(default_factory=FakeGateways)
    clock: FakeClock = field(default_factory=FakeClock)
    meter: FakeReloadMeter = field(default_factory=FakeReloadMeter)
    mode: ReloadMode = ReloadMode.POLL
    unloads_first: bool = False
    tried_under: str = ""

    def __post_init__(self) -> None:
        self.trial = FakeTrial(self.source)

    def publish(self, version: str, *, current: bool = True) -> None:
        self.source.publish(builders.bundle({"a": version.encode()}, model_version=version), current=current)

    async def reconciler(self, owner: str = "one") -> VersionControl:
        keeper = StateKeeper(self.store)
        reloader = ModelReloader(
            FAMILY,
            ReloadPolicy(TrialLimits(10.0, 1 << 20), prepare_timeout_s=10.0, unloads_first=self.unloads_first),
            keeper=keeper,
            fleet=self.fleet,
            gateways=self.gateways,
            trial=self.trial,
            clock=self.clock,
            meter=self.meter,
        )
        follower = SourceFollower(
            FAMILY,
            self.source,
            FollowRule(self.mode, 30.0),
            fleet=self.fleet,
            clock=self.clock,
            meter=self.meter,
            dice=lambda: 0.5,
        )
        control = VersionControl(
            {FAMILY: ControlledFamily(self.source, follower, reloader, tried_under=self.tried_under)},
            owner=owner,
            keeper=keeper,
            fleet=self.fleet,
            gateways=self.gateways,
            clock=self.clock,
            meter=self.meter,
        )
        await keeper.refresh()
        await control.keep_lease()
        return control


@pytest.fixture
def world() -> World:
    made = World()
    made.publish("v1")
    return made


async def reload(control: VersionControl, version: str | None = None, *, force: bool = False) -> Operation:
    return await control.reload(FAMILY, version=version, force=force, actor="ann", reason="test", wait_s=5.0)


async def settled(control: VersionControl) -> None:
    """Let what `tick` started come to its end."""
    await control.tick(FAMILY)
    async with asyncio.timeout(5):
        while (run := control._runs.under_way(FAMILY)) is not None:
            await run.done.wait()


def active(control: VersionControl) -> str | None:
    route = control.table.routes.get(FAMILY)
    return route.version if route else None


async def test_the_first_look_takes_up_what_the_source_calls_current(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    assert active(control) == "v1"
    assert world.trial.tried == ["v1"]
    assert world.gateways.tables[-1].generation == 1
    assert all("v1" in held for held in world.fleet.held)


async def test_a_reload_commits_only_after_every_replica_is_ready(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.fleet.n_unreachable = 1
    running = asyncio.create_task(reload(control))
    async with asyncio.timeout(5):
        while "prepare v1 v2" not in world.fleet.log:
            await asyncio.sleep(0)
    assert active(control) == "v1"
    world.fleet.n_unreachable = 0
    assert (await running).outcome is Outcome.RELOADED
    assert active(control) == "v2"
    assert all(set(held) == {"v1", "v2"} for held in world.fleet.held)


@pytest.mark.parametrize("n_replicas", [1, 2, 3, 4])
async def test_replicas_with_room_for_one_version_change_one_after_the_other_while_others_answer(
    n_replicas: int,
) -> None:
    world = World(fleet=FakeFleet(n_replicas), unloads_first=True)
    world.publish("v1")
    world.fleet.has_room_for_one = True
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.fleet.answering.clear()
    assert (await reload(control)).outcome is Outcome.RELOADED
    before_commit = list(world.fleet.answering)
    assert active(control) == "v2"
    assert sum("v2" in held for held in world.fleet.held) == (n_replicas + 1) // 2
    assert n_replicas == 1 or all(["v1"] in held for held in before_commit)
    await control.tick(FAMILY)
    assert all(set(held) == {"v2"} for held in world.fleet.held)
    calls = len(world.fleet.log)
    await control.tick(FAMILY)
    assert len(world.fleet.log) == calls  # the last good version is left out, and nobody is asked for it again


async def test_without_the_policy_a_candidate_without_room_is_not_waited_for_in_turns(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.fleet.has_room_for_one = True
    world.clock.advance(0.0)
    running = asyncio.create_task(reload(control))
    async with asyncio.timeout(5):
        while "prepare v1 v2" not in world.fleet.log:
            await asyncio.sleep(0)
    world.clock.advance(11)
    assert (await running).outcome is Outcome.FAILED
    assert not any("unloading" in line for line in world.fleet.log)


async def test_a_candidate_that_fails_on_the_first_replica_unloads_no_other(world: World) -> None:
    world.unloads_first = True
    world.fleet = FakeFleet(3)
    world.fleet.has_room_for_one = True
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.fleet.refuses[world.source.fetch("v2").digest] = "it is spoilt"
    assert (await reload(control)).outcome is Outcome.FAILED
    assert all(set(held) == {"v1"} for held in world.fleet.held)
    assert active(control) == "v1"


async def test_a_reload_of_what_is_active_changes_nothing(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    writes = world.store.n_writes
    assert (await reload(control)).outcome is Outcome.UNCHANGED
    assert world.store.n_writes == writes


async def test_a_bundle_refused_by_its_trial_never_reaches_a_replica(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.trial.refuses["v2"] = "it crashed"
    ended = await reload(control)
    assert (ended.outcome, ended.detail) == (Outcome.FAILED, "it crashed")
    assert active(control) == "v1"
    assert not any("v2" in line for line in world.fleet.log)


async def test_a_replica_that_refuses_the_candidate_aborts_the_change(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.fleet.refuses[world.source.fetch("v2").digest] = "no memory"
    ended = await reload(control)
    assert ended.outcome is Outcome.FAILED
    assert "no memory" in ended.detail
    assert active(control) == "v1"
    assert world.fleet.log[-2:] == ["hold v1", "evict v2"]


async def reload_that_one_node_cannot_read(world: World, control: VersionControl) -> asyncio.Task[Operation]:
    """Begin a reload of v2, which node 1 does not have, and return once the replicas were asked for it."""
    world.publish("v2")
    world.fleet.unreadable[1] = {world.source.fetch("v2").digest}
    reloading = asyncio.create_task(reload(control))
    async with asyncio.timeout(5):
        while not any("v2" in line for line in world.fleet.log):
            await asyncio.sleep(0)
    return reloading


async def test_a_node_that_gets_the_candidate_later_is_waited_for(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    reloading = await reload_that_one_node_cannot_read(world, control)
    del world.fleet.unreadable[1]
    world.clock.advance(REREAD_S)
    assert (await reloading).outcome is Outcome.RELOADED
    assert active(control) == "v2"


async def test_a_candidate_that_one_node_never_gets_is_given_up_and_not_held_against_it(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    reloading = await reload_that_one_node_cannot_read(world, control)
    world.clock.advance(11)
    ended = await reloading
    assert (ended.outcome, active(control)) == (Outcome.FAILED, "v1")
    assert "node 1 does not have it" in ended.detail
    del world.fleet.unreadable[1]
    assert (await reload(control)).outcome is Outcome.RELOADED


async def test_replica_that_cannot_read_what_it_should_hold_tries_less_and_less_often(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.fleet.held[1].clear()
    world.fleet.unreadable[1] = {world.source.fetch("v1").digest}
    await control.tick(FAMILY)  # it has not been told yet
    before = len(world.fleet.log)
    for _ in range(50):
        await control.tick(FAMILY)
        world.clock.advance(1)
    assert world.fleet.log[before:] == ["prepare v1"] * 4  # at once, after 5, 10, 30
    world.fleet.unreadable.clear()
    world.clock.advance(60)
    await control.tick(FAMILY)
    assert "v1" in world.fleet.held[1]


async def test_a_refused_bundle_is_not_tried_again_unless_forced(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.trial.refuses["v2"] = "it crashed"
    await reload(control)
    world.clock.advance(31)
    await settled(control)
    again = await reload(control)
    assert "it crashed" in again.detail
    assert world.trial.tried == ["v1", "v2"]
    world.trial.refuses.clear()
    assert (await reload(control, force=True)).outcome is Outcome.RELOADED
    assert active(control) == "v2"


async def test_polling_takes_up_a_new_version_after_the_interval(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    await settled(control)
    assert active(control) == "v1"
    world.clock.advance(31)
    await settled(control)
    assert active(control) == "v2"


async def test_a_version_chosen_by_hand_stays_until_the_source_changes_its_mind(world: World) -> None:
    world.publish("v0", current=False)
    control = await world.reconciler()
    await settled(control)
    await reload(control, "v0")
    world.clock.advance(31)
    await settled(control)
    assert active(control) == "v0"
    world.publish("v2")
    world.clock.advance(31)
    await settled(control)
    assert active(control) == "v2"


async def test_taking_the_pin_away_goes_back_to_what_the_source_calls_current(world: World) -> None:
    world.publish("v0", current=False)
    control = await world.reconciler()
    await settled(control)
    world.fleet.pin = "v0"
    await settled(control)
    assert active(control) == "v0"
    world.fleet.pin = "current"
    await settled(control)
    assert active(control) == "v1"


async def test_mode_endpoint_waits_for_a_call(world: World) -> None:
    world.mode = ReloadMode.ENDPOINT
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.clock.advance(3600)
    await settled(control)
    assert active(control) == "v1"
    await reload(control)
    assert active(control) == "v2"


async def test_a_bundle_refused_under_other_settings_is_taken_up_once_they_have_changed(world: World) -> None:
    world.tried_under = "no pickle"
    before = await world.reconciler()
    await settled(before)
    world.publish("v2")
    world.trial.refuses["v2"] = "pickle is not allowed"
    world.clock.advance(31)
    await settled(before)
    assert (active(before), [one.version for one in before.record(FAMILY).failed.values()]) == ("v1", ["v2"])

    world.trial.refuses.clear()
    again = await world.reconciler()  # the same settings: it stays refused
    await settled(again)
    assert active(again) == "v1"

    world.tried_under = "pickle allowed"
    changed = await world.reconciler()
    await settled(changed)
    assert (active(changed), changed.record(FAMILY).failed) == ("v2", {})


async def test_mode_none_refuses_calls(world: World) -> None:
    world.mode = ReloadMode.NONE
    control = await world.reconciler()
    await settled(control)
    with pytest.raises(ReloadDisabledError):
        await reload(control)


async def test_a_pin_is_followed_at_once_and_wins_over_calls(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.publish("v3")
    world.fleet.pin = "v2"
    await settled(control)
    assert active(control) == "v2"
    with pytest.raises(PinnedError, match="v2"):
        await reload(control, "v3")
    assert (await reload(control)).outcome is Outcome.UNCHANGED


@pytest.mark.parametrize("to", [None, "v1"])
async def test_a_pin_wins_over_a_rollback(world: World, to: str | None) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.fleet.pin = "v2"
    await settled(control)
    with pytest.raises(PinnedError, match="v2"):
        await control.rollback(FAMILY, to=to, actor="ann", wait_s=5.0)
    assert active(control) == "v2"


async def test_while_replicas_learn_of_a_new_pin_nothing_else_is_followed(world: World) -> None:
    """The source calls v9 current all the time: it must not be served in between."""
    world.fleet.pin = "v1"
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.publish("v9")
    world.fleet.pin, world.fleet.late_pins = "v2", {1: "v1"}
    for _ in range(2):
        world.clock.advance(31)
        await settled(control)
    assert active(control) == "v1"
    restarted = await world.reconciler()
    await settled(restarted)
    assert active(restarted) == "v1"
    world.fleet.late_pins = {}
    await settled(restarted)
    assert active(restarted) == "v2"
    assert world.trial.tried == ["v1", "v2"]


async def test_a_rollback_is_one_commit_and_polling_does_not_undo_it(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    await reload(control)
    tried = list(world.trial.tried)
    ended = await control.rollback(FAMILY, to=None, actor="ann", wait_s=5)
    assert (ended.outcome, ended.from_version, ended.to_version) == (Outcome.RELOADED, "v2", "v1")
    assert world.trial.tried == tried
    world.clock.advance(31)
    await settled(control)
    assert active(control) == "v1"


async def test_calls_at_the_same_time_join_one_operation(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.trial.gate = asyncio.Event()
    first, second = asyncio.create_task(reload(control)), asyncio.create_task(reload(control, "v2"))
    async with asyncio.timeout(5):
        while "v2" not in world.trial.tried:
            await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="under way"):
        await reload(control, "v1")
    world.trial.gate.set()
    assert (await first).operation_id == (await second).operation_id
    assert world.trial.tried == ["v1", "v2"]


async def test_waiting_ends_at_the_deadline_and_the_operation_can_be_asked_for(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.trial.gate = asyncio.Event()
    seen = await control.reload(FAMILY, version=None, force=False, actor="ann", reason="", wait_s=0.0)
    assert (seen.outcome, seen.phase) == (Outcome.RUNNING, Phase.TRIAL)
    world.trial.gate.set()
    await settled(control)
    ended = await control.operation(seen.operation_id)
    assert ended is not None
    assert ended.outcome is Outcome.RELOADED
    fresh = await world.reconciler()
    known = await fresh.operation(seen.operation_id)
    assert known is not None
    assert known.outcome is Outcome.RELOADED


class _CrashError(BaseException):
    """Ends the Reconciler as `kill -9` would: nothing after it runs."""


def _crash_after(store: FakeStateStore, n: int) -> Callable[[], None]:
    """Make the store take `n` more writes and then kill the writer, either before or after the write."""
    write, left = store.write, [n]

    def crashing(*args: object, **kwargs: object) -> None:
        if left[0] == 0:
            raise _CrashError
        left[0] -= 1
        write(*args, **kwargs)  # type: ignore[arg-type]  # passed on as they came

    store.write = crashing  # type: ignore[method-assign]

    def heal() -> None:
        store.write = write  # type: ignore[method-assign]

    return heal


@pytest.mark.parametrize("writes_before_the_crash", [0, 1, 2, 3])
async def test_a_crash_at_any_step_is_resumed_by_the_next_reconciler(
    world: World, writes_before_the_crash: int
) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    heal = _crash_after(world.store, writes_before_the_crash)
    task = asyncio.create_task(reload(control))
    await asyncio.wait([task, *control._runs._tasks], timeout=0.5)
    task.cancel()
    crashed = control.table
    assert active(control) in ("v1", "v2")
    heal()
    for leftover in control._runs._tasks:
        leftover.cancel()

    fresh = await world.reconciler()
    assert fresh.table == crashed or fresh.table.generation == crashed.generation + 1
    world.clock.advance(31)
    await settled(fresh)
    await settled(fresh)
    assert active(fresh) == "v2"
    assert fresh.record(FAMILY).change is None
    assert fresh.table.generation == 2
    assert world.gateways.tables[-1].routes == fresh.table.routes


async def test_a_store_that_cannot_be_written_refuses_the_change_and_keeps_serving(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.store.error = StoreError("disk full")
    with pytest.raises(StoreError, match="disk full"):
        await reload(control)
    assert active(control) == "v1"
    world.store.error = None
    assert (await reload(control)).outcome is Outcome.RELOADED


async def test_a_dead_source_lowers_nothing(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.source.error = SourceError("gone")
    world.clock.advance(31)
    await settled(control)
    assert active(control) == "v1"
    assert ("source_error", FAMILY) in world.meter.counted
    with pytest.raises(SourceError):
        await reload(control)
    assert (await reload(control, "v1")).outcome is Outcome.UNCHANGED


async def test_a_dead_source_is_told_of_until_the_first_look_in_the_usual_interval_that_finds_it(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    for error in (SourceError("gone"), SourceError("gone"), SourceError("gone")):
        world.source.error = error
        world.clock.advance(31)
        await settled(control)
        assert control.table.troubles == {FAMILY: "gone"}
    world.source.error = None
    world.clock.advance(31)
    await settled(control)
    assert control.table.troubles == {}


async def test_a_refused_candidate_is_told_of_until_there_is_a_better_one(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    world.trial.refuses["v2"] = "it crashed"
    for _ in range(2):
        world.clock.advance(31)
        await settled(control)
        assert "it crashed" in control.table.troubles[FAMILY]
    world.publish("v3")
    world.clock.advance(31)
    await settled(control)
    assert control.table.troubles == {}


async def test_a_refused_pin_is_told_of_until_the_wish_changes(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2", current=False)
    world.trial.refuses["v2"] = "it crashed"
    world.fleet.pin = "v2"
    await settled(control)
    assert "it crashed" in control.table.troubles[FAMILY]
    world.fleet.pin = "current"
    await settled(control)
    assert control.table.troubles == {}


async def test_without_a_model_the_source_is_asked_again_after_5_10_30_and_60_seconds(world: World) -> None:
    world.source.error = SourceError("gone")
    control = await world.reconciler()
    looked_at: list[float] = []
    for _ in range(240):
        before = len(world.meter.counted)
        await settled(control)
        if len(world.meter.counted) > before:
            looked_at.append(world.clock.monotonic_s())
        world.clock.advance(1)
    gaps = [round(after - before) for before, after in pairwise(looked_at)]
    assert gaps[:5] == [5, 10, 30, 60, 60]


async def test_a_dead_source_is_asked_ever_later_also_while_there_is_a_model_and_says_when(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.source.error = SourceError("gone")
    world.clock.advance(31)
    waits: list[float] = []
    for _ in range(4):
        await settled(control)
        next_try_s = control.table.sources[FAMILY].next_try_s
        assert next_try_s is not None
        waits.append(next_try_s - world.clock.now_s())
        world.clock.advance(waits[-1])
    assert waits == pytest.approx([5, 10, 30, 60])
    world.source.error = None
    await settled(control)
    assert control.table.sources[FAMILY].next_try_s is None


async def test_without_a_model_the_last_current_version_of_a_dead_source_is_taken_from_its_copy(world: World) -> None:
    world.source.error = SourceError("gone")
    control = await world.reconciler()
    await settled(control)
    assert active(control) is None
    world.source.remembers = True
    world.clock.advance(11)
    world.trial.tries_copies = True
    await settled(control)
    assert active(control) == "v1"
    assert control.table.troubles == {FAMILY: "gone"}


async def test_a_call_to_look_makes_the_next_turn_due_and_finds_what_is_new(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    await settled(control)
    assert active(control) == "v1"
    await control.look(FAMILY)
    async with asyncio.timeout(5):
        await control.turn(FAMILY, 60.0)
    await settled(control)
    assert active(control) == "v2"


async def test_a_replica_that_missed_the_change_is_made_whole(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.fleet.add_replica()
    await control.tick(FAMILY)
    assert "v1" in world.fleet.held[-1]


async def test_a_cluster_without_the_lease_follows_and_changes_nothing(world: World) -> None:
    leader = await world.reconciler("one")
    await settled(leader)
    follower = await world.reconciler("two")
    assert not follower.leads
    with pytest.raises(UnavailableError, match="another cluster"):
        await reload(follower, "v1")
    world.publish("v2")
    await reload(leader)
    await follower.keep_lease()
    assert active(follower) == "v2"
    assert world.gateways.tables[-1] == follower.table


async def test_unknown_names_are_refused(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    with pytest.raises(UnknownFamilyError):
        await control.reload("nosuch", version=None, force=False, actor="ann", reason="", wait_s=1)
    with pytest.raises(UnknownVersionError, match="v1"):
        await reload(control, "v9")
    with pytest.raises(UnknownVersionError):
        await control.rollback(FAMILY, to=None, actor="ann", wait_s=1)


async def test_the_audit_log_says_who_changed_what_and_how_it_ended(world: World) -> None:
    control = await world.reconciler()
    await settled(control)
    world.publish("v2")
    await reload(control)
    newest = (await control.audit(family=FAMILY, limit=10))[0]
    assert (newest.actor, newest.from_version, newest.to_version, newest.outcome) == (
        "ann",
        "v1",
        "v2",
        Outcome.RELOADED,
    )


async def test_demand_goes_to_the_family_that_loads_by_name(world: World) -> None:
    control = await world.reconciler()
    with pytest.raises(NotOfferedError, match="'forecaster' loads no versions by name"):
        await control.demand(FAMILY, model=None, version="v1", wait_s=1.0)
    with pytest.raises(UnknownFamilyError):
        await control.demand("iris", model=None, version="v1", wait_s=1.0)
    demands = VersionDemands(
        FAMILY, NamingRule("own"), source=world.source, fleet=world.fleet, trial=world.trial,
        policy=ReloadPolicy(TrialLimits(10.0, 1 << 20), prepare_timeout_s=10.0), clock=world.clock, meter=world.meter,
        remember_s=30.0,
    )  # fmt: skip
    control._families = {FAMILY: replace(control._families[FAMILY], demands=demands)}
    before = world.store.read()
    ref = await control.demand(FAMILY, model=None, version="v1", wait_s=1.0)
    assert world.fleet.held[0]["v1"] == ref
    assert world.store.read() == before
