"""The split of the gateways while a rollout is under way: a function of its state alone."""

from serve_app.domain.rollout_plan import Strategy
from serve_app.domain.rollout_state import PauseReason, Phase, RolloutState
from serve_app.domain.traffic import N_BUCKETS, Segment, Shadow, Split, Variant, buckets_of


def split_of(state: RolloutState) -> Split | None:
    """Return how the gateways share out the requests; None: as if there were no rollout, to the active version."""
    match state.phase:
        case Phase.PENDING | Phase.SUCCEEDED | Phase.ABORTED | Phase.FAILED:
            return None
        case Phase.WATCHING:
            return _split_while_watched(state)
        case Phase.ABORTING:
            return _split(state)
        case Phase.PAUSED if state.pause_reason is PauseReason.CAP:
            return _split(state)
        case Phase.PAUSED | Phase.PROMOTING:
            return _split_while(state, state.came_from)
        case _:
            return _split_while(state, state.phase)


def _split_while(state: RolloutState, phase: Phase | None) -> Split | None:
    match phase:
        case Phase.SHADOW:
            return _split(state, is_shadow=True)
        case Phase.SEGMENT:
            return _split(state, is_candidate_named=True)
        case Phase.STEP | Phase.EXPERIMENT:
            return _split(state, is_candidate_named=True, weight=state.plan.steps[state.step].buckets)
        case _:
            return None


def _split_while_watched(state: RolloutState) -> Split | None:
    """Hold some requests back for the former version, but none that the last step gave to the new one already."""
    plan = state.plan
    reached = plan.steps[state.step].buckets if plan.steps else 0
    weight = max(N_BUCKETS - buckets_of(plan.holdback), reached)
    if not plan.is_watched or weight == N_BUCKETS:
        return None
    return _split(state, is_candidate_named=True, weight=weight)


def _split(state: RolloutState, *, is_candidate_named: bool = False, weight: int = 0, is_shadow: bool = False) -> Split:
    plan = state.plan
    ours, theirs = ("a", "b") if plan.strategy is Strategy.AB else ("stable", "canary")
    variants = [Variant(name=ours, version=state.stable.version, pool=plan.stable_pool, weight=N_BUCKETS - weight)]
    segments = []
    if is_candidate_named:
        variants.append(Variant(name=theirs, version=state.candidate.version, pool=plan.pool, weight=weight))
        if plan.segment_first is not None:
            segments.append(Segment(variant=theirs, entities=plan.segment_first.entities))
    shadow = None
    if is_shadow and plan.shadow_first is not None:
        shadow = Shadow(version=state.candidate.version, pool=plan.pool, sample=plan.shadow_first.buckets)
    return Split(
        variants=tuple(variants),
        salt=state.salt,
        segments=tuple(segments),
        targeting=plan.targeting,
        shadow=shadow,
        groups=plan.groups if is_candidate_named else (),
    )
