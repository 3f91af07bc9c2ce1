import asyncio
import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import ExtraTreesRegressor

from serve_app.adapters.beside_serving import beside_serving
from serve_app.adapters.bundle_writer import write_bundle
from serve_app.adapters.clock import SystemClock
from serve_app.adapters.loaders import LOADERS
from serve_app.adapters.process_memory import ProcessMemory
from serve_app.adapters.sources.local_directory import LocalDirectorySource
from serve_app.domain.errors import BundleError, GoldenMismatchError, ReloadError, ServeAppError, SourceError
from serve_app.domain.model_slot import STAGES, Slot, SlotState
from serve_app.usecases.hold_models import Counts, ResidencyLimits, ResidentModels
from serve_app.usecases.load_model import LoadPolicy
from serve_app.usecases.ports import Bundle
from serve_app.usecases.run_loads import LoadCancelledError
from serve_app.usecases.version_slots import KEPT_ENDED_SLOTS
from tests import builders
from tests.fakes.bundle_source import FakeBundleSource
from tests.fakes.clock import FakeClock
from tests.fakes.loader import FakeLoader, FakePredictor

VERSIONS = ("v1", "v2", "v3", "v4", "v5")
POLICY = LoadPolicy("forecaster", "regression", "fake", ("sklearn_targets",))
GRACE_S = 30.0
PATIENCE_S = 20.0
"""Longer than any test waits for a thread."""


