"""The change from one version to another: its phases, what is stored of it, and the transitions that are allowed.

    (none) ─start─▶ TRIAL ─tried─▶ PREPARE ─covered─▶ RELEASE ─released─▶ (none)
                      └─────abort─────┴──▶ (none)

Commit is the one write that takes PREPARE to RELEASE: it makes the candidate active, keeps the former as last good
and raises the generation. So whatever is interrupted is resumed by rule: before the commit it is tried and prepared
again (both may be repeated), after it only the release is left to do.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, JsonValue

from serve_app.domain.errors import ServeAppError
from serve_app.domain.retraining import RetrainStatus
from serve_app.domain.rollout_record import RolloutRecord
from serve_app.domain.rollout_split import split_of
from serve_app.domain.source_status import SourceStatus
from serve_app.domain.traffic import Split
from serve_app.domain.version_ref import VersionRef as VersionRef


class Phase(StrEnum):
    """How far a change has come."""

    TRIAL = "trial"
    PREPARE = "prepare"
    RELEASE = "release"


class Outcome(StrEnum):
    """How an operation ended, or that it has not."""

    RUNNING = "running"
    RELOADED = "reloaded"
    UNCHANGED = "unchanged"
    FAILED = "failed"


class IllegalTransitionError(ServeAppError):
    """A change cannot go from the phase it is in to the one that was asked for."""

    def __init__(self, found: Phase | None, action: str) -> None:
        self.found = found
        self.action = action
        super().__init__(f"{action}: expected {_EXPECTED[action]}, found {found.value if found else 'no change'}")

    def __reduce__(self) -> tuple[type["IllegalTransitionError"], tuple[Phase | None, str]]:
        return type(self), (self.found, self.action)


_EXPECTED = {
    "start": "no change under way",
    "tried": "the phase trial",
    "commit": "the phase prepare",
    "abort": "the phase trial or prepare",
    "released": "the phase release",
}


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Change(_Document):
    """A change under way. `actor` asked for it, `reason` says why; times are seconds since the epoch.

    `follows` is true when it goes to what the source calls current, false when somebody named a version.
    """

    operation_id: str
    to: VersionRef
    phase: Phase
    actor: str
    reason: str
    started_at_s: float
    deadline_s: float
    follows: bool = False


class FailedBundle(_Document):
    """A bundle that is not tried again unless forced.

    `in_trial` is true where it could not be loaded or checked, which other settings may change; false where what it
    answered was found bad.
    """

    version: str
    reason: str
    at_s: float
    in_trial: bool = False


class FamilyRecord(_Document):
    """What is stored of a family. `failed` maps digests to what was wrong with them, the newest last.

    `followed` is the digest of what the source called current when it was last taken up. Polling acts when the source
    changes its mind, not when somebody chose another version by hand. `rollout` is the last one, under way or over.
    `tried_under` tells the settings that candidates are tried under from others.
    """

    active: VersionRef | None = None
    last_good: VersionRef | None = None
    change: Change | None = None
    failed: dict[str, FailedBundle] = {}
    followed: str | None = None
    rollout: RolloutRecord | None = None
    tried_under: str = ""


class StoredState(_Document):
    """All that the control plane must not forget. `revision` counts writes, `generation` counts commits.

    `effective_at_s` is when the gateways take up this generation, in seconds since the epoch.
    """

    revision: int = 0
    generation: int = 0
    effective_at_s: float = 0.0
    families: dict[str, FamilyRecord] = {}

    def family(self, name: str) -> FamilyRecord:
        """Return the record of a family; an empty one where nothing is stored yet."""
        return self.families.get(name, FamilyRecord())

    def with_family(
        self, name: str, record: FamilyRecord, *, committed: bool = False, effective_at_s: float = 0.0
    ) -> "StoredState":
        """Return the state with one record replaced, one revision later, and one generation later after a commit."""
        return StoredState(
            revision=self.revision + 1,
            generation=self.generation + committed,
            effective_at_s=effective_at_s if committed else self.effective_at_s,
            families={**self.families, name: record},
        )


class AuditEntry(_Document):
    """One line of the audit log: who changed what, when, from where to where, why, and how it ended."""

    at_s: float
    operation_id: str
    family: str
    actor: str
    action: str
    from_version: str | None
    to_version: str | None
    reason: str
    outcome: Outcome
    detail: str = ""
    generation: int = 0


class Operation(_Document):
    """What is told of one reload or rollback. `phase` is None once it has ended; `detail` says why it failed.

    `is_rollout` is true for one that goes by a rollout, of which `/admin/rollouts` tells more.
    """

    operation_id: str
    family: str
    outcome: Outcome
    phase: Phase | None = None
    from_version: str | None = None
    to_version: str | None = None
    detail: str = ""
    started_at_s: float = 0.0
    ended_at_s: float | None = None
    generation: int = 0
    is_rollout: bool = False


class KnownVersion(_Document):
    """A version that a source offers. `is_current` is the source's word, `is_active` what answers by default."""

    version: str
    location: str
    modified_at_s: float
    size_bytes: int
    is_current: bool = False
    is_active: bool = False
    is_resident: bool = False
    failed_reason: str | None = None
    metrics: dict[str, JsonValue] = {}
    training: dict[str, JsonValue] = {}


