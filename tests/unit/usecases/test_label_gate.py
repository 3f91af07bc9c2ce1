"""Rollouts that labels decide: late, at other gateways than those that predicted, and after restarts of these."""

from pathlib import Path

import pytest

from serve_app.adapters.prediction_log import PredictionFiles
from serve_app.domain.evidence_window import window_of
from serve_app.domain.exposure import GatewayReport
from serve_app.domain.labels import GivenLabel, PredictionId
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutRecord
from serve_app.domain.rollout_state import Phase
from serve_app.domain.traffic import RequestFacts
from serve_app.domain.verdict import Verdict
from serve_app.usecases.count_evidence import SplitTally
from serve_app.usecases.join_labels import JoinLabels
from serve_app.usecases.remember_predictions import LabelSettings, PredictionMemory
from serve_app.usecases.split_requests import SplitRoute
from tests.fakes.clock import FakeClock
from tests.fakes.traffic import Behaviour
from tests.labelled import LabelCounts, answer, target
from tests.unit.usecases.rolled import FAMILY, World

LOSS = {"kind": "loss", "loss": "absolute_error", "max_increase": 0.2, "min_samples": 200}
ERRORS = {"kind": "error_rate", "max_increase": 0.02}
GATED = RolloutPlan.model_validate(
    {
        "strategy": "canary",
        "steps": [{"weight": 50, "hold_s": 20}],
        "deadline_s": 4_000,
        "analysis": {"metrics": [ERRORS, LOSS]},
    }
)
WATCHED = GATED.model_copy(update={"watch_s": 1_000.0, "holdback": 20.0})
LATE = 12
"""Calls of five seconds: labels are a minute late."""


async def gated(plan: RolloutPlan = GATED, *, loss: float = 1.0, late: int = LATE) -> World:
    world = await World.made(plan)
    world.gateways.late = late
    world.gateways.behaviours = {"v1": Behaviour(loss=1.0), "v2": Behaviour(loss=loss)}
    await world.start()
    assert world.phase is Phase.STEP
    return world


async def test_rollout_waits_for_late_labels_and_is_promoted_when_they_are_as_good() -> None:
    world = await gated()
    await world.pass_time(5 * LATE, requests=300)
    analysis = world.rollout.analysis
    assert analysis is not None
    assert (world.phase, analysis.verdict, analysis.metrics[0].verdict) == (
        Phase.STEP, Verdict.INCONCLUSIVE, Verdict.PASS,
    )  # fmt: skip
    assert "no labels of both variants yet" in analysis.reason
    await world.pass_time(600, requests=300)
    assert (world.phase, world.active) == (Phase.SUCCEEDED, "v2")


async def test_canary_that_only_labels_call_worse_is_aborted() -> None:
    world = await gated(loss=1.6)
    await world.pass_time(600, requests=300)
    assert (world.phase, world.active) == (Phase.ABORTED, "v1")
    assert world.rollout.state.history[-2].reason.startswith("fail: loss_absolute_error")


async def test_labels_that_come_while_nobody_asks_for_predictions_count() -> None:
    world = await gated(loss=1.6)
    phases = []
    for requests in (300, 0):
        await world.pass_time(5 * LATE, requests=requests)
        phases.append(world.phase)
    assert phases == [Phase.STEP, Phase.ABORTED]


async def test_labels_that_turn_bad_after_the_promotion_bring_the_former_version_back() -> None:
    world = await gated(WATCHED)
    for _ in range(200):
        await world.pass_time(5, requests=300)
        if world.phase is Phase.WATCHING:
            break
    assert (world.phase, world.active) == (Phase.WATCHING, "v2")
    split = world.gateways.tables[-1].splits[FAMILY]
    assert {variant.version: variant.weight for variant in split.variants} == {"v1": 2_000, "v2": 8_000}
    world.gateways.behaviours["v2"] = Behaviour(loss=2.0)
    await world.pass_time(900, requests=300)
    assert (world.phase, world.active) == (Phase.ABORTED, "v1")
    assert world.gateways.tables[-1].splits == {}
    assert world.gateways.tables[-1].routes[FAMILY].version == "v1"
    audit = await world.control.audit(family=FAMILY, limit=20)
    assert any(entry.reason.startswith("fail after the promotion: loss_absolute_error") for entry in audit)
    assert world.rollout.state.candidate.digest in world.store.read().family(FAMILY).failed


