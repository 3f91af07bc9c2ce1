"""Demands over fakes: what is named is tried once and loaded everywhere; what fails harms nothing else."""

import asyncio
from collections.abc import Callable

import pytest

from serve_app.domain.errors import (
    InvalidInputError,
    NotOfferedError,
    RefusedVersionError,
    SourceError,
    TrialError,
    UnavailableError,
)
from serve_app.domain.naming import Named, NamingRule
from serve_app.domain.reload import VersionRef
from serve_app.usecases.demand_versions import (
    LOAD_MEMORY_S,
    MAX_AT_ONCE,
    MAX_WAITING,
    RENEW_AT_MOST_EVERY_S,
    TRIAL_MEMORY_S,
    VersionDemands,
)
from serve_app.usecases.ports import TrialLimits
from serve_app.usecases.reload_model import ReloadPolicy
from tests import builders
from tests.fakes.bundle_source import FakeBundleSource
from tests.fakes.clock import FakeClock
from tests.fakes.fleet import FakeFleet, FakeReloadMeter
from tests.fakes.trial import FakeTrial

FAMILY = "flowers"
REMEMBER_S = 30.0
WAIT_S = 5.0


class Zoo:
    """A family whose own model is iris, over a registry with the models ant and bee."""

    def __init__(self, rule: NamingRule | None = None) -> None:
        self.source = FakeBundleSource()
        self.fleet = FakeFleet()
        self.trial = FakeTrial({FAMILY: {}})
        self.clock = FakeClock()
        self.meter = FakeReloadMeter()
        for version in ("1", "2", "ant:1", "ant:2", "bee:1"):
            self.publish(version)
        self.source.choose("ant", "ant:1")
        self.demands = VersionDemands(
            FAMILY,
            rule or NamingRule("iris", other_models=True),
            source=self.source,
            fleet=self.fleet,
            trial=self.trial,
            policy=ReloadPolicy(TrialLimits(10.0, 1 << 20), prepare_timeout_s=10.0),
            clock=self.clock,
            meter=self.meter,
            remember_s=REMEMBER_S,
        )

    def publish(self, version: str) -> str:
        bundle = builders.bundle({"a": version.encode()}, model_version=version)
        self.source.publish(bundle)
        self.trial.digests[FAMILY][version] = bundle.digest
        return bundle.digest

    def digest(self, version: str) -> str:
        return self.trial.digests[FAMILY][version]

    @property
    def loads(self) -> list[str]:
        return [line.removeprefix("load ") for line in self.fleet.log]

    @property
    def tried(self) -> list[str]:
        return [version for _, version in self.trial.tried]

    @property
    def results(self) -> list[str]:
        return [counted[2] for counted in self.meter.counted if counted[0] == "demand"]

    async def demand(self, model: str | None, version: str | None = None, *, renew: bool = False) -> VersionRef:
        return await self.demands.demand(model, version, wait_s=WAIT_S, renew=renew)

    def forget(self, version: str) -> None:
        """Let every replica let go of a version."""
        for held in self.fleet.held:
            held.pop(version, None)


@pytest.fixture
async def zoo() -> Zoo:
    return Zoo()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_named_version_is_tried_and_loaded_by_every_replica(zoo: Zoo) -> None:
    ref = await zoo.demand("ant", "2")
    assert ref == VersionRef(version="ant:2", digest=zoo.digest("ant:2"))
    assert zoo.tried == ["ant:2"]
    assert zoo.loads == ["ant:2"]
    assert all(held["ant:2"] == ref for held in zoo.fleet.held)
    assert zoo.results == ["loaded"]


async def test_own_version_has_no_model_in_its_name(zoo: Zoo) -> None:
    assert (await zoo.demand(None, "2")).version == "2"
    assert (await zoo.demand("iris", "1")).version == "1"


async def test_version_that_is_resident_everywhere_is_not_loaded(zoo: Zoo) -> None:
    await zoo.demand("ant", "2")
    await zoo.demand("ant", "2")
    assert (zoo.tried, zoo.loads, zoo.results) == (["ant:2"], ["ant:2"], ["loaded", "resident"])


async def test_version_that_was_let_go_of_is_loaded_without_trial_or_registry(zoo: Zoo) -> None:
    await zoo.demand("ant", "2")
    zoo.forget("ant:2")
    zoo.source.error = SourceError("away")
    await zoo.demand("ant", "2")
    assert (zoo.tried, zoo.loads) == (["ant:2"], ["ant:2", "ant:2"])


async def test_demands_for_one_version_share_one_trial(zoo: Zoo) -> None:
    zoo.trial.may_end.clear()
    calls = [asyncio.create_task(zoo.demand("ant", "1")) for _ in range(5)]
    calls += [asyncio.create_task(zoo.demand("ant")) for _ in range(5)]
    await until(lambda: zoo.tried == ["ant:1"])
    zoo.trial.may_end.set()
    assert {ref.version for ref in await asyncio.gather(*calls)} == {"ant:1"}
    assert (zoo.tried, zoo.loads) == (["ant:1"], ["ant:1"])