class Route(_Document):
    """Where a family's requests go: the version, and the one that stays loaded for a rollback.

    `follows` is true when it is what the source called current, false when somebody chose it by name or rolled back.
    """

    version: str
    digest: str
    last_good: str | None = None
    follows: bool = False


class RoutingTable(_Document):
    """What the gateways follow. A table with a lower generation than the one in use is ignored.

    `troubles` says for a family why it has not what it should follow: the source is away, the candidate was refused.
    `sources` says how the source of each family is, `retraining` how its trainings are. `splits` says how the requests
    of a family are shared out; one that has none is answered by its route alone. `effective_at_s` (seconds since the
    epoch) is when all gateways are to take it up at once, so that no client sees the new generation at one and the old
    one at another after that.
    """

    generation: int = 0
    effective_at_s: float = 0.0
    routes: dict[str, Route] = {}
    troubles: dict[str, str] = {}
    sources: dict[str, SourceStatus] = {}
    retraining: dict[str, RetrainStatus] = {}
    splits: dict[str, Split] = {}


KEPT_FAILURES = 50


def start(record: FamilyRecord, change: Change) -> FamilyRecord:
    """Begin a change with its trial. A failure of the same bundle is forgotten only when it is committed.

    Raises:
        IllegalTransitionError: A change is under way.
    """
    if record.change is not None:
        raise IllegalTransitionError(record.change.phase, "start")
    return record.model_copy(update={"change": change})


def tried(record: FamilyRecord) -> FamilyRecord:
    """The trial passed: the replicas may prepare.

    Raises:
        IllegalTransitionError: No change is in its trial.
    """
    change = _in_phase(record, "tried", Phase.TRIAL)
    return record.model_copy(update={"change": change.model_copy(update={"phase": Phase.PREPARE})})


def commit(record: FamilyRecord) -> FamilyRecord:
    """All replicas are ready: make the candidate active. Use with `StoredState.with_family(…, committed=True)`.

    Raises:
        IllegalTransitionError: No change is being prepared.
    """
    change = _in_phase(record, "commit", Phase.PREPARE)
    released = change.model_copy(update={"phase": Phase.RELEASE})
    followed = change.to.digest if change.follows else record.followed
    return made_active(record, change.to).model_copy(update={"change": released, "followed": followed})


def made_active(record: FamilyRecord, ref: VersionRef) -> FamilyRecord:
    """Let a version answer by default; the former one is the last good one now, and an old failure is forgotten."""
    failed = {
        digest: failure
        for digest, failure in record.failed.items()
        if VersionRef(version=failure.version, digest=digest) != ref
    }
    last_good = record.active if record.active != ref else record.last_good
    return record.model_copy(update={"active": ref, "last_good": last_good, "failed": failed})


