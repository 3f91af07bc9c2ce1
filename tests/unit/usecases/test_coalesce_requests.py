import asyncio
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.domain.errors import (
    OverloadedError,
    PayloadTooLargeError,
    PredictionError,
    UnavailableError,
    UnknownVersionError,
)
from serve_app.usecases.coalesce_requests import BatchLimits, Coalescer
from serve_app.usecases.ports import Done
from serve_app.usecases.take_turns import Turns
from tests.fakes.predict_client import FakePredictClient, row_sums

POISON = -1.0


def limits(*, rows: int = 100, n_bytes: int = 1 << 20, queued: int = 100, timeout_s: float = 30.0) -> BatchLimits:
    return BatchLimits(rows, n_bytes, queued, timeout_s)


def refuses_poison(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    if (rows == POISON).any():
        raise ValueError("poison")
    return row_sums(rows)


async def one_turn() -> None:
    """Let everything that is due in this turn of the event loop run."""
    await asyncio.sleep(0)


async def test_idle_coalescer_sends_in_the_same_turn_of_the_loop() -> None:
    client = FakePredictClient()
    future = Coalescer(client, "v1", limits()).submit([[1.0, 2.0]])
    await one_turn()
    assert client.batches == [[[1.0, 2.0]]]
    assert (await future).tolist() == [[3.0]]


async def test_requests_of_one_turn_go_together() -> None:
    client = FakePredictClient()
    coalescer = Coalescer(client, "v1", limits())
    answers = await asyncio.gather(coalescer.submit([[1.0]]), coalescer.submit([[2.0], [3.0]]))
    assert client.batches == [[[1.0], [2.0], [3.0]]]
    assert [answer.tolist() for answer in answers] == [[[1.0]], [[2.0], [3.0]]]


async def test_requests_that_arrive_while_calls_are_out_go_together_in_the_next_call() -> None:
    client = FakePredictClient(capacity=2)
    client.is_held = True
    coalescer = Coalescer(client, "v1", limits())
    futures = []
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        futures.append(coalescer.submit([[value]]))
        await one_turn()
    assert client.batches == [[[1.0]], [[2.0]]]
    assert coalescer.queued == 3
    client.is_held = False
    client.release()
    answers = await asyncio.gather(*futures)
    assert client.batches[2:] == [[[3.0], [4.0], [5.0]]]
    assert [answer.item() for answer in answers] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert coalescer.is_idle


async def test_bound_on_rows_splits_what_waits() -> None:
    client = FakePredictClient(capacity=9)
    coalescer = Coalescer(client, "v1", limits(rows=4))
    await asyncio.gather(*(coalescer.submit([[1.0]] * n) for n in (2, 2, 1, 3, 4)))
    assert [len(batch) for batch in client.batches] == [4, 4, 4]


async def test_bound_on_bytes_splits_what_waits() -> None:
    client = FakePredictClient(capacity=9)
    coalescer = Coalescer(client, "v1", limits(n_bytes=2 * 8 * 3))
    await asyncio.gather(*(coalescer.submit([[1.0, 2.0, 3.0]]) for _ in range(5)))
    assert [len(batch) for batch in client.batches] == [2, 2, 1]


async def test_request_with_more_rows_than_the_bound_goes_alone() -> None:
    client = FakePredictClient(capacity=9)
    coalescer = Coalescer(client, "v1", limits(rows=4))
    await asyncio.gather(*(coalescer.submit([[1.0]] * n) for n in (1, 5, 1)))
    assert [len(batch) for batch in client.batches] == [1, 5, 1]


async def test_request_with_more_bytes_than_a_call_may_carry_is_refused() -> None:
    coalescer = Coalescer(FakePredictClient(), "v1", limits(n_bytes=64))
    with pytest.raises(PayloadTooLargeError, match="expected at most 64 bytes of rows in a request, got 72"):
        coalescer.submit([[0.0] * 9])
    assert coalescer.is_idle


async def test_full_queue_refuses_at_once_and_the_others_are_answered() -> None:
    client = FakePredictClient()
    coalescer = Coalescer(client, "v1", limits(queued=3))
    futures = [coalescer.submit([[float(i)]]) for i in range(3)]
    with pytest.raises(OverloadedError, match="3 requests wait already"):
        coalescer.submit([[9.0]])
    assert [answer.item() for answer in await asyncio.gather(*futures)] == [0.0, 1.0, 2.0]


async def test_request_cancelled_in_the_queue_is_not_sent() -> None:
    client = FakePredictClient()
    coalescer = Coalescer(client, "v1", limits())
    kept, cancelled = coalescer.submit([[1.0]]), coalescer.submit([[2.0]])
    cancelled.cancel()
    assert (await kept).item() == 1.0
    assert client.batches == [[[1.0]]]


async def test_queue_of_only_cancelled_requests_sends_nothing() -> None:
    client = FakePredictClient()
    coalescer = Coalescer(client, "v1", limits())
    coalescer.submit([[2.0]]).cancel()
    await one_turn()
    assert client.batches == []
    assert coalescer.is_idle


async def test_request_cancelled_during_its_call_hurts_nobody() -> None:
    client = FakePredictClient()
    client.is_held = True
    coalescer = Coalescer(client, "v1", limits())
    first, cancelled, last = (coalescer.submit([[value]]) for value in (1.0, 2.0, 3.0))
    await one_turn()
    cancelled.cancel()
    client.release()
    assert [(await first).item(), (await last).item()] == [1.0, 3.0]


async def test_request_that_spoils_a_batch_gets_its_own_error_and_the_others_their_answers() -> None:
    client = FakePredictClient({"v1": refuses_poison})
    coalescer = Coalescer(client, "v1", limits())
    values = [1.0, 2.0, POISON, 4.0, 5.0, 6.0, 7.0, 8.0]
    answers = await asyncio.gather(*(coalescer.submit([[value]]) for value in values), return_exceptions=True)
    assert isinstance(answers[2], PredictionError)
    assert str(answers[2]) == "ValueError: poison"
    others = [answer.item() for answer in answers if not isinstance(answer, BaseException)]
    assert others == [value for value in values if value != POISON]


async def test_one_spoilt_request_of_many_costs_few_calls() -> None:
    client = FakePredictClient({"v1": refuses_poison})
    coalescer = Coalescer(client, "v1", limits(queued=1000, rows=1000))
    values = [float(i) for i in range(256)]
    values[100] = POISON
    answers = await asyncio.gather(*(coalescer.submit([[value]]) for value in values), return_exceptions=True)
    assert sum(isinstance(answer, PredictionError) for answer in answers) == 1
    assert len(client.batches) == 1 + 2 * 8


async def test_request_cancelled_while_its_spoilt_batch_was_out_is_not_sent_again() -> None:
    client = FakePredictClient({"v1": refuses_poison})
    client.is_held = True
    coalescer = Coalescer(client, "v1", limits())
    poison, cancelled, good = (coalescer.submit([[value]]) for value in (POISON, 2.0, 3.0))
    await one_turn()
    cancelled.cancel()
    client.is_held = False
    client.release()
    assert (await good).item() == 3.0
    with pytest.raises(PredictionError):
        await poison
    assert client.batches[1:] == [[[POISON]], [[3.0]]]


async def test_lost_replica_is_tried_once_more() -> None:
    client = FakePredictClient()
    client.lost_calls = 1
    assert (await Coalescer(client, "v1", limits()).submit([[1.0]])).item() == 1.0
    assert len(client.batches) == 2


async def test_replica_lost_twice_is_told() -> None:
    client = FakePredictClient()
    client.lost_calls = 2
    with pytest.raises(UnavailableError, match="went away"):
        await Coalescer(client, "v1", limits()).submit([[1.0]])
    assert len(client.batches) == 2


async def test_version_unknown_to_one_replica_is_tried_on_another() -> None:
    client = FakePredictClient({})

    def appears(rows: NDArray[np.float64]) -> NDArray[Any]:
        client.models["v1"] = row_sums
        raise UnknownVersionError("forecaster", "v1", [])

    client.models["v1"] = appears
    assert (await Coalescer(client, "v1", limits()).submit([[1.0]])).item() == 1.0
    assert len(client.batches) == 2


async def test_version_unknown_everywhere_is_told_with_what_is_loaded() -> None:
    client = FakePredictClient({"v2": row_sums})
    with pytest.raises(UnknownVersionError, match="loaded: v2"):
        await Coalescer(client, "v1", limits()).submit([[1.0]])
    assert len(client.batches) == 2


async def test_request_sent_first_together_with_a_retried_one_has_its_own_second_try() -> None:
    client = FakePredictClient()
    client.is_held = True
    client.lost_calls = 2
    coalescer = Coalescer(client, "v1", limits())
    retried = coalescer.submit([[1.0]])
    await one_turn()
    fresh = coalescer.submit([[2.0]])
    client.is_held = False
    client.release()
    answers = await asyncio.gather(retried, fresh, return_exceptions=True)
    assert client.batches[:2] == [[[1.0]], [[1.0], [2.0]]]
    assert isinstance(answers[0], UnavailableError)
    assert isinstance(answers[1], np.ndarray)


@pytest.mark.parametrize("shape", [(3, 1), (2,), (2, 1, 1), ()], ids=str)
async def test_model_that_gives_another_shape_fails_the_batch(shape: tuple[int, ...]) -> None:
    client = FakePredictClient({"v1": lambda rows: np.zeros(shape)})
    said = f"expected 2 rows of outputs from the model, got an array of shape {shape}"
    with pytest.raises(PredictionError, match=re.escape(said)):
        await Coalescer(client, "v1", limits()).submit([[1.0], [2.0]])


async def test_deadline_of_a_request_that_waits_passes() -> None:
    client = FakePredictClient()
    client.is_held = True
    coalescer = Coalescer(client, "v1", limits(timeout_s=0.02))
    coalescer.submit([[1.0]]).cancel()
    sent = coalescer.submit([[1.0]])
    await one_turn()
    waits = coalescer.submit([[2.0]])
    with pytest.raises(UnavailableError, match=r"no answer within 0\.02 s"):
        await waits
    assert coalescer.queued == 0
    with pytest.raises(UnavailableError, match=r"no answer within 0\.02 s"):
        await sent
    client.release()
    await one_turn()
    assert client.batches == [[[1.0]]]


async def test_request_after_one_that_was_late_keeps_its_own_deadline() -> None:
    client = FakePredictClient()
    client.is_held = True
    coalescer = Coalescer(client, "v1", limits(timeout_s=0.02))
    first = coalescer.submit([[1.0]])
    with pytest.raises(UnavailableError):
        await first
    second = coalescer.submit([[2.0]])
    with pytest.raises(UnavailableError):
        await second


async def test_size_of_every_call_is_reported() -> None:
    sizes: list[int] = []
    coalescer = Coalescer(FakePredictClient(), "v1", limits(rows=3), on_batch=sizes.append)
    await asyncio.gather(*(coalescer.submit([[1.0]] * 2) for _ in range(3)))
    assert sizes == [2, 2, 2]


class ErraticClient:
    """Ends every call at a moment and in a way that hypothesis chooses."""

    def __init__(self, choose: Callable[[int], int], capacity: int) -> None:
        self.capacity = capacity
        self.n_out = 0
        self._choose = choose

    def call(self, version: str, rows: NDArray[np.float64], done: Callable[[NDArray[Any] | Exception], None]) -> None:
        self.n_out += 1
        self._later(self._choose(4), version, rows, done)

    def _later(self, turns: int, version: str, rows: NDArray[np.float64], done: Callable[..., None]) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._later, turns - 1, version, rows, done)
            return
        self.n_out -= 1
        match self._choose(6):
            case 0:
                done(UnavailableError("lost"))
            case 1:
                done(UnknownVersionError("forecaster", version, []))
            case 2:
                done(PredictionError("unlucky"))
            case _ if (rows == POISON).any():
                done(PredictionError("poison"))
            case _:
                done(rows * 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_future_is_resolved_once_with_the_rows_of_its_own_request(data: st.DataObject) -> None:
    requests = data.draw(
        st.lists(
            st.tuples(
                st.lists(st.sampled_from([POISON, 1.0, 2.0, 3.0]), min_size=1, max_size=4),  # rows of one value
                st.integers(0, 3),  # turns of the loop until the next request
                st.booleans(),  # whether it is cancelled a little later
            ),
            min_size=1,
            max_size=25,
        )
    )
    bounds = limits(rows=data.draw(st.integers(1, 8)), n_bytes=data.draw(st.integers(32, 200)))
    capacity = data.draw(st.integers(0, 3))

    async def scenario() -> None:
        seed = np.random.default_rng(data.draw(st.integers(0, 1000)))
        client = ErraticClient(lambda n: int(seed.integers(n)), capacity)
        coalescer = Coalescer(client, "v1", bounds)
        asked = []
        for rows, pause, is_cancelled in requests:
            future = coalescer.submit([[value] for value in rows])
            asked.append((rows, future))
            for _ in range(pause):
                await one_turn()
            if is_cancelled:
                future.cancel()
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*(future for _, future in asked), return_exceptions=True)
        for (rows, _), answer in zip(asked, answers, strict=True):
            if isinstance(answer, np.ndarray):
                assert answer.tolist() == [[value * 2] for value in rows]
                assert POISON not in rows
            else:
                assert isinstance(
                    answer, UnavailableError | UnknownVersionError | PredictionError | asyncio.CancelledError
                )
        while client.n_out:
            await one_turn()
        await one_turn()
        assert coalescer.is_idle

    asyncio.run(scenario())


