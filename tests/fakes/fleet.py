"""Model replicas and gateways without Ray, for the control plane's tests."""

from collections.abc import Collection, Sequence

from serve_app.domain.exposure import GatewayReport
from serve_app.domain.reload import RoutingTable, VersionRef
from serve_app.domain.rollout_state import Phase
from serve_app.domain.signature import Column, Signature
from serve_app.domain.status import LoadedVersion, ReplicaStatus
from serve_app.domain.verdict import Verdict
from serve_app.usecases.ports import DemandResult

SIGNATURE = Signature(inputs=(Column(name="x"),), outputs=(Column(name="y"),))


def loaded(ref: VersionRef) -> LoadedVersion:
    return LoadedVersion(
        version=ref.version,
        digest=ref.digest,
        created_at="2026-01-30T09:00:00Z",
        loaded_at_s=0.0,
        load_seconds=0.1,
        artifact_bytes=10,
        signature=SIGNATURE,
        engine={"y": "fake"},
        row_micros=1.0,
        runs_inline=True,
    )


class FakeFleet:
    """Replicas of one family that load at once, but for `refuses` (digest -> reason) and `hangs` (digest).

    `unreadable` has the digests that single replicas cannot read yet.
    """

    def __init__(self, n_replicas: int = 2) -> None:
        self.held: list[dict[str, VersionRef]] = [{} for _ in range(n_replicas)]
        self.failed: list[dict[str, str]] = [{} for _ in range(n_replicas)]
        self.refuses: dict[str, str] = {}
        self.hangs: set[str] = set()
        self.pin = "current"
        self.late_pins: dict[int, str] = {}  # of replicas that Serve has not passed `pin` on to yet
        self.n_unreachable = 0
        self.has_room_for_one = False
        self._unread: dict[int, set[str]] = {}
        self.no_room: list[dict[str, str]] = [{} for _ in range(n_replicas)]
        self.unreadable: dict[int, set[str]] = {}
        self.log: list[str] = []
        self.answering: list[list[list[str]]] = []  # what each replica holds, after each `prepare`

    def add_replica(self) -> None:
        """A replica that Serve has just started and that holds nothing."""
        self.held.append({})
        self.failed.append({})
        self.no_room.append({})

    async def statuses(self, family: str) -> list[ReplicaStatus]:
        """See `Fleet.statuses`."""
        return [
            ReplicaStatus(
                replica_id=f"r{i}",
                family=family,
                pool="cpu",
                wanted=self.late_pins.get(i, self.pin),
                versions=tuple(loaded(ref) for ref in self.held[i].values()),
                failed=self.failed[i],
                no_room=self.no_room[i],
                unread=dict.fromkeys(self._unread.get(i, ()), f"node {i} does not have it"),
            )
            for i in range(len(self.held) - self.n_unreachable)
        ]

    async def routable(self, family: str) -> int:
        """See `Fleet.routable`."""
        return len(self.held)

    async def prepare(self, family: str, refs: Sequence[VersionRef], *, unloading: Collection[str] = ()) -> None:
        """See `Fleet.prepare`."""
        turns = f" unloading {' '.join(unloading)}" if unloading else ""
        self.log.append("prepare " + " ".join(ref.version for ref in refs) + turns)
        for i in range(len(self.held) - self.n_unreachable):
            self.no_room[i].clear()
            for n, ref in enumerate(refs):
                if not self._can_read(i, ref):
                    continue
                if ref.digest in self.refuses:
                    self.failed[i][ref.digest] = self.refuses[ref.digest]
                elif ref.digest not in self.hangs:
                    self._take(i, ref, yielding=refs[n + 1 :] if f"r{i}" in unloading else ())
        self.answering.append([sorted(held) for held in self.held])

    def _can_read(self, i: int, ref: VersionRef) -> bool:
        """Say whether a replica has the files of a version, and keep that in what it tells."""
        can = ref.digest not in self.unreadable.get(i, ())
        unread = self._unread.setdefault(i, set())
        (unread.discard if can else unread.add)(ref.digest)
        return can

    def _take(self, i: int, ref: VersionRef, *, yielding: Sequence[VersionRef]) -> None:
        """Hold one more; where there is room for one only, in the place of one that may be unloaded."""
        held = self.held[i]
        if self.has_room_for_one and held and ref.version not in held:
            for other in [other for other in yielding if other.version in held]:
                del held[other.version]
                self.no_room[i][other.digest] = f"let go of for {ref.version}"
            if held:
                self.no_room[i][ref.digest] = "does not fit"
                return
        held[ref.version] = ref

    async def load(self, family: str, ref: VersionRef) -> None:
        """See `Fleet.load`."""
        self.log.append(f"load {ref.version}")
        for i in range(len(self.held) - self.n_unreachable):
            if not self._can_read(i, ref):
                continue
            if ref.digest in self.refuses:
                self.failed[i][ref.digest] = self.refuses[ref.digest]
            elif ref.digest not in self.hangs:
                self.held[i][ref.version] = ref

    async def evict(self, family: str, ref: VersionRef) -> None:
        """See `Fleet.evict`."""
        self.log.append(f"evict {ref.version}")
        for replica in self.held:
            replica.pop(ref.version, None)

    async def hold(self, family: str, refs: Sequence[VersionRef]) -> None:
        """See `Fleet.hold`."""
        self.log.append("hold " + " ".join(ref.version for ref in refs))
        kept = {ref.version for ref in refs}
        for replica in self.held:
            for version in set(replica) - kept:
                del replica[version]


class FakeGateways:
    """Keeps every table that was pushed."""

    def __init__(self) -> None:
        self.tables: list[RoutingTable] = []
        self.refreshed: list[str] = []
        self.reports: list[GatewayReport] = []

    async def refresh(self, family: str) -> None:
        """See `Gateways.refresh`."""
        self.refreshed.append(family)

    async def push(self, table: RoutingTable) -> int:
        """See `Gateways.push`."""
        self.tables.append(table)
        return 1

    async def evidence(self) -> list[GatewayReport]:
        """See `Gateways.evidence`."""
        return list(self.reports)


class FakeReloadMeter:
    """Keeps what was counted."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, ...]] = []

    def observe_stage(self, family: str, phase: object, seconds: float) -> None:
        """See `ReloadMeter.observe_stage`."""
        self.counted.append(("stage", family, str(phase)))

    def observe_commit(self, family: str, seconds: float) -> None:
        """See `ReloadMeter.observe_commit`."""
        self.counted.append(("commit", family))

    def count_reload(self, family: str, outcome: object) -> None:
        """See `ReloadMeter.count_reload`."""
        self.counted.append(("reload", family, str(outcome)))

    def count_source_error(self, family: str) -> None:
        """See `ReloadMeter.count_source_error`."""
        self.counted.append(("source_error", family))

    def observe_demand(self, family: str, result: DemandResult, seconds: float) -> None:
        """See `DemandMeter.observe_demand`."""
        self.counted.append(("demand", family, str(result)))


class FakeRolloutMeter:
    """Keeps what was told last of each family."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[Phase, float, Verdict | None]] = {}
        self.progress: dict[str, tuple[int, int, float]] = {}

    def set_rollout(self, family: str, phase: Phase, *, weight: float, verdict: Verdict | None) -> None:
        """See `RolloutMeter.set_rollout`."""
        self.told[family] = (phase, weight, verdict)

    def set_progress(self, family: str, *, requests: int, entities: int, deadline_s: float) -> None:
        """See `RolloutMeter.set_progress`."""
        self.progress[family] = (requests, entities, deadline_s)
