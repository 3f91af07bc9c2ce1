"""Rollouts end to end in memory: traffic, evidence, verdicts, what becomes of them; operators; crashes at any point."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve_app.domain.errors import StoreError, TrialError
from serve_app.domain.evidence import Measurement
from serve_app.domain.looks import MAX_LOOKS
from serve_app.domain.reload import Outcome
from serve_app.domain.rollout import Command
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_state import (
    NoRolloutError,
    PauseReason,
    Phase,
    RolloutConflictError,
    RolloutTransitionError,
)
from serve_app.domain.verdict import Verdict
from tests.fakes.traffic import Behaviour
from tests.unit.usecases.rolled import CANARY, FAMILY, World

BY_TIME = CANARY.model_copy(update={"analysis": None})
WATCHED = RolloutPlan.model_validate(
    {
        "strategy": "immediate",
        "watch_s": 40,
        "holdback": 20,
        "analysis": {"metrics": [{"kind": "error_rate", "max_increase": 0.05}]},
    }
)
FAILING = Behaviour(error_rate=0.06)
SLOW = Behaviour(latency_s=0.013)


def candidate_share(world: World) -> int:
    """What the gateways send to the candidate by the table that they follow, in buckets."""
    split = world.gateways.tables[-1].splits.get(FAMILY)
    return sum(variant.weight for variant in split.variants[1:]) if split else 0


def held(world: World) -> list[list[str]]:
    return [sorted(replica) for replica in world.fleet.held]


async def in_first_step(plan: RolloutPlan = CANARY, behaviour: Behaviour | None = None) -> World:
    world = await World.made(plan)
    if behaviour is not None:
        world.gateways.behaviours["v2"] = behaviour
    await world.start()
    assert (world.phase, candidate_share(world)) == (Phase.STEP, 1_000)
    return world


# What becomes of a candidate


async def test_equal_candidate_is_promoted_step_by_step() -> None:
    world = await in_first_step()
    assert held(world) == [["v1", "v2"]] * 2
    await world.pass_time(3_000, requests=500)
    assert (world.phase, world.active) == (Phase.SUCCEEDED, "v2")
    assert [(move.to, move.step) for move in world.rollout.state.history] == [
        (Phase.STEP, 0), (Phase.STEP, 1), (Phase.PROMOTING, 1), (Phase.SUCCEEDED, 1),
    ]  # fmt: skip
    assert world.gateways.tables[-1].routes[FAMILY].version == "v2"
    assert world.gateways.tables[-1].splits == {}
    assert world.store.read().family(FAMILY).last_good == world.rollout.state.stable
    assert world.meter.told[FAMILY] == (Phase.SUCCEEDED, 100.0, Verdict.PASS)


@pytest.mark.parametrize(("behaviour", "metric"), [(FAILING, "error_rate"), (SLOW, "latency_p95")])
async def test_worse_candidate_is_aborted_distrusted_and_released(behaviour: Behaviour, metric: str) -> None:
    world = await in_first_step(behaviour=behaviour)
    await world.pass_time(600, requests=500)
    assert (world.phase, world.active) == (Phase.ABORTED, "v1")
    assert metric in world.rollout.state.history[-2].reason
    assert held(world) == [["v1"]] * 2
    assert world.rollout.state.candidate.digest in world.store.read().family(FAMILY).failed
    assert (candidate_share(world), world.gateways.tables[-1].routes[FAMILY].version) == (0, "v1")
    assert world.rollout.state.exposed_requests == sum(world.gateways.candidate_requests)


async def test_abort_takes_all_traffic_away_within_the_tick_that_decides_it() -> None:
    world = await in_first_step(behaviour=FAILING)
    while world.phase is Phase.STEP:
        await world.pass_time(5, requests=500)
    assert world.phase is Phase.ABORTED
    world.gateways.ask(FAMILY, 10_000)
    assert world.gateways.candidate_requests[-1] == 0


async def test_candidate_that_fails_its_trial_aborts_and_no_replica_meets_it() -> None:
    world = await World.made()
    world.trial.errors["v2"] = TrialError("it hung")
    await world.start()
    assert (world.phase, world.active) == (Phase.ABORTED, "v1")
    assert "it hung" in world.rollout.state.history[0].reason
    assert held(world) == [["v1"]] * 2
    assert not any("v2" in line for line in world.fleet.log if line.startswith("prepare"))
    assert world.rollout.state.candidate.digest in world.store.read().family(FAMILY).failed


async def test_candidate_that_a_replica_refuses_is_aborted() -> None:
    world = await World.made()
    world.fleet.refuses[world.source.find("v2").fingerprint] = "no room"
    await world.start()
    assert (world.phase, world.active, held(world)) == (Phase.ABORTED, "v1", [["v1"]] * 2)


async def test_promotion_that_breaks_fails_and_traffic_stays_on_stable() -> None:
    world = await in_first_step()
    world.fleet.add_replica()
    world.fleet.refuses[world.rollout.state.candidate.digest] = "out of memory"
    await world.command(Command.PROMOTE)
    await world.turn()
    assert (world.phase, world.active, candidate_share(world)) == (Phase.FAILED, "v1", 0)
    assert "out of memory" in world.rollout.state.history[-1].reason


async def test_shadow_answers_nobody_and_ends_without_a_change() -> None:
    plan = RolloutPlan.model_validate({"strategy": "shadow", "shadow_first": {"hold_s": 60}, "deadline_s": 4_000})
    world = await World.made(plan)
    await world.start()
    assert world.phase is Phase.SHADOW
    await world.pass_time(3_000, requests=500)
    assert (world.phase, world.active) == (Phase.SUCCEEDED, "v1")
    assert (sum(world.gateways.candidate_requests), world.rollout.state.exposed_requests) == (0, 0)
    assert held(world) == [["v1"]] * 2


async def test_experiment_runs_its_time_and_promotes_nothing() -> None:
    plan = RolloutPlan.model_validate({"strategy": "ab", "steps": [{"weight": 50}], "deadline_s": 600})
    world = await World.made(plan)
    await world.start()
    assert (world.phase, candidate_share(world)) == (Phase.EXPERIMENT, 5_000)
    await world.pass_time(700, requests=100)
    assert (world.phase, world.active) == (Phase.SUCCEEDED, "v1")
    analysis = world.rollout.analysis
    assert analysis is not None
    assert analysis.metrics[0].canary is not None


async def test_watched_promotion_succeeds_after_its_time() -> None:
    world = await in_first_step(BY_TIME.model_copy(update={"watch_s": 30.0}))
    await world.pass_time(50)
    assert (world.phase, world.active) == (Phase.WATCHING, "v2")
    await world.pass_time(30)
    assert world.phase is Phase.SUCCEEDED


async def test_version_that_gets_worse_while_it_is_watched_is_taken_back_at_once() -> None:
    world = await World.made(WATCHED)
    world.gateways.behaviours["v2"] = Behaviour(error_rate=0.3)
    await world.start()
    assert (world.phase, world.active, candidate_share(world)) == (Phase.WATCHING, "v2", 8_000)
    await world.pass_time(30, requests=500)
    assert (world.phase, world.active, held(world)) == (Phase.ABORTED, "v1", [["v1"]] * 2)
    world.gateways.ask(FAMILY, 1_000)
    assert world.gateways.candidate_requests[-1] == 0
    assert world.rollout.state.history[-2].reason.startswith("fail after the promotion: error_rate")


async def test_watch_of_one_that_stays_good_ends_with_all_traffic() -> None:
    world = await World.made(WATCHED)
    await world.start()
    await world.pass_time(30, requests=500)
    assert (world.phase, world.meter.told[FAMILY][1]) == (Phase.WATCHING, 80.0)
    await world.pass_time(20, requests=500)
    assert (world.phase, world.active, world.gateways.tables[-1].splits) == (Phase.SUCCEEDED, "v2", {})


async def test_abort_while_watching_brings_the_stable_version_back() -> None:
    world = await in_first_step(BY_TIME.model_copy(update={"watch_s": 300.0}))
    await world.pass_time(50)
    await world.command(Command.ABORT)
    assert (world.phase, world.active, held(world)) == (Phase.ABORTED, "v1", [["v1"]] * 2)
    assert world.gateways.tables[-1].routes[FAMILY].version == "v1"


# Evidence


async def test_no_traffic_is_no_verdict_at_first_and_pauses_in_the_end() -> None:
    world = await in_first_step()
    await world.pass_time(25)
    assert (world.phase, world.rollout.state.errors) == (Phase.STEP, 0)
    await world.pass_time(200)
    assert (world.phase, world.rollout.state.pause_reason) == (Phase.PAUSED, PauseReason.ERRORS)
    assert candidate_share(world) == 1_000


async def test_counts_of_silent_and_restarted_gateways_are_taken_once_or_never() -> None:
    world = await in_first_step()
    await world.pass_time(5, requests=100)
    world.gateways.silent = {"g2"}
    await world.pass_time(10, requests=100)
    world.gateways.silent = set()
    world.gateways.restart("g1", "g3")
    await world.pass_time(5, requests=100)
    tally = world.rollout.tally
    asked = 4 * 2 * 100
    assert tally.stable.requests + tally.canary.requests == asked
    world.gateways.ask(FAMILY, 100)
    world.gateways.restart("g2", "g4")  # what it has not told is lost
    await world.pass_time(5, requests=100)
    tally = world.rollout.tally
    assert tally.stable.requests + tally.canary.requests == asked + 3 * 100


async def test_silence_of_all_gateways_is_an_error() -> None:
    world = await in_first_step()
    world.gateways.silent = {"g1", "g2"}
    await world.pass_time(40)
    assert world.rollout.state.errors == 1
    assert world.rollout.analysis is not None
    assert world.rollout.analysis.verdict is Verdict.ERROR


async def test_split_is_judged_only_in_windows_of_one_weight() -> None:
    world = await in_first_step()
    before = world.rollout
    await world.pass_time(5, requests=100)
    once = world.rollout
    assert (before.weight, once.weight, once.tally.split.weight) == (None, 1_000, 0.0)
    await world.pass_time(5, requests=100)
    assert world.rollout.tally.split.weight > 0


async def test_broken_split_is_an_error_that_pauses() -> None:
    world = await in_first_step()
    for _ in range(60):
        world.clock.advance(5)
        world.gateways.ask(FAMILY, 200)
        for by_salt in world.gateways.counts.values():
            for counts in by_salt.values():
                more = Measurement(assigned=100)
                counts["canary"] = counts.get("canary", Measurement()).merged(more)
        await world.turn()
    analysis = world.rollout.analysis
    assert analysis is not None
    assert "split" in analysis.reason
    assert world.phase is Phase.PAUSED


async def test_cap_on_requests_takes_the_candidate_off_all_traffic() -> None:
    world = await in_first_step(BY_TIME.model_copy(update={"max_exposed_requests": 50}))
    await world.pass_time(5, requests=500)
    assert (world.phase, world.rollout.state.pause_reason, candidate_share(world)) == (
        Phase.PAUSED, PauseReason.CAP, 0,
    )  # fmt: skip
    await world.command(Command.RESUME)
    assert candidate_share(world) == 1_000


# Operators


async def test_pause_keeps_the_weight_and_resume_goes_on() -> None:
    world = await in_first_step(BY_TIME)
    await world.command(Command.PAUSE)
    await world.pass_time(200)
    assert (world.phase, candidate_share(world)) == (Phase.PAUSED, 1_000)
    await world.command(Command.RESUME)
    await world.pass_time(100)
    assert (world.phase, world.active) == (Phase.SUCCEEDED, "v2")


async def test_skip_goes_to_the_next_step_at_once() -> None:
    world = await in_first_step()
    await world.command(Command.SKIP_STEP)
    assert (world.rollout.state.step, candidate_share(world)) == (1, 5_000)


async def test_promote_does_not_wait_for_verdicts() -> None:
    world = await in_first_step()
    await world.command(Command.PROMOTE)
    await world.turn()
    assert (world.phase, world.active) == (Phase.SUCCEEDED, "v2")


async def test_abort_leaves_a_candidate_that_did_not_fail_its_good_name_but_it_does_not_come_back() -> None:
    world = await in_first_step()
    world.source.set_current("v2")
    await world.command(Command.ABORT)
    assert (world.phase, world.active) == (Phase.ABORTED, "v1")
    assert world.store.read().family(FAMILY).failed == {}


async def test_retry_begins_anew_with_other_keys_and_no_evidence() -> None:
    world = await in_first_step(behaviour=FAILING)
    salt = world.rollout.state.salt
    await world.pass_time(600, requests=500)
    world.gateways.behaviours["v2"] = Behaviour()
    await world.command(Command.RETRY)
    assert (world.phase, world.rollout.tally.n_windows, world.rollout.analysis) == (Phase.PENDING, 0, None)
    await world.turn()
    assert (world.phase, candidate_share(world)) == (Phase.STEP, 1_000)
    assert world.rollout.state.salt != salt
    await world.pass_time(3_000, requests=500)
    assert (world.phase, world.active) == (Phase.SUCCEEDED, "v2")
    assert world.store.read().family(FAMILY).failed == {}


async def test_retry_is_refused_when_another_version_is_active_since() -> None:
    world = await in_first_step()
    await world.command(Command.ABORT)
    world.publish("v3", current=False)
    await world.control.reload(FAMILY, version="v3", force=False, actor="ann", reason="", wait_s=5, immediate=True)
    with pytest.raises(RolloutConflictError, match="expected 'v1' to be active, found 'v3'"):
        await world.command(Command.RETRY)


async def test_command_that_does_not_fit_the_phase_changes_nothing() -> None:
    world = await in_first_step()
    before = world.store.read()
    with pytest.raises(RolloutTransitionError, match="resume: expected a rollout that is paused"):
        await world.command(Command.RESUME)
    assert world.store.read() == before


async def test_command_without_a_rollout_is_refused() -> None:
    world = await World.made()
    with pytest.raises(NoRolloutError):
        await world.command(Command.ABORT)


async def test_audit_log_names_who_moved_the_rollout_and_why() -> None:
    world = await in_first_step()
    await world.command(Command.PAUSE)
    await world.command(Command.ABORT)
    entries = [entry for entry in await world.control.audit(family=FAMILY, limit=20) if "rollout" in entry.action]
    assert [(entry.action, entry.actor, entry.outcome) for entry in reversed(entries)] == [
        ("rollout pending", "ann", Outcome.RUNNING),
        ("rollout step", "rollout", Outcome.RUNNING),
        ("rollout paused", "ann", Outcome.RUNNING),
        ("rollout aborting", "ann", Outcome.RUNNING),
        ("rollout aborted", "rollout", Outcome.FAILED),
    ]
    assert {(entry.from_version, entry.to_version) for entry in entries} == {("v1", "v2")}
    assert {entry.operation_id for entry in entries} == {world.rollout.state.rollout_id}


async def test_store_that_cannot_be_written_moves_nothing() -> None:
    world = await in_first_step()
    before = world.rollout
    world.store.error = StoreError("disk full")
    with pytest.raises(StoreError):
        await world.command(Command.ABORT)
    world.store.error = None
    assert world.rollout == before


# Crashes


class _CrashError(BaseException):
    """Ends the Reconciler as `kill -9` would: nothing after it runs."""


class Bomb:
    """Crashes at the nth touch of the outside: a write to the store, or a call to replicas, gateways or the trial."""

    def __init__(self, at: int, *, before: bool) -> None:
        self.at = at
        self.before = before
        self.n_touches = 0

    def arm(self, world: World) -> None:
        world.store.write = self._blocking(world.store.write)  # type: ignore[method-assign]
        for owner, names in (
            (world.fleet, ("prepare", "hold", "evict")),
            (world.gateways, ("push", "refresh", "evidence")),
            (world.trial, ("run",)),
        ):
            for name in names:
                setattr(owner, name, self._awaited(getattr(owner, name)))

    def _blocking(self, call: Callable[..., None]) -> Callable[..., None]:
        def touched(*args: Any, **kwargs: Any) -> None:
            self._tick(is_before=True)
            call(*args, **kwargs)
            self._tick(is_before=False)

        return touched

    def _awaited(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def touched(*args: Any, **kwargs: Any) -> Any:
            self._tick(is_before=True)
            answer = await call(*args, **kwargs)
            self._tick(is_before=False)
            return answer

        return touched

    def _tick(self, *, is_before: bool) -> None:
        if is_before != self.before:
            return
        self.n_touches += 1
        if self.n_touches == self.at:
            raise _CrashError


async def carried_through(world: World) -> None:
    """Go on until the rollout is over and released; after a crash with a new Reconciler."""
    for _ in range(200):
        try:
            if world.store.read().family(FAMILY).rollout is None:
                await world.start()
            world.clock.advance(5)
            world.gateways.ask(FAMILY, 500)
            await world.turn()
        except _CrashError:
            await world.begin()
        found = world.store.read().family(FAMILY).rollout
        if found is not None and found.is_released:
            return
    raise AssertionError(f"not over: {world.phase}")


async def n_touches(plan: RolloutPlan, behaviour: Behaviour) -> int:
    world, bomb = await World.made(plan), Bomb(0, before=True)
    world.gateways.behaviours["v2"] = behaviour
    bomb.arm(world)
    await carried_through(world)
    return bomb.n_touches


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("plan", "behaviour", "phase", "active"),
    [
        (BY_TIME, Behaviour(), Phase.SUCCEEDED, "v2"),
        (CANARY, FAILING, Phase.ABORTED, "v1"),
        (WATCHED, Behaviour(), Phase.SUCCEEDED, "v2"),
        (WATCHED, Behaviour(error_rate=0.3), Phase.ABORTED, "v1"),
    ],
    ids=["promoted", "aborted", "watched", "taken back"],
)
async def test_crash_at_any_touch_of_the_outside_leads_to_the_same_end(
    plan: RolloutPlan, behaviour: Behaviour, phase: Phase, active: str, before: bool
) -> None:
    total = await n_touches(plan, behaviour)
    assert total > 20
    for at in range(1, total + 1):
        world, bomb = await World.made(plan), Bomb(at, before=before)
        world.gateways.behaviours["v2"] = behaviour
        bomb.arm(world)
        await carried_through(world)
        assert bomb.n_touches >= at
        assert (world.phase, world.active) == (phase, active), at
        assert held(world) == ([["v1", "v2"]] if active == "v2" else [["v1"]]) * 2, at
        assert world.gateways.tables[-1].routes[FAMILY].version == active, at
        assert world.gateways.tables[-1].splits == {}, at
        assert world.rollout.state.exposed_requests <= sum(world.gateways.candidate_requests), at


async def test_crash_of_a_paused_rollout_leaves_it_paused_with_its_traffic() -> None:
    world = await in_first_step(BY_TIME)
    await world.command(Command.PAUSE)
    await world.begin()
    await world.pass_time(100)
    assert (world.phase, candidate_share(world)) == (Phase.PAUSED, 1_000)
    assert world.control.table.splits == world.gateways.tables[-1].splits


async def test_load_under_way_is_ended_by_an_abort() -> None:
    world = await World.made()
    world.trial.may_end.clear()
    await world.control.start_rollout(FAMILY, version="v2", plan=None, force=False, actor="ann", reason="")
    await world.control.tick(FAMILY)
    await asyncio.sleep(0.01)
    assert world.trial.tried == [(FAMILY, "v1"), (FAMILY, "v2")]
    await world.command(Command.ABORT)
    await asyncio.sleep(0)
    assert (world.phase, world.trial.n_cancelled) == (Phase.ABORTED, 1)


# What is told of it


async def test_report_has_every_look_and_stays_when_all_is_over() -> None:
    world = await in_first_step(behaviour=FAILING)
    await world.pass_time(20, requests=100)
    told = await world.control.rollout_report(FAMILY)
    assert (told.n_looks, len(told.metrics[0].over_time)) == (4, 4)
    assert told.metrics[0].over_time[-1].at_s == world.clock.now_s()
    await world.pass_time(2_000, requests=500)
    ended = await world.control.rollout_report(FAMILY)
    assert (ended.phase, ended.is_over, ended.verdict) == (Phase.ABORTED, True, Verdict.FAIL)
    assert ended.metrics[0].over_time[: len(told.metrics[0].over_time)] == told.metrics[0].over_time
    await world.begin()  # another Reconciler
    again = await world.control.rollout_report(FAMILY)
    assert again.model_copy(update={"told_at_s": ended.told_at_s}) == ended


async def test_family_without_a_rollout_has_no_report() -> None:
    world = await World.made()
    with pytest.raises(NoRolloutError):
        await world.control.rollout_report(FAMILY)


async def test_stored_record_stays_small_however_long_an_experiment_runs() -> None:
    plan = RolloutPlan.model_validate({"strategy": "ab", "steps": [{"weight": 50}], "deadline_s": 90_000})
    world = await World.made(plan)
    await world.start()
    await world.pass_time(5.0 * (MAX_LOOKS + 5), requests=20)
    looks = world.rollout.looks[Phase.STEP]
    assert (looks.count, looks.every) == (MAX_LOOKS + 5, 2)
    assert len(world.rollout.model_dump_json()) < 32_000