async def test_wait_is_bounded_and_the_demand_goes_on(zoo: Zoo) -> None:
    zoo.trial.may_end.clear()
    with pytest.raises(UnavailableError, match="ant version 1 of family 'flowers' is still being loaded") as caught:
        await zoo.demands.demand("ant", "1", wait_s=0.01)
    assert caught.value.retry_after_s > 1
    zoo.trial.may_end.set()
    await until(lambda: zoo.results == ["loaded"])
    assert zoo.trial.n_cancelled == 0


async def test_trials_take_turns_and_only_so_many_demands_wait(zoo: Zoo) -> None:
    for i in range(MAX_WAITING):
        zoo.publish(f"cat:{i}")
    zoo.trial.may_end.clear()
    calls = [asyncio.create_task(zoo.demand("cat", str(i))) for i in range(MAX_WAITING)]
    await until(lambda: len(zoo.tried) == 1)
    with pytest.raises(UnavailableError, match="100 versions of 'flowers' are asked for already"):
        await zoo.demand("ant", "1")
    zoo.trial.may_end.set()
    assert len(await asyncio.gather(*calls)) == MAX_WAITING


async def test_only_so_many_are_worked_on_at_once(zoo: Zoo) -> None:
    for version in ("1", "2", "3", "4", "5"):
        zoo.fleet.hangs.add(zoo.publish(f"cat:{version}"))
    calls = [asyncio.create_task(zoo.demand("cat", version)) for version in ("1", "2", "3", "4", "5")]
    await until(lambda: len(set(zoo.loads)) == MAX_AT_ONCE)
    zoo.fleet.hangs.clear()
    await asyncio.gather(*calls)
    assert len(zoo.tried) == 5


@pytest.mark.parametrize(("model", "version"), [("ant", "9"), ("cow", None), ("cow", "1"), (None, "9")])
async def test_what_the_registry_does_not_have_is_not_offered(zoo: Zoo, model: str | None, version: str | None) -> None:
    with pytest.raises(NotOfferedError, match="the registry of family 'flowers' has no"):
        await zoo.demand(model, version)
    assert (zoo.tried, zoo.results) == ([], ["unknown"])


async def test_rules_hold_whoever_calls(zoo: Zoo) -> None:
    with pytest.raises(NotOfferedError, match="does not serve"):
        await Zoo(NamingRule("iris")).demand("ant", "1")
    with pytest.raises(NotOfferedError, match="they come from no registry"):
        await Zoo(NamingRule()).demand(None, "1")
    with pytest.raises(InvalidInputError, match="expected a version, or a model that is not the family's own"):
        await zoo.demand("iris")


async def test_registry_that_is_away_is_told_with_a_time_to_try_again(zoo: Zoo) -> None:
    zoo.source.error = SourceError("the registry is away")
    for model, version in (("ant", "1"), ("ant", None)):
        with pytest.raises(UnavailableError, match="the registry is away") as caught:
            await zoo.demand(model, version)
        assert caught.value.retry_after_s > 1
    assert zoo.results == ["unavailable", "unavailable"]


async def test_bundle_that_fails_its_trial_is_refused_for_a_while_without_another(zoo: Zoo) -> None:
    zoo.trial.errors["ant:1"] = TrialError("it hangs")
    for _ in range(3):
        with pytest.raises(RefusedVersionError, match="version 'ant:1' of 'flowers' is refused: it hangs"):
            await zoo.demand("ant", "1")
    assert (zoo.tried, zoo.loads, zoo.results) == (["ant:1"], [], ["refused"] * 3)
    del zoo.trial.errors["ant:1"]
    zoo.clock.advance(TRIAL_MEMORY_S)
    await zoo.demand("ant", "1")


@pytest.mark.parametrize("error", [TrialError("no worker", blames_bundle=False), SourceError("away")])
async def test_trial_that_could_not_be_held_blames_nobody(zoo: Zoo, error: Exception) -> None:
    zoo.trial.errors["ant:1"] = error
    with pytest.raises(UnavailableError):
        await zoo.demand("ant", "1")
    zoo.trial.errors.clear()
    await zoo.demand("ant", "1")


async def test_bundle_that_changed_during_its_trial_is_not_loaded(zoo: Zoo) -> None:
    zoo.trial.digests[FAMILY]["ant:1"] = "f" * 64
    with pytest.raises(UnavailableError, match="changed during its trial"):
        await zoo.demand("ant", "1")
    assert zoo.loads == []


