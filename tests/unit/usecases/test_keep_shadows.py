"""What gateways tell of shadows stays known, and is passed on."""

from pathlib import Path

import pytest

from serve_app.adapters.last_known import LastKnown
from serve_app.domain.diff_report import NoShadowError
from serve_app.domain.exposure import GatewayReport
from serve_app.domain.reload import RoutingTable
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_state import RolloutState
from serve_app.domain.version_ref import VersionRef
from serve_app.usecases.keep_shadows import ShadowKeeper
from tests.fakes.clock import FakeClock
from tests.unit.domain.test_diff_report import FAMILY, report

PLAN = RolloutPlan.model_validate({"strategy": "shadow", "shadow_first": {"hold_s": 1}})
STATE = RolloutState(
    rollout_id="r1", family=FAMILY, plan=PLAN,
    candidate=VersionRef(version="v2", digest="d2"), stable=VersionRef(version="v1", digest="d1"), actor="ops",
    reason="", started_at_s=0.0, began_at_s=0.0,
)  # fmt: skip


class ToldGateways:
    """`Gateways` that tell what a test says."""

    def __init__(self) -> None:
        self.reports: list[GatewayReport] = []
        self.pushed: list[RoutingTable] = []
        self.refreshed: list[str] = []

    async def refresh(self, family: str) -> None:
        self.refreshed.append(family)

    async def push(self, table: RoutingTable) -> int:
        self.pushed.append(table)
        return 3

    async def evidence(self) -> list[GatewayReport]:
        return self.reports


class Kept:
    def __init__(self, directory: Path) -> None:
        self.gateways = ToldGateways()
        self.memory = LastKnown(directory / "shadows.json")
        self.keeper = self.again()

    def again(self) -> ShadowKeeper:
        return ShadowKeeper(self.gateways, memory=self.memory, clock=FakeClock())


async def test_everything_is_passed_on(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.gateways.reports = [report("a", 0.0)]
    assert await kept.keeper.evidence() == kept.gateways.reports
    await kept.keeper.refresh(FAMILY)
    assert (await kept.keeper.push(RoutingTable()), len(kept.gateways.pushed), kept.gateways.refreshed) == (
        3,
        1,
        [FAMILY],
    )


async def test_shadow_is_told_as_of_now(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.gateways.reports = [report("a", 0.0, 1.0, salt=STATE.salt)]
    told = await kept.keeper.shadow(STATE)
    assert (told.live_version, told.diff.compared, told.gateways, told.away) == ("v1", 2, 1, 0)


async def test_shadow_is_still_told_when_its_gateways_are_gone_and_after_a_restart(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.gateways.reports = [report("a", 0.0, salt=STATE.salt), report("b", 1.0, salt=STATE.salt)]
    await kept.keeper.evidence()
    kept.gateways.reports = [GatewayReport(gateway="c")]
    for keeper in (kept.keeper, kept.again()):
        told = await keeper.shadow(STATE)
        assert (told.gateways, told.away, told.diff.compared) == (2, 2, 2)


async def test_rollout_without_a_shadow_says_so(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.gateways.reports = [report("a", 0.0, salt="of another rollout")]
    with pytest.raises(NoShadowError):
        await kept.keeper.shadow(STATE)
