import asyncio
import random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.domain.evidence import Measurement
from serve_app.domain.exposure import SHADOW, ShadowReport
from serve_app.domain.reload import Route, RoutingTable
from serve_app.domain.traffic import RequestFacts, Shadow, Split, Variant
from serve_app.usecases.coalesce_requests import BatchLimits
from serve_app.usecases.compare_answers import compared
from serve_app.usecases.mirror_requests import Copied, Mirror, MirrorLimits
from serve_app.usecases.route_request import RequestRouter
from tests.fakes.predict_client import FakePredictClient, Model, row_sums
from tests.reports import report

FAMILY = "forecaster"
PATIENT = MirrorLimits(max_lag_s=10.0)
"""For a machine that is busy with other things."""


def off_by(difference: float) -> Model:
    return lambda rows: row_sums(rows) + difference


class Mirrored:
    """v1 on `cpu` answers, v2 on `gpu` is its shadow."""

    def __init__(self, shadow: Model, limits: MirrorLimits = PATIENT, *, held: tuple[str, ...] = ("v1", "v2")) -> None:
        self.live, self.gpu = FakePredictClient({"v1": row_sums}), FakePredictClient({"v2": shadow})
        self.router = RequestRouter(
            (FAMILY,), default_family=FAMILY, clients={(FAMILY, "cpu"): self.live, (FAMILY, "gpu"): self.gpu},
            limits=BatchLimits(10, 1 << 16, 10, 30.0), draw=random.Random(7).random,
        )  # fmt: skip
        for version, pool in (("v1", "cpu"), ("v2", "gpu")):
            if version in held:
                self.router.observe(FAMILY, pool, [report(version, replica_id=pool, pool=pool)])
        stable = Variant(name="stable", version="v1", weight=10_000)
        split = Split(variants=(stable,), salt="salt-1", shadow=Shadow(version="v2"))
        route = Route(version="v1", digest="0" * 64)
        self.router.follow(RoutingTable(generation=1, routes={FAMILY: route}, splits={FAMILY: split}))
        self.mirror = Mirror(limits)

    def answered(self, *values: float) -> Copied:
        """Return an answer to one row, as the live version would have given it."""
        target, _ = self.router.assign(FAMILY, RequestFacts())
        return Copied(self.router.splits[FAMILY], target, [list(values)], np.array([[sum(values)]]), 0.02)

    async def copy(self, *values: float) -> None:
        self.mirror.offer(self.answered(*values))
        await self.mirror.settled()

    @property
    def report(self) -> ShadowReport:
        return self.router.evidence("g1").shadows[FAMILY]["salt-1"]

    @property
    def measured(self) -> Measurement:
        return self.router.evidence("g1").families[FAMILY]["salt-1"][SHADOW]


async def test_same_answer_agrees() -> None:
    mirrored = Mirrored(row_sums)
    await mirrored.copy(1, 2)
    assert (mirrored.measured.requests, mirrored.measured.compared, mirrored.measured.disagreed) == (1, 1, 0)
    told = mirrored.report
    assert (told.version, told.copied, told.dropped, told.failed, told.differences.mean) == ("v2", 1, 0, 0, 0.0)
    assert told.live_s.mean == pytest.approx(0.02)


async def test_other_answer_disagrees_and_inputs_stay_unknown_unless_they_may_be_kept() -> None:
    mirrored = Mirrored(off_by(0.5))
    await mirrored.copy(1, 2)
    assert (mirrored.measured.compared, mirrored.measured.disagreed) == (1, 1)
    assert mirrored.report.differences.mean == pytest.approx(0.5)
    assert mirrored.report.worst == ()


async def test_worst_inputs_are_kept_where_they_may_be() -> None:
    mirrored = Mirrored(off_by(0.5), MirrorLimits(max_lag_s=10.0, keeps_inputs=True))
    await mirrored.copy(1, 2)
    (worst,) = mirrored.report.worst
    assert (worst.difference, worst.rows, worst.live, worst.shadow) == (0.5, ((1.0, 2.0),), ((3.0,),), ((3.5,),))


async def test_shadow_that_fails_is_counted_and_hurts_nobody() -> None:
    def broken(rows: NDArray[np.float64]) -> NDArray[Any]:
        raise ValueError("broken")

    mirrored = Mirrored(broken)
    await mirrored.copy(1)
    assert (mirrored.measured.requests, mirrored.measured.errors, mirrored.measured.compared) == (1, 1, 0)
    assert (mirrored.report.copied, mirrored.report.failed) == (1, 1)


async def test_shadow_that_is_too_slow_has_failed_at_the_deadline() -> None:
    mirrored = Mirrored(row_sums, MirrorLimits(timeout_s=0.01, max_lag_s=10.0))
    mirrored.gpu.is_held = True
    await mirrored.copy(1)
    assert mirrored.report.failed == 1


async def test_copies_beyond_those_at_once_are_dropped() -> None:
    mirrored = Mirrored(row_sums)
    mirrored.gpu.is_held = True
    for _ in range(5):
        mirrored.mirror.offer(mirrored.answered(1))
    while not mirrored.gpu.n_held:
        await asyncio.sleep(0)
    mirrored.gpu.is_held = False
    mirrored.gpu.release()
    await mirrored.mirror.settled()
    assert (mirrored.report.copied, mirrored.report.dropped) == (2, 3)


