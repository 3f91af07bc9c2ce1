import pytest

from serve_app.domain.errors import NoModelError, UnknownFamilyError, UnknownVersionError
from serve_app.domain.reload import Route, RoutingTable
from serve_app.usecases.coalesce_requests import BatchLimits
from serve_app.usecases.route_request import RequestRouter, Target
from tests import builders
from tests.fakes.predict_client import FakePredictClient, row_sums
from tests.reports import loaded, report

FAMILY = "forecaster"


class Routed:
    """A router over two pools of one family, and a second family."""

    def __init__(self) -> None:
        self.cpu = FakePredictClient({"v1": row_sums, "v2": row_sums})
        self.gpu = FakePredictClient({"v1": row_sums, "v2": row_sums})
        self.router = RequestRouter(
            (FAMILY, "iris"), default_family=FAMILY,
            clients={(FAMILY, "cpu"): self.cpu, (FAMILY, "gpu"): self.gpu, ("iris", "cpu"): FakePredictClient()},
            limits=BatchLimits(10, 1 << 16, 10, 30.0),
        )  # fmt: skip

    def observe(self, *versions: str, pool: str = "cpu", replica_id: str = "r1", last_error: str | None = None) -> None:
        reported = report(*versions, replica_id=replica_id, pool=pool, last_error=last_error)
        self.router.observe(FAMILY, pool, [reported])


def table(generation: int, version: str, *, last_good: str | None = None, family: str = FAMILY) -> RoutingTable:
    route = Route(version=version, digest="0" * 64, last_good=last_good)
    return RoutingTable(generation=generation, routes={family: route})


@pytest.fixture
async def routed() -> Routed:
    return Routed()


async def test_table_routes_to_a_version_that_a_replica_reported(routed: Routed) -> None:
    routed.observe("v1", "v2")
    (target,) = routed.router.follow(table(3, "v2"))
    assert routed.router.target(FAMILY) is target is routed.router.current(FAMILY)
    assert (target.version, target.pool, target.reason, target.generation) == ("v2", "cpu", "default", 3)
    assert routed.router.generation == 3


async def test_empty_name_is_the_default_family(routed: Routed) -> None:
    routed.observe("v1")
    routed.router.follow(table(1, "v1"))
    assert routed.router.target("").family == FAMILY


async def test_version_that_nobody_has_yet_is_taken_up_once_it_is_reported(routed: Routed) -> None:
    routed.observe("v1")
    routed.router.follow(table(1, "v1"))
    assert routed.router.awaited(table(2, "v2")) == [FAMILY]
    assert routed.router.follow(table(2, "v2")) == []
    assert routed.router.target(FAMILY).version == "v1"
    routed.observe("v1", "v2")
    assert routed.router.awaited(table(2, "v2")) == []
    assert [target.version for target in routed.router.follow(table(2, "v2"))] == ["v2"]


async def test_older_table_is_ignored(routed: Routed) -> None:
    routed.observe("v1", "v2")
    routed.router.follow(table(5, "v2"))
    assert routed.router.follow(table(4, "v1")) == []
    assert (routed.router.target(FAMILY).version, routed.router.generation) == ("v2", 5)


async def test_same_table_again_changes_nothing(routed: Routed) -> None:
    routed.observe("v1")
    (target,) = routed.router.follow(table(1, "v1"))
    assert routed.router.follow(table(1, "v1")) == []
    assert routed.router.target(FAMILY) is target


async def test_family_that_is_not_configured_is_left_out_of_a_table(routed: Routed) -> None:
    assert routed.router.follow(table(1, "v1", family="other")) == []
    assert routed.router.awaited(table(1, "v1", family="other")) == []


async def test_family_without_a_model_says_why(routed: Routed) -> None:
    with pytest.raises(NoModelError, match="its first version is loading") as caught:
        routed.router.target(FAMILY)
    assert caught.value.retry_after_s == 5
    routed.observe(last_error="v1: wrong digest")
    with pytest.raises(NoModelError, match="v1: wrong digest"):
        routed.router.target(FAMILY)


