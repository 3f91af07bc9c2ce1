"""A family under control whose versions go by a plan, over fakes: what outlives a Reconciler, and one of them."""

import asyncio
from dataclasses import dataclass, field

from serve_app.domain.following import FollowRule, ReloadMode
from serve_app.domain.reload import VersionRef
from serve_app.domain.rollout import Command
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutRecord
from serve_app.domain.rollout_state import Phase
from serve_app.usecases.advance_rollout import RolloutAdvancer
from serve_app.usecases.control_rollouts import RolledFamily
from serve_app.usecases.control_versions import VersionControl
from serve_app.usecases.controlled_family import ControlledFamily
from serve_app.usecases.follow_source import SourceFollower
from serve_app.usecases.keep_plans import PlanKeeper
from serve_app.usecases.keep_state import StateKeeper
from serve_app.usecases.ports import TrialLimits
from serve_app.usecases.reload_model import ModelReloader, ReloadPolicy
from tests import builders
from tests.fakes.bundle_source import FakeBundleSource
from tests.fakes.clock import FakeClock
from tests.fakes.fleet import FakeFleet, FakeReloadMeter, FakeRolloutMeter
from tests.fakes.state_store import FakeStateStore
from tests.fakes.traffic import TrafficGateways
from tests.fakes.trial import FakeTrial

FAMILY = "forecaster"
CANARY = RolloutPlan.model_validate(
    {"strategy": "canary", "steps": [{"weight": 10, "hold_s": 20}, {"weight": 50, "hold_s": 20}], "deadline_s": 4_000}
)


@dataclass
class World:
    """Store, source, replicas, gateways with their clients; `control` is the Reconciler of now."""

    plan: RolloutPlan | None = CANARY
    source: FakeBundleSource = field(default_factory=FakeBundleSource)
    store: FakeStateStore = field(default_factory=FakeStateStore)
    fleet: FakeFleet = field(default_factory=FakeFleet)
    gateways: TrafficGateways = field(default_factory=lambda: TrafficGateways("g1", "g2"))
    clock: FakeClock = field(default_factory=FakeClock)
    meter: FakeRolloutMeter = field(default_factory=FakeRolloutMeter)
    mode: ReloadMode = ReloadMode.POLL

    def __post_init__(self) -> None:
        self.trial = FakeTrial({FAMILY: {}})
        self.control: VersionControl

    @classmethod
    async def made(cls, plan: RolloutPlan | None = CANARY) -> "World":
        """A world in which v1 answers and v2 waits at the source, not current yet."""
        world = cls(plan=plan)
        world.publish("v1")
        await world.begin()
        await world.turn()
        world.publish("v2", current=False)
        return world

    def publish(self, version: str, *, current: bool = True) -> VersionRef:
        self.source.publish(builders.bundle({"a": version.encode()}, model_version=version), current=current)
        digest = self.source.find(version).fingerprint
        self.trial.digests[FAMILY][version] = digest
        return VersionRef(version=version, digest=digest)

    async def begin(self) -> None:
        """Start a Reconciler, in place of the one of before."""
        keeper = StateKeeper(self.store)
        reload_meter = FakeReloadMeter()
        reloader = ModelReloader(
            FAMILY, ReloadPolicy(TrialLimits(10.0, 1 << 20), prepare_timeout_s=10.0), keeper=keeper, fleet=self.fleet,
            gateways=self.gateways, trial=self.trial, clock=self.clock, meter=reload_meter,
        )  # fmt: skip
        reloader._n_gateways = 1  # no waiting for the moment at which several flip
        advancer = RolloutAdvancer(
            FAMILY, reloader=reloader, keeper=keeper, fleet=self.fleet, gateways=self.gateways, clock=self.clock,
            meter=self.meter,
        )  # fmt: skip
        follower = SourceFollower(
            FAMILY, self.source, FollowRule(self.mode, 30.0), fleet=self.fleet, clock=self.clock, meter=reload_meter,
            dice=lambda: 0.5,
        )  # fmt: skip
        self.plans = PlanKeeper({FAMILY: self.plan})
        family = ControlledFamily(self.source, follower, reloader, rolled=RolledFamily(advancer, self.plans))
        self.control = VersionControl(
            {FAMILY: family}, owner="one", keeper=keeper, fleet=self.fleet, gateways=self.gateways, clock=self.clock,
            meter=reload_meter,
        )  # fmt: skip
        await keeper.refresh()
        await self.control.keep_lease()
        self.gateways.tables.append(self.control.table)  # which they ask for every second

    @property
    def rollout(self) -> RolloutRecord:
        found = self.store.read().family(FAMILY).rollout
        assert found is not None
        return found

    @property
    def phase(self) -> Phase:
        return self.rollout.state.phase

    @property
    def active(self) -> str | None:
        ref = self.store.read().family(FAMILY).active
        return ref.version if ref else None

    async def turn(self) -> None:
        """One turn of the loop, and what it has started, up to where it waits for time or traffic."""
        await self.control.tick(FAMILY)
        while run := self.control._runs.under_way(FAMILY):
            await run.done.wait()
        for _ in range(6):  # trial, cover and promotion are tasks, each found by the turn after it
            await asyncio.sleep(0)
            advancer = self.control._families[FAMILY].rolled
            work = advancer.advancer._work if advancer else None
            if work is None:
                return
            await asyncio.wait([work.task])
            await self.control.tick(FAMILY)

    async def pass_time(self, seconds: float, *, requests: int = 0, step_s: float = 5.0) -> None:
        """Let time pass in turns, with so many requests to each gateway in each of them; stop when it is over."""
        for _ in range(max(1, round(seconds / step_s))):
            self.clock.advance(step_s)
            self.gateways.ask(FAMILY, requests)
            await self.turn()
            if self.rollout.is_released:
                return

    async def start(self, version: str = "v2", plan: RolloutPlan | None = None) -> None:
        """Start a rollout and go on until the candidate is loaded."""
        await self.control.start_rollout(FAMILY, version=version, plan=plan, force=False, actor="ann", reason="test")
        await self.turn()

    async def command(self, command: Command) -> None:
        await self.control.command_rollout(FAMILY, command, actor="ann", reason="because")