class WatchedLoader(FakeLoader):
    """Holds the versions in `gates` back until their gate opens, and notes what was loading at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, threading.Event] = {}
        self.begun = {version: threading.Event() for version in VERSIONS}
        self.running: Counter[str] = Counter()
        self.most_at_once = self.most_of_one = 0
        self.during: Callable[[Bundle], None] = lambda _: None
        self._lock = threading.Lock()

    def hold_back(self, *versions: str) -> None:
        self.gates |= {version: threading.Event() for version in versions}

    def open(self, *versions: str) -> None:
        for version in versions:
            self.gates[version].set()

    async def until_begun(self, version: str) -> None:
        assert await asyncio.to_thread(self.begun[version].wait, PATIENCE_S)

    def load(self, bundle: Bundle) -> FakePredictor:
        version = bundle.manifest.model_version
        with self._lock:
            self.running[version] += 1
            self.most_at_once = max(self.most_at_once, self.running.total())
            self.most_of_one = max(self.most_of_one, self.running[version])
        try:
            self.begun[version].set()
            if version in self.gates:
                assert self.gates[version].wait(PATIENCE_S)
            self.during(bundle)
            return super().load(bundle)
        finally:
            with self._lock:
                self.running[version] -= 1


def made(version: str, n_bytes: int = 10, **facts: Any) -> Bundle:
    known: dict[str, Any] = {"signature": builders.signature(), "model_version": version}
    return builders.bundle({"models/a/regression/model.joblib": b"x" * n_bytes}, **known | facts)


class Bench:
    """A `ResidentModels` over fakes, and the fakes."""

    def __init__(self, *, max_versions: int = 2, max_bytes: int | None = None, load_timeout_s: float = 60.0) -> None:
        self.loader = WatchedLoader()
        self.clock = FakeClock()
        self.source = FakeBundleSource(*(made(version) for version in VERSIONS))
        self.n_given_back = 0
        self.models = ResidentModels(
            self.source,
            policy=POLICY,
            loaders={"fake": self.loader},
            clock=self.clock,
            limits=ResidencyLimits(max_versions, max_bytes, load_timeout_s, GRACE_S),
            give_back_memory=self._give_back,
        )

    def _give_back(self) -> None:
        self.n_given_back += 1

    def state(self, version: str) -> SlotState:
        return next(slot.state for slot in self.models.slots() if slot.version == version)

    def resident(self) -> set[str]:
        return {facts.version for facts in self.models.facts()}

    async def fill(self, *versions: str) -> None:
        """Load these one after another, one second apart."""
        for version in versions:
            await self.models.prepare(version)
            self.clock.advance(1.0)


@asynccontextmanager
async def bench(**limits: Any) -> AsyncIterator[Bench]:
    made_bench = Bench(**limits)
    try:
        yield made_bench
    finally:
        made_bench.loader.open(*made_bench.loader.gates)
        await made_bench.models.close()


async def test_prepared_version_answers_and_tells_its_facts() -> None:
    async with bench() as at:
        at.models.pin(["v1"])
        assert at.models.get("v1") is None
        facts = await at.models.prepare("v1", made("v1").digest)
        model = at.models.get("v1")
        assert model is not None
        assert model.facts == facts == at.models.facts()[0]
        assert model.predictor.predict(np.ones((1, 3))).tolist() == [[13.0] * 3]
        (slot,) = at.models.slots()
        assert (slot.version, slot.digest, slot.state) == ("v1", made("v1").digest, SlotState.SERVING)


async def test_version_that_is_resident_is_not_loaded_again() -> None:
    async with bench() as at:
        first = await at.models.prepare("v1")
        assert await at.models.prepare("v1", first.digest) is first
        assert at.loader.loaded == ["v1"]


async def test_calls_for_one_version_join_one_load() -> None:
    async with bench() as at:
        at.loader.hold_back("v1")
        calls = [asyncio.create_task(at.models.prepare("v1")) for _ in range(5)]
        await at.loader.until_begun("v1")
        calls.append(asyncio.create_task(at.models.prepare("v1")))
        at.loader.open("v1")
        answers = await asyncio.gather(*calls)
        assert at.loader.loaded == ["v1"]
        assert all(facts is answers[0] for facts in answers)


async def test_load_goes_on_when_the_call_that_began_it_is_cancelled() -> None:
    async with bench() as at:
        at.loader.hold_back("v1")
        first = asyncio.create_task(at.models.prepare("v1"))
        await at.loader.until_begun("v1")
        second = asyncio.create_task(at.models.prepare("v1"))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        at.loader.open("v1")
        assert (await second).version == "v1"


async def test_versions_load_one_at_a_time_while_others_answer() -> None:
    async with bench() as at:
        await at.models.prepare("v1")
        at.loader.hold_back("v2", "v3")
        calls = [asyncio.create_task(at.models.prepare(version)) for version in ("v2", "v3")]
        await at.loader.until_begun("v2")
        assert at.models.loading() == {"v2": "loading", "v3": "queued"}
        assert at.models.get("v1") is not None
        assert at.models.get("v2") is None
        at.loader.open("v2", "v3")
        await asyncio.gather(*calls)
        assert at.models.loading() == {}
        assert (at.loader.most_at_once, at.resident()) == (1, {"v1", "v2", "v3"})


async def test_slot_keeps_the_seconds_of_every_stage() -> None:
    async with bench() as at:
        at.loader.during = lambda _: at.clock.advance(2.5)
        await at.models.prepare("v1")
        (slot,) = at.models.slots()
        assert slot.state is SlotState.READY
        assert dict(slot.stage_seconds) == dict.fromkeys(STAGES, 0.0) | {SlotState.LOADING: 2.5}


async def test_another_bundle_under_the_name_of_a_resident_one_is_refused() -> None:
    async with bench() as at:
        facts = await at.models.prepare("v1")
        with pytest.raises(BundleError) as caught:
            await at.models.prepare("v1", "f" * 64)
        expected = f"expected a manifest with sha256 {'f' * 64}, found one with {facts.digest}; a version never changes"
        assert str(caught.value) == f"bundle version v1 is refused: {expected}"
        assert at.models.failed() == {"f" * 64: str(caught.value)}
        assert at.state("v1") is SlotState.READY
        assert at.models.get("v1") is not None


async def test_bundle_that_is_not_the_one_asked_for_is_refused_before_it_is_deserialized() -> None:
    async with bench() as at:
        with pytest.raises(BundleError, match=r"expected a manifest with sha256 f{64}"):
            await at.models.prepare("v1", "f" * 64)
        assert at.loader.loaded == []
        (slot,) = at.models.slots()
        assert (slot.state, list(slot.stage_seconds)) == (
            SlotState.FAILED,
            [SlotState.FETCHING, SlotState.VERIFYING],
        )
        assert at.models.failed() == {"f" * 64: slot.reason}


async def test_name_that_is_no_version_is_refused() -> None:
    async with bench() as at:
        with pytest.raises(BundleError, match="model_version: expected 'current', found 'v5'"):
            await at.models.prepare("current")
        assert at.resident() == set()


def raising(error: BaseException) -> Callable[[Bundle], None]:
    def raise_it(_: Bundle) -> None:
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("error", "seen", "said"),
    [
        (BundleError("b", ["no model"]), BundleError, "no model"),
        (GoldenMismatchError("off by 1"), GoldenMismatchError, "off by 1"),
        (ValueError("odd"), ReloadError, "loading v2 failed: ValueError: odd"),
        (StopIteration(), ReloadError, "loading v2 failed: StopIteration"),
        (MemoryError(), ReloadError, "loading v2 failed: MemoryError"),
        (SystemExit(3), ReloadError, "loading v2 failed: SystemExit: 3"),
        (asyncio.CancelledError(), ReloadError, "loading v2 failed: CancelledError"),
    ],
)
async def test_failed_load_is_a_result_and_harms_nothing(
    error: BaseException, seen: type[Exception], said: str
) -> None:
    async with bench() as at:
        await at.models.prepare("v1")
        at.loader.during = raising(error)
        digest = made("v2").digest
        with pytest.raises(seen, match=said):
            await at.models.prepare("v2", digest)
        assert at.state("v2") is SlotState.FAILED
        assert said in at.models.failed()[digest]
        assert at.resident() == {"v1"}
        at.loader.during = lambda _: None
        await at.models.prepare("v2", digest)
        assert (at.models.failed(), at.resident()) == ({}, {"v1", "v2"})


async def test_dead_source_is_a_result() -> None:
    async with bench() as at:
        at.source.error = SourceError("gone")
        with pytest.raises(SourceError, match="gone"):
            await at.models.prepare("v1")
        assert at.state("v1") is SlotState.FAILED


async def test_bundle_that_cannot_be_read_yet_is_not_refused() -> None:
    async with bench() as at:
        digest = at.source.fetch("v2").digest
        at.source.error = SourceError("gone")
        with pytest.raises(SourceError, match="gone"):
            await at.models.prepare("v2", digest)
        assert (at.models.failed(), at.models.unread()) == ({}, {digest: "gone"})
        at.source.error = None
        await at.models.prepare("v2", digest)
        assert (at.models.failed(), at.models.unread()) == ({}, {})


async def test_failed_load_frees_what_it_held_though_its_error_lives_on() -> None:
    held: list[weakref.ref[FakePredictor]] = []

    def half_load(_: Bundle) -> None:
        half = FakePredictor()
        held.append(weakref.ref(half))
        raise BundleError("b", ["broken"])

    async with bench() as at:
        at.loader.during = half_load
        with pytest.raises(BundleError) as caught:
            await at.models.prepare("v1")
        assert held[0]() is None
        assert caught.value.__traceback__ is not None


async def test_cancelled_load_fails_at_once_and_its_thread_ends_with_its_stage() -> None:
    async with bench() as at:
        at.loader.hold_back("v1")
        call = asyncio.create_task(at.models.prepare("v1", made("v1").digest))
        await at.loader.until_begun("v1")
        assert at.models.cancel("v1")
        with pytest.raises(LoadCancelledError):
            await call
        assert not at.models.cancel("v1")
        assert (at.state("v1"), at.models.failed()) == (SlotState.FAILED, {})
        again = asyncio.create_task(at.models.prepare("v1"))
        at.loader.open("v1")
        await again
        assert at.loader.loaded == ["v1", "v1"]
        assert (at.loader.most_of_one, at.state("v1")) == (1, SlotState.READY)


async def test_queued_load_that_is_cancelled_never_begins() -> None:
    async with bench() as at:
        at.loader.hold_back("v1")
        calls = [asyncio.create_task(at.models.prepare(version)) for version in ("v1", "v2", "v3")]
        await at.loader.until_begun("v1")
        at.models.cancel_others(["v1", "v3"])
        at.loader.open("v1")
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(answers[1], LoadCancelledError)
        assert at.loader.loaded == ["v1", "v3"]


async def test_load_that_hangs_gives_its_place_up_and_is_not_begun_twice() -> None:
    async with bench(load_timeout_s=0.2) as at:
        at.loader.hold_back("v1")
        with pytest.raises(ReloadError, match=r"v1 was not loaded within 0.2 s: it is loading"):
            await at.models.prepare("v1")
        assert (await at.models.prepare("v2")).version == "v2"
        with pytest.raises(ReloadError, match=r"an earlier load of it has not ended"):
            await at.models.prepare("v1")
        again = asyncio.create_task(at.models.prepare("v1"))
        at.loader.open("v1")
        assert (await again).version == "v1"
        assert at.loader.most_of_one == 1


async def test_least_recently_used_version_is_released_once_its_grace_is_over() -> None:
    async with bench() as at:
        await at.fill("v1", "v2", "v3")
        at.models.get("v1")
        at.models.pin(["v3"])
        assert (await at.models.release()).versions == ()
        at.clock.advance(GRACE_S - 2.0)  # v2 was loaded two seconds ago
        n_given_back = 3  # the threads of the three loads, the last of which may end a little after its load
        async with asyncio.timeout(5):
            while at.n_given_back < n_given_back:
                await asyncio.sleep(0.001)
        assert (await at.models.release()).versions == ("v2",)
        assert at.n_given_back == n_given_back + 1
        assert at.resident() == {"v1", "v3"}
        assert at.state("v2") is SlotState.RELEASED


async def test_release_comes_back_by_itself_when_the_grace_is_over() -> None:
    gone = threading.Event()
    models = ResidentModels(
        FakeBundleSource(made("v1"), made("v2")),
        policy=POLICY,
        loaders={"fake": FakeLoader()},
        clock=SystemClock(),
        limits=ResidencyLimits(1, None, 60.0, 0.2),
        give_back_memory=gone.set,
    )
    for version in ("v1", "v2"):
        await models.prepare(version)
        assert await asyncio.to_thread(gone.wait, PATIENCE_S)  # memory is given back after a load, too
        gone.clear()
    assert (await models.release()).versions == ()
    assert await asyncio.to_thread(gone.wait, PATIENCE_S)
    assert [facts.version for facts in models.facts()] == ["v2"]
    await models.close()


async def test_grace_counts_from_when_a_version_lost_its_pin() -> None:
    async with bench(max_versions=1) as at:
        at.models.pin(["v1"])
        await at.fill("v1", "v2")
        at.clock.advance(10 * GRACE_S)
        at.models.get("v2")
        at.models.pin(["v2"])
        assert (await at.models.release()).versions == ()
        at.clock.advance(GRACE_S)
        assert (await at.models.release()).versions == ("v1",)


async def test_bytes_count_and_what_cannot_be_met_is_told() -> None:
    async with bench(max_versions=5, max_bytes=25) as at:
        await at.fill("v1", "v2", "v3", "v4")
        at.models.pin(["v1", "v2", "v3"])
        at.clock.advance(GRACE_S)
        plan = await at.models.release()
        assert (plan.versions, plan.versions_over, plan.bytes_over) == (("v4",), 0, 5)


async def test_evicted_version_leaves_at_once_unless_it_is_pinned() -> None:
    async with bench() as at:
        await at.fill("v1", "v2")
        at.models.pin(["v1"])
        at.models.get("v2")
        assert not await at.models.evict("v1")
        assert await at.models.evict("v2")
        assert not await at.models.evict("v3")
        assert at.resident() == {"v1"}
        assert at.state("v2") is SlotState.RELEASED
        await at.models.prepare("v2")
        assert at.state("v2") is SlotState.READY


async def test_version_on_demand_takes_the_place_of_the_least_recently_used_at_once() -> None:
    async with bench(max_versions=3) as at:
        at.models.pin(["v1"])
        await at.models.prepare("v1")
        for version in ("v2", "v3", "v4"):
            at.clock.advance(1.0)
            await at.models.demand(version)
            at.clock.advance(1.0)
            at.models.get("v2")
            assert len(at.resident()) <= 3
        assert at.resident() == {"v1", "v2", "v4"}
        assert at.state("v3") is SlotState.RELEASED
        assert at.models.counts() == Counts(hits=3, misses=3, evictions=1)


async def test_limits_hold_in_the_very_moment_of_the_change() -> None:
    most = 0

    async with bench(max_versions=2) as at:

        def count(_: Slot) -> None:
            asyncio.get_running_loop().call_soon(note)

        def note() -> None:
            nonlocal most
            most = max(most, len(at.resident()))

        at.models._on_load_ended = count
        for version in VERSIONS * 2:
            await at.models.demand(version)
            at.clock.advance(1.0)
        assert most == 2


async def test_one_version_on_demand_fits_beside_pinned_ones_that_fill_the_limits() -> None:
    async with bench(max_versions=2) as at:
        at.models.pin(["v1", "v2"])
        await at.fill("v1", "v2")
        for version in ("v3", "v4"):
            await at.models.demand(version)
            await at.models.release()
            assert at.resident() == {"v1", "v2", version}
        at.clock.advance(10 * GRACE_S)
        await at.models.release()
        assert at.resident() == {"v1", "v2", "v4"}


async def test_grace_of_what_was_pinned_goes_before_versions_on_demand() -> None:
    async with bench(max_versions=2) as at:
        at.models.pin(["v1", "v2"])
        await at.fill("v1", "v2")
        at.models.pin(["v2"])
        await at.models.demand("v3")
        await at.models.demand("v4")
        assert at.resident() == {"v1", "v2", "v4"}
        at.clock.advance(GRACE_S)
        await at.models.release()
        assert at.resident() == {"v2", "v4"}


async def test_version_on_demand_that_is_pinned_is_one_of_the_others_from_then_on() -> None:
    async with bench(max_versions=1) as at:
        await at.models.demand("v1")
        at.models.pin(["v1"])
        at.models.pin([])
        await at.models.demand("v2")
        assert at.resident() == {"v1", "v2"}
        at.clock.advance(GRACE_S)
        await at.models.release()
        assert at.resident() == {"v2"}


async def test_load_on_demand_is_not_cancelled_with_the_others() -> None:
    async with bench() as at:
        at.loader.hold_back("v1", "v2", "v3")
        calls = [asyncio.create_task(at.models.demand("v1")), asyncio.create_task(at.models.prepare("v2"))]
        calls.append(asyncio.create_task(at.models.prepare("v3")))
        await at.loader.until_begun("v1")
        calls.append(asyncio.create_task(at.models.demand("v3")))  # joins
        await asyncio.sleep(0)
        at.models.cancel_others([])
        at.loader.open("v1", "v2", "v3")
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(answer, LoadCancelledError) for answer in answers] == [False, True, False, False]


async def test_close_gives_up_loads_on_demand_too() -> None:
    async with bench() as at:
        at.loader.hold_back("v1")
        call = asyncio.create_task(at.models.demand("v1"))
        await at.loader.until_begun("v1")
        await at.models.close()
        with pytest.raises(LoadCancelledError):
            await call


async def test_batch_under_way_keeps_its_model_and_frees_it_at_its_end() -> None:
    async with bench() as at:
        await at.models.prepare("v1")
        batch = at.models.get("v1")
        assert batch is not None
        predictor = weakref.ref(batch.predictor)
        await at.models.evict("v1")
        assert at.models.get("v1") is None
        assert batch.predictor.predict(np.ones((2, 3))).shape == (2, 3)
        del batch
        assert predictor() is None


async def test_slot_serves_while_used_drains_when_unpinned_and_is_ready_again() -> None:
    async with bench() as at:
        at.models.pin(["v1"])
        await at.models.prepare("v1")
        assert at.state("v1") is SlotState.READY
        at.models.get("v1")
        assert at.state("v1") is SlotState.SERVING
        at.models.pin(["v2"])
        assert at.state("v1") is SlotState.DRAINING
        at.models.pin(["v1", "v2"])
        assert at.state("v1") is SlotState.SERVING
        at.models.pin(["v2"])
        at.clock.advance(GRACE_S)
        assert at.state("v1") is SlotState.READY


async def test_lookups_and_evictions_are_counted() -> None:
    async with bench() as at:
        at.models.get("v1")
        await at.models.prepare("v1")
        at.models.get("v1")
        at.models.get("v1")
        await at.models.evict("v1")
        at.models.get("v1")
        assert at.models.counts() == Counts(hits=2, misses=2, evictions=1)


async def test_slots_and_reasons_of_long_ago_are_forgotten() -> None:
    async with bench() as at:
        await at.models.prepare("v1")
        for i in range(KEPT_ENDED_SLOTS + 5):
            with pytest.raises(SourceError):
                await at.models.prepare(f"absent-{i}", f"{i:064}")
        assert len(at.models.slots()) == KEPT_ENDED_SLOTS + 1
        assert len(at.models.unread()) == KEPT_ENDED_SLOTS
        assert at.state("v1") is SlotState.READY
        assert at.state(f"absent-{KEPT_ENDED_SLOTS + 4}") is SlotState.FAILED


version_names = st.sampled_from(VERSIONS)
steps = st.one_of(
    st.tuples(st.just("prepare"), version_names),
    st.tuples(st.just("prepare"), version_names),
    st.tuples(st.just("demand"), version_names),
    st.tuples(st.just("demand"), version_names),
    st.tuples(st.just("cancel"), version_names),
    st.tuples(st.just("evict"), version_names),
    st.tuples(st.just("use"), version_names),
    st.tuples(st.just("pin"), st.sets(version_names, max_size=3)),
    st.tuples(st.just("release"), st.none()),
    st.tuples(st.just("advance"), st.sampled_from([1.0, GRACE_S])),
    st.tuples(st.just("await_all"), st.none()),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(steps, max_size=25), st.integers(1, 3))
def test_any_sequence_keeps_what_is_pinned_and_never_loads_a_version_twice_at_once(
    sequence: list[tuple[str, Any]], max_versions: int
) -> None:
    asyncio.run(play(sequence, max_versions))


async def play(sequence: list[tuple[str, Any]], max_versions: int) -> None:
    async with bench(max_versions=max_versions) as at:
        fails = {"v5"}

        def take_a_moment(bundle: Bundle) -> None:
            time.sleep(0.0002)  # so that another load could begin meanwhile
            if bundle.manifest.model_version in fails:
                raise ValueError

        at.loader.during = take_a_moment
        pinned: set[str] = set()
        calls: list[asyncio.Task[Any]] = []
        for name, argument in sequence:
            kept = at.resident() & pinned
            match name:
                case "prepare":
                    calls.append(asyncio.create_task(at.models.prepare(argument)))
                case "demand":
                    calls.append(asyncio.create_task(at.models.demand(argument)))
                case "cancel":
                    at.models.cancel(argument)
                case "evict":
                    await at.models.evict(argument)
                case "use":
                    at.models.get(argument)
                case "pin":
                    kept, pinned = set(), argument
                    at.models.pin(argument)
                case "release":
                    await at.models.release()
                case "advance":
                    at.clock.advance(argument)
                case "await_all":
                    await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(0)
            assert kept <= at.resident()
            held = {slot.version for slot in at.models.slots() if slot.state in ("ready", "serving", "draining")}
            assert held == at.resident()
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert not isinstance(answer, BaseException) or isinstance(answer, ServeAppError)
        at.clock.advance(GRACE_S)
        plan = await at.models.release()
        assert len(at.resident()) <= max(max_versions, len(at.resident() & pinned) + 1)
        assert plan.versions_over == max(0, len(at.resident()) - max_versions)
        assert at.models.loading() == {}
        assert at.loader.most_of_one <= at.loader.most_at_once <= 1


MAX_GROWTH = 0.05
"""Share by which the resident memory of the process may grow from the first cycles to the last."""


@cache
def big_forest() -> bytes:
    """Return a forest of some 9 MB."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(3000, len(builders.INPUTS)))
    forest = ExtraTreesRegressor(25, random_state=0).fit(rows, random.normal(size=len(rows)))
    return builders.joblib_bytes(forest)


async def test_memory_of_released_versions_returns(tmp_path: Path) -> None:
    files = {"models/y/regression/model.joblib": big_forest()}
    for version in VERSIONS:
        facts = {"signature": builders.signature(outputs=["y"]), "loader": "sklearn_targets"}
        write_bundle(tmp_path, builders.manifest(files, model_version=version, **facts), files)
    models = ResidentModels(
        LocalDirectorySource(tmp_path),
        policy=POLICY,
        loaders=LOADERS,
        clock=SystemClock(),
        limits=ResidencyLimits(2, None, 60.0, 0.0),
        beside_serving=beside_serving,
        give_back_memory=ProcessMemory().give_back,
    )
    process = psutil.Process()
    rss = []
    for i in range(20):
        version = VERSIONS[i % len(VERSIONS)]
        models.pin([version])
        await models.prepare(version)
        await models.release()
        rss.append(process.memory_info().rss)
    gc.unfreeze()
    await models.close()
    assert len(models.facts()) == 2
    assert max(rss[-5:]) <= min(rss[5:10]) * (1 + MAX_GROWTH), [value >> 20 for value in rss]