def is_news(record: FamilyRecord, ref: VersionRef) -> bool:
    """True when what the source calls current now is neither in use, nor was taken up before, nor has failed."""
    return ref != record.active and ref.digest != record.followed and ref.digest not in record.failed


def abort(record: FamilyRecord, *, reason: str, now_s: float, blame_bundle: bool) -> FamilyRecord:
    """Give a change up; what is active stays. `blame_bundle` remembers the digest, so that no loop retries it.

    Raises:
        IllegalTransitionError: Nothing is under way, or it is committed already.
    """
    change = _in_phase(record, "abort", Phase.TRIAL, Phase.PREPARE)
    blamed = distrust(record, change.to, reason=reason, now_s=now_s, in_trial=True) if blame_bundle else record
    return blamed.model_copy(update={"change": None})


def distrust(
    record: FamilyRecord, ref: VersionRef, *, reason: str, now_s: float, in_trial: bool = False
) -> FamilyRecord:
    """Remember a bundle as one not to be taken up again by itself: it failed, or was rolled back."""
    others = [(digest, failure) for digest, failure in record.failed.items() if digest != ref.digest]
    newest = (ref.digest, FailedBundle(version=ref.version, reason=reason, at_s=now_s, in_trial=in_trial))
    return record.model_copy(update={"failed": dict([*others, newest][-KEPT_FAILURES:])})


def released(record: FamilyRecord) -> FamilyRecord:
    """Old versions are let go of: the change is over.

    Raises:
        IllegalTransitionError: Nothing is committed and waiting for its release.
    """
    _in_phase(record, "released", Phase.RELEASE)
    return record.model_copy(update={"change": None})


def reconsider(record: FamilyRecord, settings: str) -> FamilyRecord:
    """Return the record without the bundles that failed their trials under other settings.

    What refused one may have been a permission or a limit that is another one now. The one that the source calls
    current is followed as if it were new; the others may be asked for again.
    """
    if record.tried_under == settings:
        return record
    kept = {digest: bundle for digest, bundle in record.failed.items() if not bundle.in_trial}
    is_news = record.followed in record.failed and record.followed not in kept
    followed = None if is_news else record.followed
    return record.model_copy(update={"tried_under": settings, "failed": kept, "followed": followed})


def table_of(state: StoredState) -> RoutingTable:
    """Return the routing table that a stored state stands for."""
    return RoutingTable(
        generation=state.generation,
        effective_at_s=state.effective_at_s,
        routes={
            name: Route(
                version=record.active.version,
                digest=record.active.digest,
                last_good=record.last_good.version if record.last_good else None,
                follows=record.active.digest == record.followed,
            )
            for name, record in state.families.items()
            if record.active is not None
        },
        splits={name: split for name, record in state.families.items() if (split := split_in(record)) is not None},
    )


def split_in(record: FamilyRecord) -> Split | None:
    """Return how the requests of a family are shared out; None: by its route alone."""
    return None if record.rollout is None else split_of(record.rollout.state)


def wanted_versions(record: FamilyRecord) -> tuple[VersionRef, ...]:
    """Return what every replica is to hold, most important first: active, candidate once tried, last good."""
    candidate = record.change.to if record.change is not None and record.change.phase is Phase.PREPARE else None
    on_trial = () if record.rollout is None else record.rollout.held
    refs = (record.active, candidate, *on_trial, record.last_good)
    return tuple(dict.fromkeys(ref for ref in refs if ref is not None))


def _in_phase(record: FamilyRecord, action: str, *phases: Phase) -> Change:
    if record.change is None or record.change.phase not in phases:
        raise IllegalTransitionError(record.change.phase if record.change else None, action)
    return record.change