async def test_after_a_copy_comes_a_rest_that_is_the_longer_the_longer_it_took() -> None:
    mirrored = Mirrored(row_sums, MirrorLimits(max_lag_s=10.0, busy_share=1e-9))
    for _ in range(3):
        await mirrored.copy(1)
    assert (mirrored.report.copied, mirrored.report.dropped) == (1, 2)
    mirrored = Mirrored(row_sums, MirrorLimits(max_lag_s=10.0, busy_share=1.0))
    for _ in range(3):
        await mirrored.copy(1)
    assert (mirrored.report.copied, mirrored.report.dropped) == (3, 0)


async def test_nothing_is_copied_while_live_requests_wait() -> None:
    mirrored = Mirrored(row_sums)
    mirrored.live.is_held = True
    copied = mirrored.answered(1)
    waiting = [copied.live.coalescer.submit([[1.0]])]
    while not mirrored.live.n_held:
        await asyncio.sleep(0)
    waiting.append(copied.live.coalescer.submit([[1.0]]))
    mirrored.mirror.offer(copied)
    assert (mirrored.report.copied, mirrored.report.dropped) == (0, 1)
    while not all(future.done() for future in waiting):
        mirrored.live.release()
        await asyncio.sleep(0)


async def test_nothing_is_copied_while_the_event_loop_is_late() -> None:
    mirrored = Mirrored(row_sums, MirrorLimits(max_lag_s=-1.0))
    await mirrored.copy(1)
    assert (mirrored.report.copied, mirrored.report.dropped) == (0, 1)


async def test_shadow_that_is_not_loaded_drops_its_copies() -> None:
    mirrored = Mirrored(row_sums, held=("v1",))
    await mirrored.copy(1)
    assert (mirrored.report.copied, mirrored.report.dropped) == (0, 1)


async def test_each_family_has_bounds_of_its_own_and_comparisons_are_counted() -> None:
    counted: list[tuple[str, str, bool]] = []

    class Meter:
        def count_compared(self, family: str, version: str, *, agrees: bool) -> None:
            counted.append((family, version, agrees))

    mirrored = Mirrored(off_by(0.5))
    loose = MirrorLimits(max_lag_s=10.0, atol=1.0)
    mirrored.mirror = Mirror(PATIENT, by_family={FAMILY: loose}, meter=Meter())
    await mirrored.copy(1)
    mirrored.mirror = Mirror(PATIENT, by_family={"other": loose}, meter=Meter())
    await mirrored.copy(1)
    assert counted == [(FAMILY, "v2", True), (FAMILY, "v2", False)]


@pytest.mark.parametrize(
    ("live", "shadow", "agree", "difference"),
    [
        ([[1.0], [2.0]], [[1.0], [2.0]], True, (0.0, 0.0)),
        ([[1000.0]], [[1000.5]], True, (0.5, 0.5)),
        ([[1.0], [2.0]], [[1.0], [3.0]], False, (0.5, 1.0)),
        ([[1], [2]], [[1], [2]], True, (0.0, 0.0)),
        ([[1000]], [[1001]], False, (1.0, 1.0)),
        ([["a"]], [["a"]], True, None),
        ([["a"]], [["b"]], False, None),
        ([["a"]], [[1.0]], False, None),
        ([[1.0]], [[1.0, 2.0]], False, None),
        ([[float("nan")]], [[float("nan")]], True, None),
        ([[1.0]], [[float("inf")]], False, None),
    ],
)
def test_answers_are_compared(
    live: list[list[Any]], shadow: list[list[Any]], agree: bool, difference: tuple[float, float] | None
) -> None:
    assert compared(np.array(live), np.array(shadow), rtol=1e-3, atol=1e-9) == (agree, difference)


async def test_live_requests_do_not_wait_for_copies_on_the_same_pool() -> None:
    never = asyncio.Event()

    async def hangs(rows: NDArray[np.float64]) -> NDArray[Any]:
        await never.wait()
        return row_sums(rows)

    client = FakePredictClient({"v1": row_sums, "v2": hangs}, capacity=1)
    router = RequestRouter(
        (FAMILY,), default_family=FAMILY, clients={(FAMILY, "cpu"): client}, limits=BatchLimits(10, 1 << 16, 10, 30.0)
    )
    router.observe(FAMILY, "cpu", [report("v1", "v2")])
    split = Split(
        variants=(Variant(name="stable", version="v1", weight=10_000),), salt="salt-1", shadow=Shadow(version="v2")
    )
    routes = {FAMILY: Route(version="v1", digest="0" * 64)}
    router.follow(RoutingTable(generation=1, routes=routes, splits={FAMILY: split}))
    target, _ = router.assign(FAMILY, RequestFacts())
    mirror = Mirror(PATIENT)
    mirror.offer(Copied(router.splits[FAMILY], target, [[1.0]], np.array([[1.0]]), 0.02))
    async with asyncio.timeout(5):
        while client.batches != [[[1.0]]]:  # until the copy is under way
            await asyncio.sleep(0)
    for i in range(3):
        assert (await asyncio.wait_for(target.coalescer.submit([[float(i)]]), 5)).tolist() == [[float(i)]]
    never.set()
    await mirror.settled()
