"""What every way to a pool of replicas promises, run over the fake and over a real link."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from ray.exceptions import ActorDiedError

from serve_app.deployments.pool_client import PoolClient
from serve_app.domain.errors import PredictionError, UnavailableError, UnknownVersionError
from serve_app.usecases.ports import PredictClient
from tests.fakes.handle import FakeHandle
from tests.fakes.linked_replica import LinkedReplica
from tests.fakes.predict_client import FakePredictClient, Model, row_sums

ROWS = np.array([[1.0, 2.0], [3.0, 4.0]])
TIMEOUT_S = 0.2
WAIT_S = 5.0


def raises(rows: NDArray[np.float64]) -> NDArray[Any]:
    raise ValueError("no such rows")


async def never(rows: NDArray[np.float64]) -> NDArray[Any]:
    await asyncio.Event().wait()
    return rows


async def later(rows: NDArray[np.float64]) -> NDArray[Any]:
    for _ in range(int(rows[0, 0]) % 5):
        await asyncio.sleep(0)
    return row_sums(rows)


MODELS: Mapping[str, Model] = {
    "v1": row_sums,
    "later": later,
    "raises": raises,
    "never": never,
    "labels": lambda rows: np.array([["a"]] * len(rows)),
}


class Stage(Protocol):
    """A client, and the means to take its replica away."""

    @property
    def client(self) -> PredictClient: ...

    async def lose_replica(self) -> None: ...

    async def close(self) -> None: ...


class FakeStage:
    def __init__(self) -> None:
        self.client = FakePredictClient(MODELS, timeout_s=TIMEOUT_S)

    async def lose_replica(self) -> None:
        self.client.lost_calls = 1

    async def close(self) -> None:
        pass


class LinkStage:
    def __init__(self) -> None:
        self._replica = LinkedReplica(MODELS)
        self._handle = FakeHandle(self._replica)
        self.client = PoolClient(
            cast(Any, self._handle), family="forecaster", max_inflight=2, timeout_s=TIMEOUT_S,
            max_batch_bytes=1 << 20,
        )  # fmt: skip

    async def open(self) -> "LinkStage":
        await self._replica.listen()
        await self.client.pull()
        return self

    async def lose_replica(self) -> None:
        await self._replica.server.stop(grace_s=0)

    async def close(self) -> None:
        await self._replica.server.stop(grace_s=0)
        async with asyncio.timeout(WAIT_S):
            while self._replica.server.connections:
                await asyncio.sleep(0)


class HandleStage(LinkStage):
    """No link: calls go over the handle."""

    async def open(self) -> "LinkStage":
        await self.client.pull()
        return self

    async def lose_replica(self) -> None:
        self._handle.error = ActorDiedError()


async def fake() -> Stage:
    return FakeStage()


async def link() -> Stage:
    return await LinkStage().open()


async def handle() -> Stage:
    return await HandleStage().open()


@pytest.fixture(params=[fake, link, handle])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    made: Stage = await request.param()
    yield made
    await made.close()


class Outcomes:
    """Collects what `done` gets."""

    def __init__(self) -> None:
        self.all: list[NDArray[Any] | Exception] = []
        self._changed = asyncio.Event()

    def __call__(self, outcome: NDArray[Any] | Exception) -> None:
        self.all.append(outcome)
        self._changed.set()

    async def first(self) -> NDArray[Any] | Exception:
        async with asyncio.timeout(WAIT_S):
            await self._changed.wait()
        return self.all[0]


async def ask(stage: Stage, version: str, rows: NDArray[np.float64] = ROWS) -> NDArray[Any] | Exception:
    outcomes = Outcomes()
    stage.client.call(version, rows, outcomes)
    return await outcomes.first()


def outputs(outcome: NDArray[Any] | Exception) -> Any:
    assert isinstance(outcome, np.ndarray), outcome
    return outcome.tolist()


async def test_outputs_are_those_of_the_rows(stage: Stage) -> None:
    assert outputs(await ask(stage, "v1")) == [[3.0], [7.0]]


async def test_labels_are_strings(stage: Stage) -> None:
    assert outputs(await ask(stage, "labels")) == [["a"], ["a"]]


async def test_answer_comes_after_the_call_has_returned(stage: Stage) -> None:
    done = Outcomes()
    for version in ("v1", "unknown", "raises"):
        stage.client.call(version, ROWS, done)
        assert done.all == []
    await done.first()


async def test_calls_at_once_each_get_their_own_answer(stage: Stage) -> None:
    answers = await asyncio.gather(*(ask(stage, "later", np.array([[float(i), 0.5]])) for i in range(20)))
    assert [outputs(answer) for answer in answers] == [[[i + 0.5]] for i in range(20)]


async def test_unknown_version_is_told_with_those_that_are_loaded(stage: Stage) -> None:
    outcome = await ask(stage, "v9")
    assert isinstance(outcome, UnknownVersionError)
    assert (outcome.version, outcome.known) == ("v9", tuple(MODELS))


async def test_model_that_raises_is_a_prediction_error(stage: Stage) -> None:
    outcome = await ask(stage, "raises")
    assert isinstance(outcome, PredictionError)
    assert "no such rows" in str(outcome)


async def test_replica_that_goes_away_is_unavailable(stage: Stage) -> None:
    done = Outcomes()
    await stage.lose_replica()
    stage.client.call("never", ROWS, done)
    assert isinstance(await done.first(), UnavailableError)


async def test_call_that_takes_too_long_is_unavailable_and_told_once(stage: Stage) -> None:
    done = Outcomes()
    stage.client.call("never", ROWS, done)
    assert isinstance(await done.first(), UnavailableError)
    await stage.lose_replica()
    await ask(stage, "v1")
    assert len(done.all) == 1


async def test_reachable_pool_has_capacity(stage: Stage) -> None:
    assert stage.client.capacity > 0
