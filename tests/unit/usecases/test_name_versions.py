"""Requests that name models, over a fake control plane whose loads the router learns of."""

import asyncio
from collections.abc import Callable

import pytest

from serve_app.domain.errors import (
    InvalidInputError,
    NotOfferedError,
    OverloadedError,
    RefusedVersionError,
    UnavailableError,
    UnknownFamilyError,
    UnknownVersionError,
)
from serve_app.domain.naming import NamingRule
from serve_app.domain.reload import Route, RoutingTable
from serve_app.usecases.coalesce_requests import BatchLimits
from serve_app.usecases.name_versions import MAX_DEMANDS, REFUSAL_MEMORY_S, NamedVersions, NamingSettings
from serve_app.usecases.route_request import RequestRouter, Target
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.predict_client import FakePredictClient
from tests.reports import report

FAMILY = "flowers"
RENEW_S = 30.0
MAX_WAITING = 3


class Gate:
    """The family flowers, whose own model iris has version 1; a family `plain` whose versions come from a directory."""

    def __init__(self, *, wait_s: float = 5.0) -> None:
        self.plane = FakeControlPlane(FAMILY)
        self.plane.on_demand = lambda _, version: self.held.append(version)
        self.clock = FakeClock()
        self.held = ["1"]
        self.n_refreshed = 0
        self.router = RequestRouter(
            (FAMILY, "plain"), default_family=FAMILY,
            clients={(FAMILY, "cpu"): FakePredictClient(), ("plain", "cpu"): FakePredictClient()},
            limits=BatchLimits(10, 1 << 16, 10, 30.0),
        )  # fmt: skip
        self.observe()
        self.router.observe("plain", "cpu", [report("v1", "v2", family="plain")])
        routes = {name: Route(version=version, digest="0" * 64) for name, version in ((FAMILY, "1"), ("plain", "v1"))}
        self.router.follow(RoutingTable(generation=1, routes=routes))
        rule = NamingRule("iris", other_models=True)
        self.names = NamedVersions(
            self.router, self.plane, {FAMILY: NamingSettings(rule, wait_s=wait_s, renew_s=RENEW_S)},
            refresh=self._refresh, clock=self.clock, max_waiting=MAX_WAITING,
        )  # fmt: skip

    def observe(self) -> None:
        self.router.observe(FAMILY, "cpu", [report(*self.held, family=FAMILY)])

    async def _refresh(self, family: str) -> None:
        assert family == FAMILY
        self.n_refreshed += 1
        self.observe()

    async def target(self, model: str | None = None, version: str | None = None, *, family: str = FAMILY) -> Target:
        return await self.names.target(family, model, version)


@pytest.fixture
async def gate() -> Gate:
    return Gate()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_own_version_that_is_loaded_is_found_at_once(gate: Gate) -> None:
    for model in (None, "iris"):
        target = await gate.target(model, "1")
        assert (target.version, target.reason) == ("1", "named")
    assert gate.plane.demanded == []


async def test_named_and_default_requests_share_their_batches(gate: Gate) -> None:
    assert (await gate.target(version="1")).coalescer is gate.router.target(FAMILY).coalescer


async def test_own_model_without_a_version_is_what_is_followed(gate: Gate) -> None:
    assert await gate.target("iris") is gate.router.target(FAMILY)
    assert await gate.target("iris", family="") is gate.router.target(FAMILY)


async def test_version_that_is_not_loaded_is_demanded_and_then_known(gate: Gate) -> None:
    gate.plane.offers = {("ant", "2"): "ant:2", (None, "3"): "3"}
    assert (await gate.target("ant", "2")).version == "ant:2"
    assert (await gate.target(version="3")).version == "3"
    assert (await gate.target("ant", "2")).version == "ant:2"
    assert gate.plane.demanded == [("ant", "2", False), (None, "3", False)]


async def test_requests_for_one_version_wait_for_one_demand(gate: Gate) -> None:
    gate.plane.offers = {("ant", "2"): "ant:2"}
    gate.plane.may_load.clear()
    calls = [asyncio.create_task(gate.target("ant", "2")) for _ in range(MAX_WAITING)]
    await until(lambda: len(gate.plane.demanded) == 1)
    with pytest.raises(OverloadedError, match="3 requests wait for versions to be loaded"):
        await gate.target("ant", "2")
    assert (await gate.target(version="1")).version == "1"
    gate.plane.may_load.set()
    assert {target.version for target in await asyncio.gather(*calls)} == {"ant:2"}
    assert (len(gate.plane.demanded), gate.n_refreshed) == (1, 1)


async def test_client_that_goes_away_leaves_the_others_waiting(gate: Gate) -> None:
    gate.plane.offers = {("ant", "2"): "ant:2"}
    gate.plane.may_load.clear()
    calls = [asyncio.create_task(gate.target("ant", "2")) for _ in range(2)]
    await until(lambda: len(gate.plane.demanded) == 1)
    calls[0].cancel()
    gate.plane.may_load.set()
    assert (await calls[1]).version == "ant:2"


async def test_wait_is_bounded() -> None:
    gate = Gate(wait_s=0.02)
    gate.plane.may_load.clear()
    with pytest.raises(UnavailableError, match=r"loaded") as caught:
        await gate.target("ant", "2")
    assert caught.value.retry_after_s >= 1


