"""Events reach a receiver in order and at least once, whatever fails and whenever the Reconciler is restarted."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.domain.errors import StoreError
from serve_app.domain.events import EventKind
from serve_app.usecases.deliver_events import IDLE_S, MOST_REFUSALS, RETRY_DELAYS_S, EventDelivery, Receiver
from serve_app.usecases.event_ports import DeliveryError, DeliveryOutcome
from serve_app.usecases.keep_state import StateKeeper
from tests.fakes.clock import FakeClock
from tests.fakes.state_store import FakeStateStore
from tests.unit.usecases.eventful import FakeDeliveryMeter, FakeReceiver, event

AWAY = DeliveryError("no answer")
REFUSED = DeliveryError("400", is_refusal=True)


class World:
    """What outlives a Reconciler: store, receiver, clock, meter."""

    def __init__(self, *answers: DeliveryError | None, receiver: Receiver | None = None) -> None:
        self.store = FakeStateStore()
        self.sink = FakeReceiver(*answers)
        self.clock = FakeClock()
        self.meter = FakeDeliveryMeter()
        self.receiver = receiver or Receiver("ops")
        self.leads = True

    def delivery(self) -> EventDelivery:
        return EventDelivery(
            self.receiver, self.sink, keeper=StateKeeper(self.store), leads=lambda: self.leads, clock=self.clock,
            meter=self.meter, dice=lambda: 0.5,
        )  # fmt: skip

    def tell(self, n: int = 1) -> None:
        self.store.append_events([event() for _ in range(n)])


async def started(*answers: DeliveryError | None, receiver: Receiver | None = None) -> tuple[World, EventDelivery]:
    """Return a delivery that has nothing to do yet."""
    world = World(*answers, receiver=receiver)
    delivery = world.delivery()
    await delivery.turn()
    return world, delivery


async def test_events_are_delivered_in_order_and_once() -> None:
    world, delivery = await started()
    world.tell(250)
    await delivery.turn()
    await delivery.turn()
    assert world.sink.got == [*range(1, 251)]
    assert world.store.delivered("ops") == 250
    assert world.meter.backlog == 0
    assert delivery.wait_s == IDLE_S


async def test_a_new_receiver_gets_what_happens_from_now_on() -> None:
    world = World()
    world.tell(3)
    await world.delivery().turn()
    world.tell()
    await world.delivery().turn()
    assert world.sink.got == [4]


async def test_what_happened_while_the_server_was_down_is_delivered_by_the_next_one() -> None:
    world, delivery = await started()
    world.tell()
    await delivery.turn()
    world.tell(2)
    await world.delivery().turn()
    assert world.sink.got == [1, 2, 3]


async def test_a_receiver_that_is_away_is_tried_ever_later_and_misses_nothing() -> None:
    world, delivery = await started(*[AWAY] * 7)
    world.tell(2)
    waits = []
    while not world.sink.got:
        await delivery.turn()
        waits.append(delivery.wait_s)
        await delivery.turn()  # which is before its time
        world.clock.advance(delivery.wait_s)
    assert waits[:7] == [*RETRY_DELAYS_S, RETRY_DELAYS_S[-1], RETRY_DELAYS_S[-1]]
    assert world.sink.got == [1, 2]
    assert world.sink.tries == 9
    assert world.meter.counted == {DeliveryOutcome.FAILED: 7, DeliveryOutcome.DELIVERED: 2}


async def test_a_receiver_that_asks_for_patience_gets_it_up_to_a_bound() -> None:
    for asked_s, waits_s in [(30.0, 30.0), (1e6, RETRY_DELAYS_S[-1])]:
        world, delivery = await started(DeliveryError("429", retry_after_s=asked_s))
        world.tell()
        await delivery.turn()
        assert delivery.wait_s == waits_s


async def test_an_event_that_is_refused_again_and_again_is_left_out_and_the_next_goes_on() -> None:
    world, delivery = await started(*[REFUSED] * MOST_REFUSALS)
    world.tell(2)
    for _ in range(MOST_REFUSALS):
        await delivery.turn()
        world.clock.advance(delivery.wait_s)
    assert world.sink.got == [2]
    assert world.meter.counted[DeliveryOutcome.REFUSED] == 1


async def test_families_and_kinds_that_were_not_asked_for_are_passed_over_for_good() -> None:
    wanted = Receiver("ops", frozenset({"iris"}), frozenset({EventKind.ROLLOUT_ABORTED}))
    world, delivery = await started(receiver=wanted)
    world.store.append_events(
        [
            event(EventKind.ROLLOUT_ABORTED),
            event(EventKind.ROLLOUT_ABORTED, family="other"),
            event(EventKind.ROLLOUT_MOVED),
        ]
    )
    await delivery.turn()
    assert world.sink.got == [1]
    assert world.store.delivered("ops") == 3


async def test_only_the_holder_of_the_lease_delivers_and_goes_on_where_the_other_was() -> None:
    world, one = await started()
    other = world.delivery()
    world.tell()
    await one.turn()
    world.leads = False
    world.tell()
    await one.turn()
    assert world.sink.got == [1]
    world.leads = True
    await other.turn()
    await one.turn()
    assert world.sink.got == [1, 2]


async def test_a_store_that_cannot_note_the_delivery_does_not_repeat_it_for_ever() -> None:
    world, delivery = await started()
    world.tell()
    note = world.store.set_delivered

    def broken(receiver: str, sequence: int) -> None:
        raise StoreError("full")

    world.store.set_delivered = broken  # type: ignore[method-assign]
    for _ in range(3):
        await delivery.turn()
        world.clock.advance(delivery.wait_s)
    assert world.sink.got == [1]
    world.store.set_delivered = note  # type: ignore[method-assign]
    world.tell()
    await delivery.turn()
    assert world.sink.got == [1, 2]
    assert world.store.delivered("ops") == 2


async def test_events_that_are_not_kept_any_more_are_counted() -> None:
    world, delivery = await started()
    world.tell(10)
    del world.store.told[:4]
    await delivery.turn()
    assert world.sink.got == [*range(5, 11)]
    assert world.meter.counted[DeliveryOutcome.MISSED] == 4


class _KilledError(BaseException):
    """Ends the Reconciler as `kill -9` would: nothing after it runs."""


STEPS = st.lists(st.sampled_from(["tell", "turn", "away", "store", "restart", "unnoted"]), max_size=60)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whatever_fails_each_event_comes_at_least_once_and_in_order(steps: list[str]) -> None:
    async def play() -> None:
        world, delivery = await started()
        note = world.store.set_delivered
        n_told = n_cuts = 0
        for step in steps:
            match step:
                case "tell" if world.store.error is None:
                    world.tell()
                    n_told += 1
                case "away":
                    world.sink.answers.append(AWAY)
                case "store":
                    world.store.error = None if world.store.error else StoreError("away")
                case "unnoted":  # killed between the delivery and its note

                    def cut(receiver: str, sequence: int) -> None:
                        raise _KilledError

                    world.store.error = None
                    world.store.set_delivered = cut  # type: ignore[method-assign]
                    before = len(world.sink.got)
                    try:
                        await delivery.turn()
                    except _KilledError:
                        n_cuts += len(world.sink.got) - before
                    world.store.set_delivered = note  # type: ignore[method-assign]
                    delivery = world.delivery()
                case "restart":
                    delivery = world.delivery()
                case _:
                    await delivery.turn()
                    world.clock.advance(delivery.wait_s)
        world.store.error = None
        world.sink.answers.clear()
        await world.delivery().turn()
        got = world.sink.got
        assert sorted(set(got)) == [*range(1, n_told + 1)]
        assert got == sorted(got)
        assert len(got) <= n_told + n_cuts  # one is repeated only where its note was cut off

    asyncio.run(play())
