"""Models on a device that cannot hold two of them, under both policies."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from serve_app.domain.errors import GoldenMismatchError, ReloadError
from serve_app.domain.model_slot import Slot, SlotState
from serve_app.domain.residency import NoRoomError, ResidencyPolicy
from serve_app.domain.status import LoadedVersion
from serve_app.usecases.hold_models import ResidencyLimits, ResidentModels
from serve_app.usecases.load_model import LoadPolicy
from serve_app.usecases.model_room import DEVICE_FACTOR, ModelRoom
from serve_app.usecases.ports import Bundle
from tests import builders
from tests.fakes.bundle_source import FakeBundleSource
from tests.fakes.clock import FakeClock
from tests.fakes.device_memory import FakeDeviceMemory
from tests.fakes.loader import FakeLoader, FakePredictor
from tests.reports import loaded

KEEP, UNLOAD = ResidencyPolicy.AVAILABILITY_PRESERVING, ResidencyPolicy.RESOURCE_PRESERVING
MODEL_BYTES = 100
PATIENCE_S = 20.0


class DeviceLoader(FakeLoader):
    """Takes the bytes of a bundle from a device, and `passing` more for a moment, until its predictor is gone."""

    def __init__(self, memory: FakeDeviceMemory | None) -> None:
        super().__init__()
        self.memory = memory
        self.passing = 0
        self.spoilt: set[str] = set()

    def load(self, bundle: Bundle) -> FakePredictor:
        """See `Loader.load`."""
        predictor = super().load(bundle)
        if bundle.manifest.model_version in self.spoilt:
            raise GoldenMismatchError(f"{bundle.manifest.model_version} is spoilt")
        if self.memory is not None:
            self.memory.take(predictor.artifact_bytes + self.passing)
            self.memory.take(-self.passing)
            weakref.finalize(predictor, self.memory.take, -predictor.artifact_bytes).atexit = False
        return predictor


class Bench:
    """A replica's models on a device, or within a budget, of `total` bytes."""

    def __init__(self, policy: ResidencyPolicy, total: int, *, is_budget: bool, grace_s: float) -> None:
        self.memory = None if is_budget else FakeDeviceMemory(total)
        self.loader = DeviceLoader(self.memory)
        self.ended: list[Slot] = []
        self.models = ResidentModels(
            FakeBundleSource(*(made(f"v{i}") for i in range(1, 6))),
            policy=LoadPolicy("forecaster", "regression", "fake", ()),
            loaders={"fake": self.loader},
            clock=FakeClock(),
            limits=ResidencyLimits(5, total if is_budget else None, 60.0, grace_s),
            room=ModelRoom(policy, memory=self.memory, max_bytes=total if is_budget else None),
            on_load_ended=self.ended.append,
        )

    async def prepare(self, *versions: str, may_unload: bool = False) -> list[LoadedVersion | BaseException]:
        """Pin and load these as a replica does that is told to, the most important first."""
        self.models.pin(versions)
        return await asyncio.gather(
            *(
                self.models.prepare(version, digest(version), yielding=versions[:i:-1] if may_unload else None)
                for i, version in enumerate(versions)
            ),
            return_exceptions=True,
        )

    def resident(self) -> Sequence[str]:
        return sorted(facts.version for facts in self.models.facts())

    async def until_resident(self, *versions: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.resident() != sorted(versions):
                await asyncio.sleep(0.005)


def made(version: str) -> Bundle:
    files = {"models/a/regression/model.joblib": b"x" * MODEL_BYTES}
    return builders.bundle(files, signature=builders.signature(), model_version=version)


def digest(version: str) -> str:
    return made(version).digest


@asynccontextmanager
async def bench(
    policy: ResidencyPolicy, total: int, *, is_budget: bool = False, grace_s: float = PATIENCE_S
) -> AsyncIterator[Bench]:
    at = Bench(policy, total, is_budget=is_budget, grace_s=grace_s)
    try:
        yield at
    finally:
        await at.models.close()


@pytest.mark.parametrize("policy", list(ResidencyPolicy))
async def test_where_both_fit_they_lie_side_by_side(policy: ResidencyPolicy) -> None:
    async with bench(policy, 250) as at:
        await at.prepare("v1")
        await at.prepare("v1", "v2")
        assert at.resident() == ["v1", "v2"]


async def test_candidate_that_does_not_fit_is_refused_and_the_old_one_goes_on() -> None:
    async with bench(KEEP, 200) as at:
        await at.prepare("v1")
        _, outcome = await at.prepare("v1", "v2")
        assert isinstance(outcome, NoRoomError)
        assert at.resident() == ["v1"]
        assert at.models.get("v1") is not None
        reason = at.models.failed()[digest("v2")]
        assert "v2 does not fit beside v1" in reason
        assert "residency.policy resource_preserving" in reason
        assert at.models.left_out() == {}


async def test_versions_that_nothing_holds_leave_first_the_least_recently_used_ahead() -> None:
    async with bench(KEEP, 350) as at:
        await at.prepare("v1", "v2", "v3")
        await at.prepare("v3", "v4")
        assert at.resident() == ["v2", "v3", "v4"]
        assert at.models.counts().evictions == 1


async def test_candidate_waits_for_its_turn_and_says_so() -> None:
    async with bench(UNLOAD, 200) as at:
        await at.prepare("v1")
        at.ended.clear()
        await at.prepare("v1", "v2")
        assert at.resident() == ["v1"]
        assert list(at.models.left_out()) == [digest("v2")]
        assert at.models.failed() == {}
        assert at.ended == []  # a load that waits has not failed


async def test_on_its_turn_a_candidate_is_loaded_in_the_place_of_the_old_ones() -> None:
    async with bench(UNLOAD, 250) as at:
        assert at.memory is not None
        await at.prepare("v2", "v1")
        await at.prepare("v3", "v2", "v1", may_unload=True)
        await at.until_resident("v2", "v3")  # the last good one had to go, the active one not
        assert list(at.models.left_out()) == [digest("v1")]
        assert at.memory.most_taken <= 250
        at.memory.others = 100
        await at.prepare("v4", "v3", "v2", may_unload=True)
        assert at.resident() == ["v4"]
        assert set(at.models.left_out()) == {digest("v2"), digest("v3")}
        assert next(slot.state for slot in at.models.slots() if slot.version == "v3") is SlotState.RELEASED


@pytest.mark.parametrize("is_budget", [True, False])
async def test_old_ones_come_back_when_the_candidate_fails(is_budget: bool) -> None:
    async with bench(UNLOAD, 150, is_budget=is_budget) as at:
        at.loader.spoilt.add("v2")
        await at.prepare("v1")
        outcome, _ = await at.prepare("v2", "v1", may_unload=True)
        assert isinstance(outcome, GoldenMismatchError)
        await at.until_resident("v1")
        assert at.loader.loaded == ["v1", "v2", "v1"]
        assert (at.models.left_out(), list(at.models.failed())) == ({}, [digest("v2")])


async def test_old_one_comes_back_when_the_load_is_given_up() -> None:
    async with bench(UNLOAD, 150) as at:
        await at.prepare("v1")
        gate, begun = threading.Event(), threading.Event()

        def held_back(bundle: Bundle) -> FakePredictor:
            begun.set()
            assert gate.wait(PATIENCE_S)
            return DeviceLoader.load(at.loader, bundle)

        at.loader.load = held_back  # type: ignore[method-assign]
        loading = asyncio.create_task(at.prepare("v2", "v1", may_unload=True))
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        assert at.resident() == []
        at.models.pin(["v1"])
        at.models.cancel_others(["v1"])
        gate.set()
        await loading
        await at.until_resident("v1")


async def test_candidate_that_fits_into_no_empty_device_moves_nothing() -> None:
    async with bench(UNLOAD, 120) as at:
        outcome, *_ = await at.prepare("v1", may_unload=True)
        assert isinstance(outcome, NoRoomError)
        assert list(at.models.failed()) == [digest("v1")]
    async with bench(UNLOAD, 150) as at:
        assert at.memory is not None
        await at.prepare("v1")
        at.memory.others = 40
        outcome, _ = await at.prepare("v2", "v1", may_unload=True)
        assert isinstance(outcome, ReloadError)
        assert at.resident() == ["v1"]
        assert at.loader.loaded == ["v1"]


async def test_memory_is_free_only_when_the_last_batch_has_ended() -> None:
    async with bench(UNLOAD, 150) as at:
        assert at.memory is not None
        await at.prepare("v1")
        batch = at.models.get("v1")
        loading = asyncio.create_task(at.prepare("v2", "v1", may_unload=True))
        await at.until_resident()
        assert batch is not None
        assert batch.predictor.predict(np.ones((1, 3))).shape == (1, 3)
        assert at.memory.free_bytes() == 50
        del batch
        await loading
        assert at.resident() == ["v2"]
        assert at.memory.most_taken == MODEL_BYTES


async def test_what_a_load_needs_for_a_moment_is_asked_for_by_the_next() -> None:
    async with bench(KEEP, 300) as at:
        at.loader.passing = 90
        (facts,) = await at.prepare("v1")
        assert isinstance(facts, LoadedVersion)
        assert (facts.device_bytes, facts.device_peak_bytes) == (MODEL_BYTES, MODEL_BYTES + 90)
        _, outcome = await at.prepare("v1", "v2")  # 125 + 90 of the 200 that are free
        assert isinstance(outcome, NoRoomError)


@pytest.mark.parametrize(("policy", "resident"), [(KEEP, ["v1", "v2"]), (UNLOAD, ["v1"])])
async def test_budget_binds_what_is_pinned_only_where_resources_come_first(
    policy: ResidencyPolicy, resident: list[str]
) -> None:
    async with bench(policy, 150, is_budget=True) as at:
        await at.prepare("v1", "v2")
        assert at.resident() == resident


async def test_version_on_demand_never_unloads_a_pinned_one() -> None:
    async with bench(UNLOAD, 150) as at:
        await at.prepare("v1")
        with pytest.raises(NoRoomError, match="beside v1"):
            await at.models.demand("v2", digest("v2"))
        assert at.resident() == ["v1"]


def test_room_counts_the_files_and_what_the_last_load_passed_through() -> None:
    room = ModelRoom(KEEP, memory=FakeDeviceMemory(1000))
    room.learn(loaded(device_bytes=100, device_peak_bytes=160))
    asked = room.asked(100, room.measured(), held_bytes=400)
    assert (asked.needed_bytes, asked.free_bytes, asked.total_bytes) == (100 * DEVICE_FACTOR + 60, 1000, 1000)
