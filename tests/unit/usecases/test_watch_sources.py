"""An outage of a source and a pin are told once each, whatever is restarted in between."""

import pytest

from serve_app.domain.errors import SourceError, StoreError
from serve_app.domain.events import EventKind
from serve_app.domain.following import FollowRule, ReloadMode
from serve_app.domain.reload import FamilyRecord
from serve_app.usecases.follow_source import SourceFollower
from serve_app.usecases.keep_state import StateKeeper
from serve_app.usecases.watch_sources import SourceWatch
from tests import builders
from tests.fakes.bundle_source import FakeBundleSource
from tests.fakes.clock import FakeClock
from tests.fakes.fleet import FakeFleet, FakeReloadMeter
from tests.fakes.state_store import FakeStateStore

FAMILY = "iris"


class World:
    """The store and the source outlive a Reconciler; `look` is one turn of its loop."""

    def __init__(self) -> None:
        self.store, self.source, self.clock = FakeStateStore(), FakeBundleSource(), FakeClock()
        self.source.publish(builders.bundle({"a": b"1"}, model_version="v1"))
        self.begin()

    def begin(self) -> None:
        self.follower = SourceFollower(
            FAMILY, self.source, FollowRule(ReloadMode.POLL, 30.0), fleet=FakeFleet(), clock=self.clock,
            meter=FakeReloadMeter(), dice=lambda: 0.5,
        )  # fmt: skip
        self.watch = SourceWatch(StateKeeper(self.store), self.clock)

    async def look(self, pin: str | None = None) -> None:
        await self.follower.look(FamilyRecord(), pin)
        await self.watch.look(FAMILY, self.follower)

    @property
    def told(self) -> list[tuple[EventKind, str | None]]:
        return [(event.kind, event.version) for event in self.store.told]


async def test_nothing_is_told_before_the_first_look_and_while_all_is_well() -> None:
    world = World()
    await world.watch.look(FAMILY, world.follower)
    await world.look()
    assert world.told == []


async def test_an_outage_is_told_once_and_so_is_its_end_over_restarts() -> None:
    world = World()
    world.source.error = SourceError("no route")
    for _ in range(3):
        await world.look()
        world.begin()
    assert world.told == [(EventKind.SOURCE_UNREACHABLE, None)]
    assert world.store.told[0].reason == "no route"
    world.source.error = None
    for _ in range(2):
        await world.look()
        world.begin()
    assert [kind for kind, _ in world.told] == [EventKind.SOURCE_UNREACHABLE, EventKind.SOURCE_BACK]


async def test_a_pin_is_told_when_it_is_set_changed_and_lifted() -> None:
    world = World()
    for pin in ("v1", "v1", "v2", None, None):
        await world.look(pin)
        world.begin()
    assert world.told == [(EventKind.PIN_SET, "v1"), (EventKind.PIN_SET, "v2"), (EventKind.PIN_LIFTED, "v2")]


async def test_a_pin_that_the_source_does_not_have_is_no_outage() -> None:
    world = World()
    await world.look("v9")
    assert [kind for kind, _ in world.told] == [EventKind.PIN_SET]


async def test_what_could_not_be_saved_is_told_by_the_next_look() -> None:
    world = World()
    await world.look()
    world.source.error, world.store.error = SourceError("no route"), StoreError("full")
    with pytest.raises(StoreError):
        await world.look()
    world.store.error = None
    await world.look()
    assert [kind for kind, _ in world.told] == [EventKind.SOURCE_UNREACHABLE]