async def test_first_model_is_awaited_until_it_is_there_or_something_says_why_not(routed: Routed) -> None:
    assert routed.router.awaiting_first({FAMILY}) == [FAMILY]
    assert routed.router.awaiting_first(()) == []
    troubled = RoutingTable(troubles={FAMILY: "the source is away"})
    routed.router.follow(troubled)
    assert routed.router.awaiting_first({FAMILY}) == [], "nothing to answer with, and the control plane says why"
    routed.router.follow(table(1, "v1").model_copy(update={"troubles": troubled.troubles}))
    assert routed.router.awaiting_first({FAMILY}) == [FAMILY], "a version to answer is known, only replicas may lack it"
    routed.observe(last_error="v1: wrong digest")
    assert routed.router.awaiting_first({FAMILY}) == []
    routed.observe()
    assert routed.router.awaiting_first({FAMILY}) == [FAMILY]
    routed.observe("v1")
    routed.router.follow(table(1, "v1"))
    assert routed.router.awaiting_first({FAMILY}) == []


async def test_unknown_family_is_told_with_the_nearest(routed: Routed) -> None:
    with pytest.raises(UnknownFamilyError, match="did you mean 'iris'"):
        routed.router.target("irsi")


async def test_forced_version_goes_before_the_table(routed: Routed) -> None:
    routed.observe("v1", "v2")
    routed.router.follow(table(1, "v1"))
    target = routed.router.target(FAMILY, "v2")
    assert (target.version, target.reason) == ("v2", "forced")


async def test_forced_version_that_is_not_loaded_is_told_with_those_that_are(routed: Routed) -> None:
    routed.observe("v1", "v2")
    routed.router.follow(table(1, "v1"))
    with pytest.raises(UnknownVersionError) as caught:
        routed.router.target(FAMILY, "v9")
    assert caught.value.known == ("v1", "v2")


async def test_version_that_no_replica_holds_any_more_cannot_be_forced(routed: Routed) -> None:
    routed.observe("v1", "v2")
    routed.router.follow(table(1, "v1"))
    routed.observe("v1")
    with pytest.raises(UnknownVersionError):
        routed.router.target(FAMILY, "v2")


async def test_named_version_is_found_for_as_long_as_a_replica_reports_it(routed: Routed) -> None:
    assert routed.router.named(FAMILY, "v2") is None
    routed.observe("v1", "v2")
    target = routed.router.named(FAMILY, "v2")
    assert target is not None
    assert (target.version, target.reason) == ("v2", "named")
    routed.observe("v1")
    assert routed.router.named(FAMILY, "v2") is None


async def test_replicas_that_do_not_report_change_nothing(routed: Routed) -> None:
    routed.observe("v1")
    routed.router.follow(table(1, "v1"))
    routed.router.observe(FAMILY, "cpu", [])
    assert routed.router.target(FAMILY, "v1").version == "v1"
    assert len(routed.router.statuses(FAMILY)) == 1


async def test_default_and_forced_requests_of_a_version_share_their_batches(routed: Routed) -> None:
    routed.observe("v1")
    routed.router.follow(table(1, "v1"))
    assert routed.router.target(FAMILY).coalescer is routed.router.target(FAMILY, "v1").coalescer


async def test_requests_go_to_the_pool_that_reported_the_version(routed: Routed) -> None:
    routed.observe("v1", pool="cpu")
    routed.observe("v2", pool="gpu", replica_id="r2")
    routed.router.follow(table(1, "v2"))
    target = routed.router.target(FAMILY)
    assert target.pool == "gpu"
    await target.coalescer.submit([[1.0]])
    assert (routed.cpu.batches, routed.gpu.batches) == ([], [[[1.0]]])


async def test_last_good_version_is_the_way_out(routed: Routed) -> None:
    routed.observe("v1", "v2")
    (target,) = routed.router.follow(table(1, "v2", last_good="v1"))
    other = routed.router.fallback(target)
    assert other is not None
    assert (other.version, other.reason) == ("v1", "fallback")
    assert routed.router.fallback(routed.router.target(FAMILY, "v2")) is None
    assert routed.router.fallback(other) is None