def two_versions(client: FakePredictClient) -> tuple[Coalescer, Coalescer]:
    turns = Turns(lambda: client.capacity)
    stable, canary = (Coalescer(client, version, limits(), turns=turns) for version in ("v1", "v2"))
    return stable, canary


async def test_versions_of_a_pool_go_out_in_one_turn() -> None:
    client = FakePredictClient({"v1": row_sums, "v2": row_sums})
    client.is_held = True
    stable, canary = two_versions(client)
    futures = [stable.submit([[1.0]])]
    await one_turn()
    futures.append(canary.submit([[2.0]]))
    await one_turn()
    assert client.batches == [[[1.0]]]  # it waits as a request of the other version would
    futures += [stable.submit([[3.0]]), canary.submit([[4.0]])]
    client.release()
    await asyncio.gather(futures[0])
    await one_turn()
    assert client.batches[1:] == [[[2.0], [4.0]], [[3.0]]]
    client.release()
    assert [answer.tolist() for answer in await asyncio.gather(*futures)] == [[[1.0]], [[2.0]], [[3.0]], [[4.0]]]


async def test_a_version_that_hangs_holds_back_none_but_itself() -> None:
    never = asyncio.Event()

    async def hangs(rows: NDArray[np.float64]) -> NDArray[Any]:
        await never.wait()
        return row_sums(rows)

    client = FakePredictClient({"v1": row_sums, "v2": hangs})
    stable, canary = two_versions(client)
    hanging = [canary.submit([[9.0]]) for _ in range(2)]
    first = stable.submit([[1.0]])
    assert (await asyncio.wait_for(first, 5)).tolist() == [[1.0]]
    hanging.append(canary.submit([[9.0]]))
    for i in range(5):
        assert (await asyncio.wait_for(stable.submit([[float(i)]]), 5)).tolist() == [[float(i)]]
    assert canary.queued == 1  # as many of its calls are out as there may be
    never.set()
    assert [answer.tolist() for answer in await asyncio.gather(*hanging)] == [[[9.0]]] * 3


