"""What the usecases need from outside, as protocols; `adapters` implements them, `tests/fakes` imitates them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.events import Event
from serve_app.domain.exposure import GatewayReport
from serve_app.domain.manifest import Manifest
from serve_app.domain.reload import AuditEntry, KnownVersion, Operation, Outcome, Phase, RoutingTable, StoredState
from serve_app.domain.signature import Signature
from serve_app.domain.source_status import SourceStatus
from serve_app.domain.status import ReplicaStatus
from serve_app.domain.temporal import TemporalShape
from serve_app.domain.version_ref import VersionRef
from serve_app.usecases.event_ports import EventLog, EventPlane
from serve_app.usecases.replay_ports import ReplayPlane
from serve_app.usecases.rollout_ports import RolloutPlane


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle in memory: every file the manifest lists, read once, its digest checked on exactly these bytes.

    `files` maps the manifest's relative paths to the bytes. `location` is where it came from, for messages only.
    `digest` is the sha256 (hex) of the manifest's bytes; it identifies the bundle.
    """

    manifest: Manifest
    digest: str
    files: Mapping[str, bytes]
    location: str


@dataclass(frozen=True, slots=True)
class BundleRef:
    """A bundle that a source knows of, not yet read. `fingerprint` changes exactly when the manifest's bytes do."""

    version: str
    fingerprint: str
    location: str
    is_current: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


class BundleSource(Protocol):
    """Finds bundles of one family. Safe to call from several threads; caches no failure; does not retry by itself."""

    def current(self) -> BundleRef | None:
        """Return what the source calls current, or None when it has nothing yet.

        Raises:
            SourceError: The source cannot be read now.
        """
        ...

    def find(self, version: str) -> BundleRef:
        """Return one version. A registry's is copied to this machine if it is not yet; a copy needs no registry.

        Raises:
            VersionNotFoundError: The source has no such version.
            SourceError: The source cannot be read now.
        """
        ...

    def chosen(self, model: str) -> BundleRef:
        """Return what the family's selector (alias, stage, number, newest) chooses of another registered model now.

        Raises:
            VersionNotFoundError: There is no such model, or nothing of it is chosen.
            SourceError: The source cannot be read now.
        """
        ...

    def remembered(self) -> BundleRef | None:
        """Return what `current` last answered, if it is here and needs no network; None where nothing is kept.

        Raises:
            SourceError: What is kept cannot be read.
        """
        ...

    def keep(self, versions: Collection[str]) -> None:
        """Hear which versions are live, so that their local copies are never thrown away."""
        ...

    def status(self) -> SourceStatus:
        """Return what is known since the last access; reads nothing."""
        ...

    def versions(self) -> Sequence[BundleRef]:
        """List all bundles, newest first; a directory that is no bundle is left out.

        The fingerprint of a version that was never copied from its registry is empty.
        """
        ...

    def fetch(self, version: str) -> Bundle:
        """Read and verify one version; `"current"` follows the link.

        Raises:
            BundleError: The bundle is refused, with all its problems.
            SourceError: The source cannot be read now, or has no such version.
        """
        ...


class Predictor(Protocol):
    """A model in memory. `predict` may be called from several threads at once and keeps no state between calls."""

    @property
    def signature(self) -> Signature:
        """The columns it takes and gives."""
        ...

    @property
    def engine(self) -> Mapping[str, str]:
        """Which engine computes each output, e.g. `{"cpu_usage_node": "treelite"}`; the slow one says why."""
        ...

    @property
    def artifact_bytes(self) -> int:
        """Size of the files it was made of, the measure of the byte budget."""
        ...

    def predict(self, rows: NDArray[np.float64]) -> NDArray[Any]:
        """Predict a batch: float64 (batch, input_width) -> (batch, output_width), columns as in the signature."""
        ...


@runtime_checkable
class TemporalPredictor(Predictor, Protocol):
    """A predictor of windows; `usecases/window_rows.py` makes its rows and takes its answers apart."""

    @property
    def temporal(self) -> TemporalShape:
        """What its windows and answers look like."""
        ...

    @property
    def entities(self) -> tuple[str, ...]:
        """Names of what it was trained on; it forecasts others too."""
        ...


class Loader(Protocol):
    """Turns a verified bundle into a predictor. `uses_pickle` says that loading may run code from the bundle."""

    @property
    def uses_pickle(self) -> bool:
        """True when the format can execute code on load, so that the operator must allow it."""
        ...

    def load(self, bundle: Bundle) -> Predictor:
        """Deserialize from the bundle's bytes, never from its files.

        Raises:
            BundleError: The contents do not fit the loader, with all problems.
        """
        ...