async def test_request_of_before_a_commit_goes_to_what_is_routed_to_now(routed: Routed) -> None:
    routed.observe("v1", "v2")
    (before,) = routed.router.follow(table(1, "v1"))
    routed.router.follow(table(2, "v2", last_good="v1"))
    other = routed.router.fallback(before)
    assert other is not None
    assert (other.version, other.reason, other.generation) == ("v2", "fallback", 2)


async def test_version_that_takes_other_inputs_is_no_way_out(routed: Routed) -> None:
    routed.router.observe(FAMILY, "cpu", [report("v2", loaded("v1", signature=builders.signature(["a", "b", "c"])))])
    (target,) = routed.router.follow(table(1, "v2", last_good="v1"))
    assert routed.router.fallback(target) is None


@pytest.mark.parametrize("last_good", [None, "v2", "v0"])
async def test_without_a_loaded_last_good_version_there_is_no_way_out(routed: Routed, last_good: str | None) -> None:
    routed.observe("v1", "v2")
    (target,) = routed.router.follow(table(1, "v2", last_good=last_good))
    assert routed.router.fallback(target) is None


async def test_facts_of_a_loaded_version_can_be_asked_for(routed: Routed) -> None:
    routed.router.observe(FAMILY, "cpu", [report(loaded("v1", digest="a" * 64))])
    found = routed.router.loaded(FAMILY, "v1")
    assert found is not None
    assert (found.digest, found.signature) == ("a" * 64, builders.signature())
    assert routed.router.loaded(FAMILY, "v2") is None
    assert routed.router.loaded("iris", "v1") is None


class FlippingRouter(Routed):
    """A router whose clock stands still until it is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0
        self.router = RequestRouter(
            (FAMILY,), default_family=FAMILY, clients={(FAMILY, "cpu"): self.cpu},
            limits=BatchLimits(10, 1 << 16, 10, 30.0), now_s=lambda: self.now_s,
        )  # fmt: skip
        self.observe("v1", "v2")
        self.router.follow(table(1, "v1"))

    def offer(self, generation: int, version: str, *, in_s: float) -> list[Target]:
        later = table(generation, version).model_copy(update={"effective_at_s": self.now_s + in_s})
        return self.router.follow(later)


async def test_table_is_taken_up_at_its_moment_by_the_first_request_after_it() -> None:
    flipping = FlippingRouter()
    assert flipping.offer(2, "v2", in_s=0.06) == []
    assert (flipping.router.target("").version, flipping.router.generation) == ("v1", 1)
    assert flipping.router.waits_s() == pytest.approx(0.06)
    flipping.now_s += 0.07
    target = flipping.router.target("")
    assert (target.version, target.generation, flipping.router.waits_s()) == ("v2", 2, None)
    assert flipping.router.take_up() == [target]  # told once, by whoever comes first
    assert flipping.router.take_up() == []


async def test_table_is_taken_up_without_a_request_or_a_clock_that_goes_on() -> None:
    flipping = FlippingRouter()
    flipping.offer(2, "v2", in_s=0.06)
    flipping.now_s -= 3600
    (target,) = flipping.router.take_up()
    assert target is flipping.router.target("")
    assert target.version == "v2"


async def test_older_table_that_comes_meanwhile_changes_nothing_and_a_newer_one_waits_instead() -> None:
    flipping = FlippingRouter()
    flipping.offer(2, "v2", in_s=0.06)
    assert flipping.router.follow(table(1, "v1")) == []
    assert flipping.router.waits_s() is not None
    flipping.offer(3, "v1", in_s=0.06)
    flipping.now_s += 1
    assert (flipping.router.target("").version, flipping.router.generation) == ("v1", 3)


@pytest.mark.parametrize("in_s", [0.0, -5.0, 3600.0])
async def test_table_for_now_for_earlier_or_by_another_clock_is_taken_up_at_once(in_s: float) -> None:
    flipping = FlippingRouter()
    (target,) = flipping.offer(2, "v2", in_s=in_s)
    assert flipping.router.target("") is target
