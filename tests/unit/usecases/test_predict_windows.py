import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.domain.errors import InvalidInputError, NoModelError, UnavailableError, UnknownVersionError
from serve_app.domain.reload import Route, RoutingTable
from serve_app.domain.temporal import TemporalShape
from serve_app.domain.windows import Metric, WindowRules
from serve_app.usecases.coalesce_requests import BatchLimits
from serve_app.usecases.predict_windows import CALL_WINDOWS, WindowForecaster
from serve_app.usecases.route_request import RequestRouter
from tests.fakes.clock import FakeClock
from tests.fakes.predict_client import FakePredictClient, Model
from tests.fakes.window_reader import FakeTrainedEntities, FakeWindowReader
from tests.reports import loaded, report

RULES = WindowRules((Metric("cpu"), Metric("ram")), length=4)
SHAPE = TemporalShape(
    mode="tft", metrics=("cpu", "ram"), units=("percent", "percent"), max_encoder_length=3, max_prediction_length=2,
    step_s=300, quantiles=(0.1, 0.5, 0.9), n_entities=1,
)  # fmt: skip
END_STEP = 1000


def newest(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Forecast the newest value of the first metric, everywhere."""
    return np.repeat(rows[:, -2:-1], 2 * 2 * 3, axis=1)


def forecast(value: float) -> Model:
    return lambda rows: np.full((len(rows), 2 * 2 * 3), value)


class Fleet:
    def __init__(self, models: dict[str, Model] | None = None) -> None:
        self.client = FakePredictClient(models or {"v1": newest}, family="tft", capacity=2)
        self.clock = FakeClock()
        self.router = RequestRouter(
            ("tft",), default_family="tft", clients={("tft", "cpu"): self.client},
            limits=BatchLimits(1000, 1 << 20, 100, 30.0),
        )  # fmt: skip
        self.store = FakeWindowReader(RULES, now_s=self.clock.now_s())
        self.trained = FakeTrainedEntities({"v1": ["a"]})
        self.forecaster = WindowForecaster("tft", self.router, self.store, trained=self.trained, clock=self.clock)

    def fill(self, *entities: str, steps: int = 3, end_step: int = END_STEP) -> None:
        for entity in entities:
            self.store.fill(entity, steps, end_step=end_step)

    def route(self, version: str, *, generation: int = 1, temporal: TemporalShape | None = SHAPE) -> None:
        held = [loaded(name, temporal=temporal) for name in self.client.models]
        self.router.observe("tft", "cpu", [report(*held, family="tft")])
        self.router.follow(RoutingTable(generation=generation, routes={"tft": Route(version=version, digest="0" * 64)}))


@pytest.fixture
async def fleet() -> Fleet:
    made = Fleet()
    made.route("v1")
    return made


async def test_all_that_warmed_up_is_forecast_in_one_pass(fleet: Fleet) -> None:
    fleet.fill("a", "b")
    fleet.fill("young", steps=1)
    told = await fleet.forecaster.fleet()
    assert told.entities == ("a", "b")
    assert told.values.shape == (2, 2, 2, 3)
    assert (told.values == END_STEP % 100).all()
    assert told.lacking == {"young": "1 of 3 steps"}
    assert told.trained == frozenset({"a"})
    assert told.end_times_s.tolist() == [END_STEP * 300] * 2
    assert told.generated_at_s == fleet.clock.now_s()


async def test_a_large_fleet_goes_out_in_several_calls_and_comes_back_in_order(fleet: Fleet) -> None:
    names = [f"s{i}" for i in range(2 * CALL_WINDOWS + 5)]
    for i, name in enumerate(names):
        fleet.fill(name, end_step=END_STEP + i % 7)
    told = await fleet.forecaster.fleet()
    assert told.entities == tuple(names)
    expected = [(END_STEP + i % 7) % 100 for i in range(len(names))]
    assert told.values[:, 0, 0, 0].tolist() == expected
    assert sum(map(len, fleet.client.batches)) == len(names)


async def test_a_fleet_of_nobody_is_an_answer_too(fleet: Fleet) -> None:
    assert (await fleet.forecaster.fleet()).entities == ()


async def test_the_same_windows_are_not_computed_twice_by_one_version(fleet: Fleet) -> None:
    fleet.fill("a")
    first = await fleet.forecaster.fleet()
    assert await fleet.forecaster.fleet() is first
    fleet.fill("b")
    assert (await fleet.forecaster.fleet()).entities == ("a", "b")
    assert fleet.store.reads == 2


async def test_a_new_version_computes_anew() -> None:
    fleet = Fleet({"v1": forecast(1), "v2": forecast(2)})
    fleet.route("v1")
    fleet.fill("a")
    assert (await fleet.forecaster.fleet()).values[0, 0, 0, 0] == 1
    fleet.route("v2", generation=2)
    told = await fleet.forecaster.fleet()
    assert (told.values[0, 0, 0, 0], told.target.version) == (2, "v2")


async def test_those_who_ask_during_a_pass_share_the_next_which_sees_what_came_meanwhile(fleet: Fleet) -> None:
    fleet.fill("a")
    fleet.client.is_held = True
    first = asyncio.create_task(fleet.forecaster.fleet())
    while not fleet.client.n_held:
        await asyncio.sleep(0)
    fleet.fill("b")
    others = [asyncio.create_task(fleet.forecaster.fleet()) for _ in range(5)]
    await asyncio.sleep(0)
    fleet.client.is_held = False
    fleet.client.release()
    assert (await first).entities == ("a",)
    shared = await asyncio.gather(*others)
    assert all(one is shared[0] for one in shared)
    assert shared[0].entities == ("a", "b")
    assert fleet.store.reads == 2


async def test_a_caller_that_goes_away_takes_nobodys_answer_along(fleet: Fleet) -> None:
    fleet.fill("a")
    fleet.client.is_held = True
    gone, stays = (asyncio.create_task(fleet.forecaster.fleet()) for _ in range(2))
    while not fleet.client.n_held:
        await asyncio.sleep(0)
    gone.cancel()
    fleet.client.release()
    assert (await stays).entities == ("a",)


async def test_while_the_store_is_away_the_last_forecasts_are_given_and_say_so(fleet: Fleet) -> None:
    fleet.fill("a")
    before = await fleet.forecaster.fleet()
    fleet.store.error = UnavailableError("the windows cannot be reached now")
    told = await fleet.forecaster.fleet()
    assert told.values is before.values
    assert told.store_error == "the windows cannot be reached now"
    fleet.store.error = None
    assert await fleet.forecaster.fleet() is before


async def test_a_store_that_is_away_from_the_start_is_unavailable(fleet: Fleet) -> None:
    fleet.store.error = UnavailableError("away")
    with pytest.raises(UnavailableError, match="away"):
        await fleet.forecaster.fleet()


async def test_a_failed_pass_does_not_spoil_the_next(fleet: Fleet) -> None:
    fleet.fill("a")
    fleet.client.lost_calls = 2
    with pytest.raises(UnavailableError):
        await fleet.forecaster.fleet()
    assert (await fleet.forecaster.fleet()).entities == ("a",)


async def test_a_version_that_is_let_go_of_amid_a_pass_is_replaced_for_all_of_it() -> None:
    fleet = Fleet({"v1": forecast(1), "v2": forecast(2)})
    fleet.route("v1")
    fleet.fill("a")
    fleet.client.is_held = True
    asked = asyncio.create_task(fleet.forecaster.fleet())
    while not fleet.client.n_held:
        await asyncio.sleep(0)
    fleet.route("v2", generation=2)
    del fleet.client.models["v1"]
    fleet.client.is_held = False
    fleet.client.release()
    told = await asked
    assert (told.target.version, told.values[0, 0, 0, 0]) == ("v2", 2)


async def test_a_version_that_no_replica_holds_any_more_is_worth_another_try(fleet: Fleet) -> None:
    fleet.fill("a")
    del fleet.client.models["v1"]
    with pytest.raises(UnavailableError, match="being replaced"):
        await fleet.forecaster.fleet()


async def test_a_forced_version_answers_without_touching_what_is_kept() -> None:
    fleet = Fleet({"v1": forecast(1), "v2": forecast(2)})
    fleet.route("v1")
    fleet.fill("a")
    ordinary = await fleet.forecaster.fleet()
    told = await fleet.forecaster.fleet("v2")
    assert (told.target.version, told.target.reason, told.values[0, 0, 0, 0]) == ("v2", "forced", 2)
    assert await fleet.forecaster.fleet() is ordinary
    with pytest.raises(UnknownVersionError):
        await fleet.forecaster.fleet("v9")


async def test_what_a_version_was_trained_on_is_unknown_while_no_replica_says_it(fleet: Fleet) -> None:
    fleet.fill("a")
    fleet.trained.is_away = True
    assert (await fleet.forecaster.fleet()).trained is None
    assert await fleet.forecaster.servers() == (1, None)


async def test_servers_are_counted_with_those_that_the_version_knows(fleet: Fleet) -> None:
    fleet.fill("a", "b", steps=1)
    assert await fleet.forecaster.servers() == (2, 1)


async def test_given_windows_are_forecast_as_they_are(fleet: Fleet) -> None:
    values = np.array([[[1, 2], [3, 4]]], np.float32)
    told = await fleet.forecaster.given(("x",), np.array([600.0]), values)
    assert told.values[0, 0, 0, 0] == 3
    assert np.isnan(fleet.client.batches[0][0][2:4]).all()


async def test_a_model_of_rows_is_none_for_windows(fleet: Fleet) -> None:
    fleet.route("v1", temporal=None)
    with pytest.raises(InvalidInputError, match="takes plain rows"):
        await fleet.forecaster.fleet()


async def test_without_a_model_nothing_is_forecast() -> None:
    with pytest.raises(NoModelError):
        await Fleet().forecaster.fleet()