class DeviceMemory(Protocol):
    """The memory of the device that a replica's models lie in. Asked in threads; one load at a time is measured."""

    def free_bytes(self) -> int:
        """Return what a model could have now; memory that is only cached counts as free."""
        ...

    def total_bytes(self) -> int:
        """Return the size of the memory."""
        ...

    def begin(self) -> None:
        """A load begins."""
        ...

    def used(self) -> tuple[int, int]:
        """Return the bytes that came to lie there since `begin`, and the most that there were at any moment since."""
        ...


class Clock(Protocol):
    """Time, so that tests can hold it."""

    def now_s(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go back."""
        ...


Done = Callable[[NDArray[Any] | Exception], None]


class PredictClient(Protocol):
    """Reaches the replicas of one pool. Lives on one event loop; picks the replica and never retries by itself."""

    @property
    def capacity(self) -> int:
        """How many calls may be out at once over all replicas; 0 while no replica is known."""
        ...

    def call(self, version: str, rows: NDArray[np.float64], done: Done) -> None:
        """Send float64 rows (batch, n_inputs); `done` is called exactly once, later, on the same event loop.

        It gets the outputs (batch, n_outputs), or `UnknownVersionError` (that replica does not hold the version),
        `PredictionError` (the model raised), or `UnavailableError` (the replica went away, or took too long).
        """
        ...


class RequestMeter(Protocol):
    """Counts answered requests. Called on the event loop for each request: it must return in microseconds."""

    def observe(self, family: str, version: str, variant: str, status: int, seconds: float) -> None:
        """Count one answer; family and version are empty where the request named none that exists."""
        ...


class StateStore(EventLog, Protocol):
    """Keeps what the control plane must not forget. Blocking; safe to call from several threads; does not retry."""

    def read(self) -> StoredState:
        """Return the stored state; an empty one at first.

        Raises:
            StoreError: The store cannot be read now.
        """
        ...

    def write(
        self, state: StoredState, *, expected_revision: int, entry: AuditEntry | None = None,
        events: Sequence[Event] = (),
    ) -> None:  # fmt: skip
        """Replace the state if its revision still is `expected_revision`, append `entry` and `events`: all or nothing.

        Raises:
            StaleRevisionError: Another writer was faster; read again.
            StoreError: The store cannot be written now (full, read-only, locked); nothing has changed.
        """
        ...

    def append(self, entry: AuditEntry) -> None:
        """Append to the audit log without touching the state.

        Raises:
            StoreError: The store cannot be written now.
        """
        ...

    def audit(
        self, *, family: str | None = None, operation_id: str | None = None, limit: int = 100
    ) -> list[AuditEntry]:
        """Return the newest audit entries first.

        Raises:
            StoreError: The store cannot be read now.
        """
        ...

    def take_lease(self, owner: str, *, ttl_s: float, now_s: float) -> str:
        """Take or renew the lease of the one who may change things, and return who holds it now.

        It is taken when it is free, expired at `now_s`, or held by `owner` already. A clock that jumps back never
        extends another's lease beyond `ttl_s` from `now_s`.

        Raises:
            StoreError: The store cannot be written now.
        """
        ...


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What a bundle may use in its trial: seconds, and bytes of memory beyond what the empty worker uses."""

    timeout_s: float
    memory_bytes: int


class Trial(Protocol):
    """Loads a bundle for the first time, in a process that may be killed."""

    async def run(self, family: str, version: str, limits: TrialLimits) -> VersionRef:
        """Fetch, verify, load, warm up and check a version, and return what was tried.

        Raises:
            TrialError: The bundle was refused, hung, crashed or took too much memory; the message says which.
        """
        ...


class ControlPlane(RolloutPlane, EventPlane, ReplayPlane, Protocol):
    """Changes versions. The Reconciler is behind it; it may be away for hours without any harm to predictions."""

    async def reload(
        self, family: str, *, version: str | None, force: bool, actor: str, reason: str, wait_s: float,
        immediate: bool = False,
    ) -> Operation:  # fmt: skip
        """Change to `version`, or to what the source calls current, and wait up to `wait_s` for the end.

        A reload of the same version that is under way already is joined. `Outcome.UNCHANGED` when it is active. By a
        plan it begins a rollout and waits for nothing (`is_rollout`); `immediate` overrules that and ends a rollout.

        Raises:
            UnknownFamilyError: No such family.
            UnknownVersionError: The source has no such version.
            PinnedError: The configuration pins another version.
            SourceError: The source cannot be read now.
            UnavailableError: The control plane cannot be reached, or another change is under way.
        """
        ...

    async def rollback(self, family: str, *, to: str | None, actor: str, wait_s: float) -> Operation:
        """Go back to `to` or the last good version, and end a rollout; one commit where it is resident. As `reload`."""
        ...

    async def look(self, family: str) -> None:
        """Have the source of a family looked at now, by the rules that polling has; return at once.

        Raises:
            UnknownFamilyError: No such family.
            UnavailableError: The control plane cannot be reached.
        """
        ...

    async def demand(
        self, family: str, *, model: str | None, version: str | None, wait_s: float, renew: bool = False
    ) -> VersionRef:
        """Have a version that a request names loaded everywhere, and return it; it may be let go of when not used.

        `model` None is the family's own; `version` None is what the selector chooses of `model`, as remembered for a
        while unless `renew`. A demand for the same is joined; one whose caller has gone goes on.

        Raises:
            UnknownFamilyError: No such family.
            InvalidInputError: It cannot be the name of a model or version.
            NotOfferedError: There is no such model or version, or the family does not serve it.
            RefusedVersionError: Its bundle was refused.
            UnavailableError: It is not there within `wait_s`, or cannot be had now.
        """
        ...

    async def operation(self, operation_id: str) -> Operation | None:
        """Return one operation, or None when it is not known."""
        ...

    async def versions(self, family: str) -> list[KnownVersion]:
        """List what the source of a family offers, newest first."""
        ...

    async def audit(self, *, family: str | None, limit: int) -> list[AuditEntry]:
        """Return the newest audit entries first."""
        ...


class Fleet(Protocol):
    """The model replicas, over all pools of a family. Calls return when replicas have been told, not when done."""

    async def statuses(self, family: str) -> list[ReplicaStatus]:
        """Ask every routable replica; one that does not answer is left out."""
        ...

    async def routable(self, family: str) -> int:
        """Return how many replicas Serve says are running or starting."""
        ...

    async def prepare(self, family: str, refs: Sequence[VersionRef], *, unloading: Collection[str] = ()) -> None:
        """Have every replica load these beside what it serves, the most important first.

        Replicas in `unloading` (their ids) may let go of less important ones first for one that does not fit.
        """
        ...

    async def load(self, family: str, ref: VersionRef) -> None:
        """Have every replica load a version that is not to be held; the least used of its kind gives way to it."""
        ...

    async def evict(self, family: str, ref: VersionRef) -> None:
        """Have every replica let go of a candidate that was given up, unless it is one of those to be held."""
        ...

    async def hold(self, family: str, refs: Sequence[VersionRef]) -> None:
        """Tell every replica what it must keep; the rest it may let go of, and loads of anything else are cancelled."""
        ...


class Gateways(Protocol):
    """The gateways, all of them."""

    async def refresh(self, family: str) -> None:
        """Have every gateway ask the replicas of a family what they hold, so that a commit need not."""
        ...

    async def push(self, table: RoutingTable) -> int:
        """Give every gateway the table; return how many took it. One that missed it pulls it within a second."""
        ...

    async def evidence(self) -> list[GatewayReport]:
        """Ask every gateway what it has counted since it began; one that does not answer is left out."""
        ...


class DemandResult(StrEnum):
    """How a demand for a version ended; `RESIDENT`: nothing was to be loaded."""

    LOADED = "loaded"
    RESIDENT = "resident"
    UNKNOWN = "unknown"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"


class ReloadMeter(Protocol):
    """Counts what the control plane does."""

    def observe_stage(self, family: str, phase: Phase, seconds: float) -> None:
        """A phase of a change ended well."""
        ...

    def observe_commit(self, family: str, seconds: float) -> None:
        """A commit was saved and every gateway told."""
        ...

    def count_reload(self, family: str, outcome: Outcome) -> None:
        """An operation ended."""
        ...

    def count_source_error(self, family: str) -> None:
        """A source could not be read."""
        ...


class DemandMeter(Protocol):
    """Counts the versions that requests name and that had to be asked for."""

    def observe_demand(self, family: str, result: DemandResult, seconds: float) -> None:
        """A demand ended."""
        ...
