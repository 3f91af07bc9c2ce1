import asyncio

import numpy as np
import pytest

from serve_app.domain.errors import InvalidInputError, OverloadedError, UnavailableError, UnknownVersionError
from serve_app.usecases.explain_prediction import ExplainLimits, ExplainPrediction
from serve_app.usecases.explanation import worst_gap
from serve_app.usecases.route_request import Target
from tests.fakes.explain_client import FakeExplainClient
from tests.unit.ingress.serving import FAMILY, Server

ROWS = np.array([[1.0, 2.0, 3.0]])


def target(*, forced: bool = False) -> Target:
    return Server().router.target(FAMILY, "v1" if forced else None)


def usecase(client: FakeExplainClient, **limits: int) -> ExplainPrediction:
    return ExplainPrediction({(FAMILY, "cpu"): client}, ExplainLimits(**limits))


async def test_version_of_the_target_is_asked() -> None:
    client = FakeExplainClient()
    await usecase(client).explain(target(), ROWS)
    assert client.asked == ["v1"]


async def test_another_replica_is_asked_once_where_the_first_does_not_hold_the_version() -> None:
    client = FakeExplainClient()
    client.strangers = 1
    await usecase(client).explain(target(), ROWS)
    assert client.asked == ["v1", "v1"]


async def test_version_that_is_gone_is_never_explained_by_another() -> None:
    client = FakeExplainClient({})
    with pytest.raises(UnavailableError, match="is being replaced"):
        await usecase(client).explain(target(), ROWS)
    with pytest.raises(UnknownVersionError):
        await usecase(client).explain(target(forced=True), ROWS)
    assert set(client.asked) == {"v1"}


async def test_too_many_rows_are_refused_before_anybody_is_asked() -> None:
    client = FakeExplainClient()
    with pytest.raises(InvalidInputError, match="at most 2 rows to explain, got 3"):
        await usecase(client, max_rows=2).explain(target(), np.repeat(ROWS, 3, axis=0))
    assert client.asked == []


async def test_explanations_beyond_the_bound_are_refused_at_once_and_places_come_free() -> None:
    client, where = FakeExplainClient(), target()
    client.gate = asyncio.Event()
    explaining = usecase(client, max_at_once=2)
    out = [asyncio.create_task(explaining.explain(where, ROWS)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError) as caught:
        await explaining.explain(where, ROWS)
    assert caught.value.retry_after_s >= 1
    out[0].cancel()  # a client that goes away gives its place back, too
    await asyncio.wait([out[0]])
    again = asyncio.create_task(explaining.explain(where, ROWS))
    client.gate.set()
    await asyncio.gather(out[1], again)
    await explaining.explain(where, ROWS)


@pytest.mark.parametrize(
    ("base", "gap"), [(0.0, 0.0), (3.0, 0.5), (float("nan"), float("inf"))], ids=["exact", "off by half", "no number"]
)
def test_gap_is_relative_to_the_largest_number(base: float, gap: float) -> None:
    contributions = np.array([[1.0, 2.0, 3.0]])
    assert worst_gap(np.array([6.0]), np.array([base]), contributions) == gap