async def test_promotion_that_stays_good_succeeds_and_nobody_is_held_back_any_more() -> None:
    world = await gated(WATCHED.model_copy(update={"watch_s": 100.0}))
    await world.pass_time(3_000, requests=300)
    assert (world.phase, world.active) == (Phase.SUCCEEDED, "v2")
    assert world.gateways.tables[-1].splits == {}
    assert world.rollout.state.history[-1].reason.startswith("watched for its time: ")


async def test_crash_while_watching_goes_on_watching_and_counts_nothing_twice() -> None:
    world = await gated(WATCHED, late=0)
    while world.phase is not Phase.WATCHING:
        await world.pass_time(5, requests=300)
    await world.pass_time(50, requests=300)
    tally = world.rollout.tally
    await world.begin()
    await world.turn()
    assert (world.phase, world.rollout.tally) == (Phase.WATCHING, tally)
    world.gateways.restart("g1", "g3")
    await world.pass_time(5, requests=300)
    after = world.rollout.tally
    added = [side.means["absolute_error"].count for side in (after.stable, after.canary)]
    before = [side.means["absolute_error"].count for side in (tally.stable, tally.canary)]
    assert sum(added) - sum(before) == 2 * 300


async def test_gate_on_labels_with_a_shadow_first_does_not_wait_for_labels_of_the_shadow() -> None:
    document = GATED.model_dump(mode="json") | {"shadow_first": {"hold_s": 20}}
    world = await World.made(RolloutPlan.model_validate(document))
    world.gateways.behaviours = {"v1": Behaviour(loss=1.0), "v2": Behaviour(loss=1.0)}
    await world.start()
    for _ in range(100):
        await world.pass_time(5, requests=300)
        if world.phase is Phase.STEP:
            break
    assert [move.to for move in world.rollout.state.history] == [Phase.SHADOW, Phase.STEP]


# From a gateway's answer to another gateway's evidence


class Gateway:
    """A gateway process; several share a directory."""

    def __init__(self, directory: Path, clock: FakeClock) -> None:
        log = PredictionFiles(directory, keep_days=1, max_bytes=1 << 24, now_s=clock.now_s)
        counts = LabelCounts()
        self.memory = PredictionMemory({FAMILY: (log, LabelSettings(remember=0))}, counts, now_s=clock.now_s)
        self.joiner = JoinLabels(self.memory, counts, clock=clock)
        self._number = 0

    async def predict(self, salt: str, variant: str, value: float) -> PredictionId:
        self._number += 1
        told = target(variant=variant, reason="hash", salt=salt)
        self.memory.offer(self._number, told, answer(value))
        await self.memory.write()
        return PredictionId(self.memory.prefix, self._number)

    def report(self, name: str) -> GatewayReport:
        return self.joiner.book.merged_into(GatewayReport(gateway=name))


async def test_label_at_another_gateway_after_the_first_one_died_is_evidence_once(tmp_path: Path) -> None:
    world, clock = await gated(), FakeClock()
    record = world.rollout
    first, second = Gateway(tmp_path, clock), Gateway(tmp_path, clock)
    ids = [await first.predict(record.state.salt, name, 3.0) for name in ("stable", "canary", "canary")]
    reborn = Gateway(tmp_path, clock)  # in place of the first
    for gateway, one in ((second, ids[0]), (reborn, ids[1]), (second, ids[2]), (reborn, ids[2])):
        await gateway.joiner.join([(0, GivenLabel(one, 1.0))])
    reports = [second.report("g2"), reborn.report("g3")]
    seen: RolloutRecord = record
    window = window_of(seen, reports, effective_at_s=0.0, now_s=1e6)
    sides = window.evidence.stable, window.evidence.canary
    assert [side.means["absolute_error"].count for side in sides] == [1, 2]
    assert not window.is_empty
    seen = seen.model_copy(update={"seen": window.seen})
    assert window_of(seen, reports, effective_at_s=0.0, now_s=1e6 + 1).is_empty


@pytest.mark.parametrize(("phase", "salts"), [(Phase.STEP, 1), (Phase.SHADOW, 0)])
async def test_labels_count_only_where_another_variant_got_requests_at_that_time(phase: Phase, salts: int) -> None:
    document = GATED.model_dump(mode="json") | ({"shadow_first": {"hold_s": 20}} if phase is Phase.SHADOW else {})
    world = await World.made(RolloutPlan.model_validate(document))
    await world.start()
    split = world.gateways.tables[-1].splits[FAMILY]
    route = SplitRoute(split, SplitTally(), find=lambda version, _: target(version=version), draw=lambda: 0.99)
    chosen, _ = route.choose(RequestFacts())
    assert chosen is not None
    assert chosen.salt == (split.salt if salts else "")