async def test_an_expired_request_leaves_no_turn_behind() -> None:
    client = FakePredictClient({"v1": row_sums, "v2": row_sums})
    client.is_held = True
    turns = Turns(lambda: client.capacity)
    stable = Coalescer(client, "v1", limits(), turns=turns)
    canary = Coalescer(client, "v2", limits(timeout_s=0.05), turns=turns)
    first = stable.submit([[1.0]])
    await one_turn()
    with pytest.raises(UnavailableError):
        await canary.submit([[2.0]])
    client.release()
    await first
    second = stable.submit([[3.0]])
    await one_turn()
    client.release()
    assert (await second).tolist() == [[3.0]]
    assert (stable.is_idle, canary.is_idle) == (True, True)


async def test_a_batch_that_cannot_be_sent_holds_back_no_other_version() -> None:
    class Refusing(FakePredictClient):
        def call(self, version: str, rows: NDArray[np.float64], done: Done) -> None:
            if version == "v2":
                raise ValueError("it cannot be packed")
            super().call(version, rows, done)

    stable, canary = two_versions(Refusing())
    lost = [canary.submit([[9.0]]) for _ in range(2)]
    for i in range(3):
        assert (await asyncio.wait_for(stable.submit([[float(i)]]), 5)).tolist() == [[float(i)]]
    for one in lost:
        with pytest.raises(ValueError, match="it cannot be packed"):
            await asyncio.wait_for(one, 5)
    assert canary.is_idle


async def test_rows_that_make_no_batch_hold_back_no_other_version() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    stable, canary = two_versions(FakePredictClient())
    ragged = canary.submit([[9.0], [9.0, 9.0]])
    for i in range(3):
        assert (await asyncio.wait_for(stable.submit([[float(i)]]), 5)).tolist() == [[float(i)]]
    assert [context["message"] for context in told] == ["a batch could not be sent"]
    ragged.cancel()