async def test_demands_under_way_are_bounded(gate: Gate) -> None:
    gate.plane.may_load.clear()
    gate.names._max_waiting = MAX_DEMANDS + 1
    calls = [asyncio.create_task(gate.target("ant", str(i))) for i in range(MAX_DEMANDS)]
    await until(lambda: len(gate.plane.demanded) == MAX_DEMANDS)
    with pytest.raises(OverloadedError, match="100 versions are being loaded"):
        await gate.target("bee", "1")
    gate.plane.may_load.set()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_refusal_is_repeated_for_a_moment_without_asking(gate: Gate) -> None:
    gate.plane.offers = {("bee", "1"): RefusedVersionError("it is broken")}
    for _ in range(3):
        with pytest.raises(RefusedVersionError):
            await gate.target("bee", "1")
        with pytest.raises(NotOfferedError):
            await gate.target("cow")
    assert len(gate.plane.demanded) == 2
    gate.clock.advance(REFUSAL_MEMORY_S)
    gate.plane.offers = {("bee", "1"): "bee:1", ("cow", None): "cow:1"}
    assert (await gate.target("bee", "1")).version == "bee:1"
    assert (await gate.target("cow")).version == "cow:1"


async def test_nothing_is_remembered_of_a_control_plane_that_is_away(gate: Gate) -> None:
    gate.plane.error = UnavailableError("the control plane cannot be reached now")
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await gate.target("ant", "2")
    gate.plane.error, gate.plane.offers = None, {("ant", "2"): "ant:2"}
    assert (await gate.target("ant", "2")).version == "ant:2"


async def test_choice_is_asked_anew_in_the_background(gate: Gate) -> None:
    gate.plane.offers = {("ant", None): "ant:1"}
    assert (await gate.target("ant")).version == "ant:1"
    gate.plane.offers = {("ant", None): "ant:2"}
    assert (await gate.target("ant")).version == "ant:1"
    gate.clock.advance(RENEW_S)
    gate.plane.may_load.clear()
    for _ in range(3):
        assert (await gate.target("ant")).version == "ant:1"
    await until(lambda: len(gate.plane.demanded) == 2)
    gate.plane.may_load.set()
    await until(lambda: "ant:2" in gate.held)
    await asyncio.sleep(0)
    assert (await gate.target("ant")).version == "ant:2"
    assert gate.plane.demanded == [("ant", None, False), ("ant", None, True)]


@pytest.mark.parametrize("error", [UnavailableError("away"), RefusedVersionError("broken")])
async def test_choice_that_cannot_be_renewed_stays_and_is_asked_again_later(gate: Gate, error: Exception) -> None:
    gate.plane.offers = {("ant", None): "ant:1"}
    await gate.target("ant")
    gate.plane.offers = {("ant", None): error}
    for i in range(2, 4):
        gate.clock.advance(RENEW_S)
        assert (await gate.target("ant")).version == "ant:1"
        await until(lambda n=i: len(gate.plane.demanded) == n)  # type: ignore[misc]  # mypy knows no defaults here
        await asyncio.sleep(0)
    assert (await gate.target("ant")).version == "ant:1"


async def test_choice_that_is_gone_is_forgotten(gate: Gate) -> None:
    gate.plane.offers = {("ant", None): "ant:1"}
    await gate.target("ant")
    gate.plane.offers = {}
    gate.clock.advance(RENEW_S)
    await gate.target("ant")
    await until(lambda: len(gate.plane.demanded) == 2)
    await asyncio.sleep(0)
    with pytest.raises(NotOfferedError):
        await gate.target("ant")


async def test_chosen_version_that_was_let_go_of_is_demanded(gate: Gate) -> None:
    gate.plane.offers = {("ant", None): "ant:1"}
    await gate.target("ant")
    gate.held.remove("ant:1")
    gate.observe()
    assert (await gate.target("ant")).version == "ant:1"
    assert len(gate.plane.demanded) == 2


async def test_version_that_only_reports_still_tell_of_is_demanded_again(gate: Gate) -> None:
    gate.plane.offers = {("ant", "2"): "ant:2"}
    await gate.target("ant", "2")
    assert (await gate.names.again(FAMILY, "ant", "2")).version == "ant:2"
    assert len(gate.plane.demanded) == 2


async def test_version_that_is_gone_before_it_could_be_used_is_told_as_loading(gate: Gate) -> None:
    gate.plane.offers = {("ant", "2"): "ant:2"}
    gate.plane.on_demand = lambda _family, _version: None
    with pytest.raises(UnavailableError, match="ant version 2 of family 'flowers' is being loaded; try again"):
        await gate.target("ant", "2")


async def test_family_without_a_registry_finds_only_what_is_loaded(gate: Gate) -> None:
    assert (await gate.target(version="v2", family="plain")).version == "v2"
    with pytest.raises(UnknownVersionError, match="version 'v3' of 'plain' is not loaded; loaded: v1, v2"):
        await gate.target(version="v3", family="plain")
    with pytest.raises(NotOfferedError, match="its versions come from no registry"):
        await gate.target("iris", family="plain")
    assert gate.plane.demanded == []


async def test_what_cannot_be_named_is_refused_before_anybody_is_asked(gate: Gate) -> None:
    with pytest.raises(UnknownFamilyError):
        await gate.target("ant", "1", family="trees")
    with pytest.raises(InvalidInputError):
        await gate.target("ant", "..")
    assert gate.plane.demanded == []
