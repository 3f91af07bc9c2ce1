"""What is stored of a family's rollout beside its state: the evidence so far, and up to where it was counted.

All of it is saved in one write, so that after a crash nothing is counted twice and nothing forgotten that was judged.
"""

from pydantic import BaseModel, ConfigDict

from serve_app.domain.analysis import Analysis, Tally
from serve_app.domain.evidence import Measurement
from serve_app.domain.groups import GroupTally
from serve_app.domain.looks import Looks
from serve_app.domain.rollout_plan import NextPlan
from serve_app.domain.rollout_split import split_of
from serve_app.domain.rollout_state import Phase, RolloutState
from serve_app.domain.traffic import N_BUCKETS, Split
from serve_app.domain.version_ref import VersionRef


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SeenGateway(_Document):
    """The counts of one gateway that are in the tally already, by variant, and when it last told them.

    `is_forgotten`: it was silent for long and its counts were thrown away. Should it come back, its counts of then are
    taken as seen, so that nothing is counted twice.
    """

    counts: dict[str, Measurement] = {}
    exposed_entities: int = 0
    at_s: float = 0.0
    is_forgotten: bool = False


class RolloutRecord(_Document):
    """All that is stored of the last rollout of a family.

    `follows` is true when the candidate is what the source called current. `is_tried` is true once the candidate has
    passed its trial, so that replicas may load it. `seen` has the gateways by their ids. `weight` is the candidate's
    weight (buckets) that stood when the counts were last pulled, None while gateways were changing over. `is_released`
    is true when the replicas have been told after the end. `looks` has what the analysis said over time, by the kind of
    evidence that was looked at (see `evidence_window`), and `groups` parts of the evidence that are shown apart.
    """

    state: RolloutState
    follows: bool = False
    is_tried: bool = False
    tally: Tally = Tally()
    seen: dict[str, SeenGateway] = {}
    weight: int | None = None
    analysis: Analysis | None = None
    is_released: bool = False
    looks: dict[Phase, Looks] = {}
    groups: dict[str, GroupTally] = {}

    @property
    def is_under_way(self) -> bool:
        """True until the rollout is over."""
        return not self.state.phase.is_over

    @property
    def held(self) -> tuple[VersionRef, ...]:
        """What replicas hold for the rollout: both sides while it runs, the candidate only once it has been tried."""
        if not self.is_under_way:
            return ()
        return (self.state.stable, self.state.candidate) if self.is_tried else (self.state.stable,)


class RolloutReport(_Document):
    """What is told of a rollout: its state, the split that the gateways follow, the last analysis.

    `weight` is the candidate's share of the traffic in percent. `next_plan` is what the family's next rollout goes by.
    """

    family: str
    state: RolloutState
    split: Split | None = None
    weight: float = 0.0
    analysis: Analysis | None = None
    next_plan: NextPlan | None = None


def report_of(record: RolloutRecord) -> RolloutReport:
    """Return what is told of a rollout."""
    state = record.state
    return RolloutReport(
        family=state.family,
        state=state,
        split=split_of(state),
        weight=100 * weight_of(state) / N_BUCKETS,
        analysis=record.analysis,
    )


def weight_of(state: RolloutState) -> int:
    """Return the candidate's share of all requests, in buckets of 0.01 %.

    Once it is promoted, that is all of them, but for those that are held back while it is watched.
    """
    split = split_of(state)
    if split is None:
        return N_BUCKETS if is_promoted(state) else 0
    return sum(variant.weight for variant in split.variants[1:])


def is_promoted(state: RolloutState) -> bool:
    """True when the candidate was made the active version, and that was not taken back."""
    came = [move.found for move in state.history if move.to is Phase.SUCCEEDED]
    return state.phase is Phase.WATCHING or (
        state.phase is Phase.SUCCEEDED and came[-1:] in ([Phase.PROMOTING], [Phase.WATCHING])
    )