async def test_replica_that_cannot_load_it_refuses_it_for_a_minute(zoo: Zoo) -> None:
    zoo.fleet.refuses[zoo.digest("ant:1")] = "out of memory"
    for _ in range(2):
        with pytest.raises(RefusedVersionError, match="replica r0 of pool cpu: out of memory"):
            await zoo.demand("ant", "1")
    assert zoo.loads == ["ant:1"]
    zoo.fleet.refuses.clear()
    zoo.clock.advance(LOAD_MEMORY_S)
    zoo.fleet.failed = [{} for _ in zoo.fleet.held]  # as a replica forgets when it begins anew
    await zoo.demand("ant", "1")


async def test_replica_that_cannot_read_it_yet_refuses_nothing(zoo: Zoo) -> None:
    zoo.fleet.unreadable[1] = {zoo.digest("ant:1")}
    with pytest.raises(UnavailableError, match="node 1 does not have it"):
        await zoo.demand("ant", "1")
    zoo.fleet.unreadable.clear()
    await zoo.demand("ant", "1")


async def test_replica_that_comes_during_the_load_is_told_too(zoo: Zoo) -> None:
    digest = zoo.digest("ant:1")
    zoo.fleet.hangs.add(digest)
    call = asyncio.create_task(zoo.demand("ant", "1"))
    await until(lambda: len(zoo.loads) > 0)
    zoo.fleet.add_replica()
    zoo.fleet.hangs.clear()
    await call
    assert all("ant:1" in held for held in zoo.fleet.held)


async def test_load_without_end_is_given_up(zoo: Zoo) -> None:
    zoo.fleet.hangs.add(zoo.digest("ant:1"))
    call = asyncio.create_task(zoo.demand("ant", "1"))
    await until(lambda: len(zoo.loads) > 0)
    zoo.clock.advance(11.0)
    with pytest.raises(UnavailableError, match=r"not loaded within 10 s: 0 of 2 replicas have 'ant:1'"):
        await call


async def test_choice_of_a_selector_is_remembered_and_then_asked_anew(zoo: Zoo) -> None:
    assert (await zoo.demand("ant")).version == "ant:1"
    zoo.source.choose("ant", "ant:2")
    assert (await zoo.demand("ant")).version == "ant:1"
    zoo.clock.advance(REMEMBER_S)
    assert (await zoo.demand("ant")).version == "ant:2"
    assert zoo.source.n_chosen == 2


async def test_renewal_asks_at_once_but_not_all_the_time(zoo: Zoo) -> None:
    await zoo.demand("ant")
    zoo.source.choose("ant", "ant:2")
    assert (await zoo.demand("ant", renew=True)).version == "ant:1"
    zoo.clock.advance(RENEW_AT_MOST_EVERY_S)
    assert (await zoo.demand("ant", renew=True)).version == "ant:2"


async def test_last_choice_stays_while_the_registry_is_away(zoo: Zoo) -> None:
    await zoo.demand("ant")
    zoo.clock.advance(REMEMBER_S)
    zoo.source.error = SourceError("away")
    zoo.forget("ant:1")
    assert (await zoo.demand("ant")).version == "ant:1"
    assert "ant:1" in zoo.fleet.held[0]
    n_asked = zoo.source.n_chosen
    await zoo.demand("ant")
    assert zoo.source.n_chosen == n_asked


async def test_choice_that_cannot_be_served_leaves_the_last_one(zoo: Zoo) -> None:
    await zoo.demand("ant")
    zoo.source.choose("ant", "ant:2")
    zoo.trial.errors["ant:2"] = TrialError("it is broken")
    zoo.clock.advance(REMEMBER_S)
    assert (await zoo.demand("ant")).version == "ant:1"
    with pytest.raises(RefusedVersionError):
        await zoo.demand("ant", "2")


async def test_choice_that_was_taken_back_is_not_offered_any_more(zoo: Zoo) -> None:
    await zoo.demand("bee", "1")
    with pytest.raises(NotOfferedError):
        await zoo.demand("bee")
    zoo.source.choose("bee", "bee:1")
    assert (await zoo.demand("bee")).version == "bee:1"
    zoo.source.choose("bee", "bee:9")
    zoo.clock.advance(REMEMBER_S)
    with pytest.raises(NotOfferedError):
        await zoo.demand("bee")


async def test_preload_loads_all_and_tries_the_rest_again(zoo: Zoo) -> None:
    zoo.trial.errors["bee:1"] = TrialError("no worker", blames_bundle=False)
    waits: list[int] = []

    def delay_s(n_rounds: int) -> float:
        waits.append(n_rounds)
        if n_rounds == 1:
            zoo.trial.errors.clear()
        return 0.0

    await zoo.demands.preload([Named("bee", "1"), Named("ant", None), Named(None, "2")], delay_s=delay_s)
    assert set(zoo.fleet.held[0]) == {"ant:1", "2", "bee:1"}
    assert waits == [0, 1]
