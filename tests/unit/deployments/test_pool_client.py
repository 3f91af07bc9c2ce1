"""PoolClient with several replicas; what it shares with every `PredictClient` is in tests/contracts."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from serve_app.deployments.pool_client import PoolClient
from serve_app.domain.errors import PredictionError, UnavailableError, UnknownVersionError
from tests.fakes.handle import FakeHandle
from tests.fakes.linked_replica import LinkedReplica
from tests.fakes.predict_client import Model, row_sums

ROWS = np.array([[1.0, 2.0]])
WAIT_S = 5.0


class Pool:
    """Replicas with a link each, the handle to them, and the client under test."""

    def __init__(self, *replicas: LinkedReplica, timeout_s: float = WAIT_S) -> None:
        self.replicas = list(replicas)
        self.handle = FakeHandle(*replicas)
        self.client = PoolClient(
            cast(Any, self.handle), family="forecaster", max_inflight=2, timeout_s=timeout_s, max_batch_bytes=1 << 16
        )

    async def ask(self, version: str = "v1") -> NDArray[Any] | Exception:
        answered: asyncio.Future[NDArray[Any] | Exception] = asyncio.get_running_loop().create_future()
        self.client.call(version, ROWS, answered.set_result)
        async with asyncio.timeout(WAIT_S):
            return await answered

    async def stop(self, replica: LinkedReplica) -> None:
        await replica.server.stop(grace_s=0)
        async with asyncio.timeout(WAIT_S):
            while replica.server.connections:
                await asyncio.sleep(0)


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    """Two linked replicas that hold v1."""
    made = Pool(*[await LinkedReplica({"v1": row_sums}, replica_id=name).listen() for name in ("r1", "r2")])
    await made.client.pull()
    yield made
    for replica in made.replicas:
        await made.stop(replica)


async def test_pull_returns_the_reports_and_links_every_replica(pool: Pool) -> None:
    assert [status.replica_id for status in await pool.client.pull()] == ["r1", "r2"]
    assert pool.client.capacity == 2 * 2
    await pool.ask()
    assert pool.handle.n_predicted == 0


async def test_calls_at_once_are_spread_over_the_replicas(pool: Pool) -> None:
    await asyncio.gather(*(pool.ask() for _ in range(10)))
    assert [replica.n_over_link for replica in pool.replicas] == [5, 5]


async def test_call_goes_to_a_replica_that_holds_the_version(pool: Pool) -> None:
    pool.replicas[1].models["v2"] = row_sums
    await pool.client.pull()
    await asyncio.gather(*(pool.ask("v2") for _ in range(4)))
    assert [replica.n_over_link for replica in pool.replicas] == [0, 4]


async def test_replica_that_has_let_go_of_a_version_is_not_asked_for_it_again(pool: Pool) -> None:
    del pool.replicas[0].models["v1"]
    first = [await pool.ask() for _ in range(3)]
    assert [type(outcome) for outcome in first] == [UnknownVersionError, np.ndarray, np.ndarray]
    assert pool.replicas[0].n_over_link == 1


async def test_lost_link_is_left_alone_and_the_next_pull_opens_a_new_one(pool: Pool) -> None:
    lost = pool.replicas[0]
    await pool.stop(lost)
    outcomes = [await pool.ask() for _ in range(3)]
    assert [type(outcome) for outcome in outcomes].count(np.ndarray) >= 2
    await lost.listen()
    await pool.client.pull()
    assert pool.client.capacity == 4
    await asyncio.gather(*(pool.ask() for _ in range(4)))
    assert lost.n_over_link == 2


async def test_closed_links_are_not_picked(pool: Pool) -> None:
    for replica in pool.replicas:
        await pool.stop(replica)
    for link in pool.client._links.values():
        async with asyncio.timeout(WAIT_S):
            while link.is_open:
                await asyncio.sleep(0)
    assert isinstance(await pool.ask(), np.ndarray)
    assert pool.handle.n_predicted == 1


async def test_replica_that_serve_no_longer_routes_to_gets_no_more_calls(pool: Pool) -> None:
    gone = pool.handle.replicas.pop(0)
    assert gone is pool.replicas[0]
    await pool.client.pull()
    assert pool.client.capacity == 2
    await asyncio.gather(*(pool.ask() for _ in range(4)))
    assert [replica.n_over_link for replica in pool.replicas] == [0, 4]


async def test_replica_that_does_not_report_keeps_its_link(pool: Pool) -> None:
    pool.replicas[0].error = TimeoutError("busy")
    assert [status.replica_id for status in await pool.client.pull()] == ["r2"]
    assert pool.client.capacity == 4


async def test_pool_that_cannot_be_reached_reports_nothing_and_keeps_its_links(pool: Pool) -> None:
    pool.handle.error = RuntimeError("no controller")
    assert await pool.client.pull() == []
    assert isinstance(await pool.ask(), np.ndarray)


async def test_each_call_that_hangs_ends_at_its_own_deadline_and_an_answer_that_comes_later_is_ignored() -> None:
    released = asyncio.Event()

    async def held(rows: NDArray[np.float64]) -> NDArray[Any]:
        await released.wait()
        return row_sums(rows)

    replica = await LinkedReplica({"slow": held, "v1": row_sums}).listen()
    pool = Pool(replica, timeout_s=0.2)
    await pool.client.pull()
    for _ in range(2):  # with the second the timer has run out once
        started_s = asyncio.get_running_loop().time()
        hanging, quick = await asyncio.gather(pool.ask("slow"), pool.ask("v1"))
        assert isinstance(quick, np.ndarray)
        assert isinstance(hanging, UnavailableError)
        assert str(hanging) == "no answer within 0.2 s"
        assert asyncio.get_running_loop().time() - started_s >= 0.19
    released.set()
    assert isinstance(await pool.ask("slow"), np.ndarray)
    assert pool.client.capacity == 2
    await pool.stop(replica)


async def test_wrong_secret_in_a_report_fails_no_later_call_over_the_handle() -> None:
    replica = await LinkedReplica({"v1": row_sums}).listen()
    assert replica.address is not None
    replica.address = replica.address.model_copy(update={"secret": "wrong"})
    pool = Pool(replica)
    await pool.client.pull()
    await pool.ask()
    assert isinstance(await pool.ask(), np.ndarray)
    assert pool.handle.n_predicted >= 1
    await pool.stop(replica)


async def test_address_where_nobody_listens_leaves_the_handle() -> None:
    replica = await LinkedReplica({"v1": row_sums}).listen()
    await replica.server.stop(grace_s=0)
    pool = Pool(replica)
    assert len(await pool.client.pull()) == 1
    assert isinstance(await pool.ask(), np.ndarray)
    assert pool.handle.n_predicted == 1


def raising(error: Exception) -> Model:
    def model(rows: NDArray[np.float64]) -> NDArray[Any]:
        raise error

    return model


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (ValueError("no such rows"), PredictionError, "ValueError: no such rows"),
        (TimeoutError("of the model's own"), PredictionError, "TimeoutError: of the model's own"),
        (PredictionError("told"), PredictionError, "told"),
        (UnknownVersionError("forecaster", "v1", ["v2"]), UnknownVersionError, "loaded: v2"),
    ],
    ids=["any", "timeout", "ours", "unknown version"],
)
async def test_error_over_the_handle_gets_its_own_class_again(
    raised: Exception, kind: type[Exception], said: str
) -> None:
    outcome = await Pool(LinkedReplica({"v1": raising(raised)})).ask()
    assert type(outcome) is kind
    assert said in str(outcome)


async def test_error_of_ray_itself_means_that_no_replica_answered() -> None:
    pool = Pool(LinkedReplica({"v1": row_sums}))
    pool.handle.error = ConnectionError("gone")
    outcome = await pool.ask()
    assert isinstance(outcome, UnavailableError)
    assert not isinstance(outcome, RayTaskError)
