"""From the counts that gateways report to one window of evidence: every count is taken once, or not at all.

Gateways count from the start of their process on. What is new since the last look is the difference, gateway by
gateway. One that has died takes what it counted since then with it; one that came back has another id. The window is
saved together with the counts it was taken up to.

What is compared depends on the phase: the copies of the shadow with the stable variant's answers, what the named
entities got with what the others got, from the first step on what chance assigned, and the same anew while a promotion
is watched. These are different things, so each has a tally of its own and a part of alpha (see `rollout_plan`); only
the comparisons of predictions, which nobody but the shadow makes, are carried along.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from serve_app.domain.analysis import Analysis, Tally
from serve_app.domain.evidence import Evidence, Measurement
from serve_app.domain.exposure import SHADOW, Exposure, GatewayReport
from serve_app.domain.groups import grouped
from serve_app.domain.looks import Looks, look_of
from serve_app.domain.rollout_plan import Strategy
from serve_app.domain.rollout_record import RolloutRecord, SeenGateway, weight_of
from serve_app.domain.rollout_split import split_of
from serve_app.domain.rollout_state import Phase, RolloutState
from serve_app.domain.traffic import N_BUCKETS

SETTLING_S = 2.0
"""From the moment that a split holds until no gateway can follow another: one that missed it asks within a second."""
FORGET_AFTER_S = 600.0
_SEGMENT = "segment:"
_GROUP = "group:"
_EXPOSED = "exposed:requests"
_EMPTY = Measurement()


@dataclass(frozen=True, slots=True)
class Window:
    """What is new: the evidence, the candidate's further answers, the entities so far, and what is seen by now.

    `groups` has parts of the evidence, and what nobody drew, while chance assigns.
    """

    evidence: Evidence
    groups: dict[str, Evidence]
    exposed_requests: int
    exposed_entities: int
    seen: dict[str, SeenGateway]
    weight: int | None

    @property
    def is_empty(self) -> bool:
        """True when nobody answered anything that can be compared."""
        sides = self.evidence.stable, self.evidence.canary
        has_labels = any(moments.count for side in sides for moments in side.means.values())
        return not (has_labels or sides[0].requests or sides[1].requests or sides[1].compared)


def window_of(
    record: RolloutRecord, reports: Sequence[GatewayReport], *, effective_at_s: float, now_s: float
) -> Window:
    """Take what is new in the reports. `effective_at_s` is when the gateways took up the split that holds now."""
    state = record.state
    added: dict[str, Measurement] = {}
    told = {report.gateway for report in reports}
    seen = {name: one if name in told else _aged(one, now_s) for name, one in record.seen.items()}
    for report in reports:
        counts, entities = _counts_of(report, state)
        before = seen.get(report.gateway, SeenGateway())
        for name, count in {} if before.is_forgotten else _since(before.counts, counts).items():
            added[name] = added.get(name, _EMPTY).merged(count)
        seen[report.gateway] = SeenGateway(
            counts=counts, exposed_entities=max(entities, before.exposed_entities), at_s=now_s
        )
    weight = weight_of(state) if now_s >= effective_at_s + SETTLING_S else None
    ours, theirs = _sides(state)
    return Window(
        evidence=Evidence(
            stable=added.get(ours, _EMPTY),
            canary=added.get(theirs, _EMPTY),
            canary_share=_share(record.weight, weight),
        ),
        groups=_groups(added, ours, theirs) if kind_of(state) in _DRAWS else {},
        exposed_requests=added.get(_EXPOSED, _EMPTY).requests,
        exposed_entities=sum(gateway.exposed_entities for gateway in seen.values()),
        seen=seen,
        weight=weight,
    )


def moved_on(record: RolloutRecord, state: RolloutState) -> RolloutRecord:
    """Return the record with its next state: with a new tally where another kind of evidence begins."""
    if state.retries != record.state.retries:
        return RolloutRecord(state=state, follows=record.follows)
    before, after = kind_of(record.state), kind_of(state)
    tally, groups = record.tally, record.groups
    if after is not None and before is not after:
        canary = tally.canary
        tally, groups = Tally(canary=Measurement(compared=canary.compared, disagreed=canary.disagreed)), {}
    return record.model_copy(update={"state": state, "tally": tally, "groups": groups})


def looked_at(
    record: RolloutRecord, window: Window, tally: Tally, analysis: Analysis | None, *, now_s: float
) -> RolloutRecord:
    """Return the record after a look: what was tallied and what that said, for now and over time."""
    kind, looks = kind_of(record.state), record.looks
    if kind is not None and analysis is not None and tally.n_windows != record.tally.n_windows:
        looks = looks | {kind: looks.get(kind, Looks()).plus(look_of(analysis, tally, at_s=now_s))}
    update = {
        "tally": tally,
        "seen": window.seen,
        "weight": window.weight,
        "analysis": analysis,
        "groups": grouped(record.groups, window.groups),
        "looks": looks,
    }
    return record.model_copy(update=update)


def kind_of(state: RolloutState) -> Phase | None:
    """Return what kind of evidence a state asks for, by the first phase that does; None: for none."""
    if state.phase is Phase.WATCHING and split_of(state) is None:  # nobody is held back
        return None
    return _KINDS.get(state.came_from if state.phase is Phase.PAUSED and state.came_from else state.phase)


_KINDS: Mapping[Phase, Phase] = {
    Phase.SHADOW: Phase.SHADOW,
    Phase.SEGMENT: Phase.SEGMENT,
    Phase.STEP: Phase.STEP,
    Phase.EXPERIMENT: Phase.STEP,
    Phase.WATCHING: Phase.WATCHING,
}


_DRAWS = frozenset({Phase.STEP, Phase.WATCHING})
"""What chance assigns."""


def _groups(added: Mapping[str, Measurement], ours: str, theirs: str) -> dict[str, Evidence]:
    """Return both sides of every group that got anything."""
    groups: dict[str, Evidence] = {}
    for name in added:
        if name.startswith(_GROUP) and (group := name.split(":")[1]) not in groups:
            stable, canary = (added.get(f"{_GROUP}{group}:{side}", _EMPTY) for side in (ours, theirs))
            if stable.requests or canary.requests:
                groups[group] = Evidence(stable=stable, canary=canary)
    return groups


def _sides(state: RolloutState) -> tuple[str, str]:
    """Name the counts of both sides."""
    ours, theirs = ("a", "b") if state.plan.strategy is Strategy.AB else ("stable", "canary")
    match kind_of(state):
        case Phase.SHADOW:
            return ours, SHADOW
        case Phase.SEGMENT:
            return ours, _SEGMENT + theirs
        case _:
            return ours, theirs


def _counts_of(report: GatewayReport, state: RolloutState) -> tuple[dict[str, Measurement], int]:
    """Return all counts of a gateway for this attempt, and the entities that it let see the candidate."""
    family, salt = state.family, state.salt
    counts = dict(report.families.get(family, {}).get(salt, {}))
    for name, measurement in report.segments.get(family, {}).get(salt, {}).items():
        counts[_SEGMENT + name] = measurement
    for group, by_variant in report.groups.get(family, {}).get(salt, {}).items():
        for name, measurement in by_variant.items():
            counts[f"{_GROUP}{group}:{name}"] = measurement
    exposure = report.exposures.get(family, {}).get(salt, Exposure())
    counts[_EXPOSED] = Measurement(requests=exposure.requests)
    return counts, exposure.entities


def _since(before: Mapping[str, Measurement], now: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """Return the differences; nothing at all where a count has fallen, for then it is not known what is new."""
    try:
        return {name: count.without(before.get(name, _EMPTY)) for name, count in now.items()}
    except ValidationError:
        return {}


def _share(before: int | None, now: int | None) -> float | None:
    """Return the candidate's share of the assignments where it stood for the whole window and both sides get some."""
    return now / N_BUCKETS if now is not None and before == now and 0 < now < N_BUCKETS else None


def _aged(gateway: SeenGateway, now_s: float) -> SeenGateway:
    if gateway.is_forgotten or now_s < gateway.at_s + FORGET_AFTER_S:
        return gateway
    return gateway.model_copy(update={"counts": {}, "is_forgotten": True})
