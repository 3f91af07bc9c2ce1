"""What a gateway reports of its splits: counts since its process began, and how a shadow fared.

All counts only grow while the process of a gateway lives, so who pulls them takes differences by `gateway`. A salt that
the table no longer names is reported for a minute more, for answers that were under way, and is then forgotten.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from serve_app.domain.differences import DifferenceHistogram
from serve_app.domain.evidence import Measurement
from serve_app.domain.histogram import LatencyHistogram
from serve_app.domain.statistics import Moments

SHADOW = "shadow"
"""Name under which the copies for a shadow are measured, beside the variants."""
FORGET_AFTER_S = 60.0
MAX_WORST = 20
Count = Annotated[int, Field(ge=0)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WorstInput(_Document):
    """Rows that live and shadow answered most differently; `difference` is the largest of any output."""

    difference: float
    rows: tuple[tuple[float, ...], ...]
    live: tuple[tuple[float | str, ...], ...]
    shadow: tuple[tuple[float | str, ...], ...]


class ShadowReport(_Document):
    """How the copies of one shadow fared. Their latencies and disagreements are in its `Measurement`.

    `copied` went to the shadow, `dropped` were sampled but not sent, for the live requests had to come first; `failed`
    got no answer in time or an error. `differences` has the mean absolute difference of each pair of answers whose
    outputs are numbers, `live_s` the latencies of the live answers that were copied, in seconds; `spread` and `live`
    are the histograms of both. `worst` is empty unless the family may keep inputs.
    """

    version: str
    copied: Count = 0
    dropped: Count = 0
    failed: Count = 0
    differences: Moments = Moments()
    spread: DifferenceHistogram = DifferenceHistogram()
    live_s: Moments = Moments()
    live: LatencyHistogram = LatencyHistogram()
    worst: tuple[WorstInput, ...] = ()


class Exposure(_Document):
    """What a split has let clients see of all its variants but the default.

    `requests` counts their answers, whatever chose the variant. `entities` counts different targeting keys, by a bitmap
    of 2^20 places (linear counting): 1 % off at a million keys, and never above 15 millions. Each gateway counts for
    itself: a key that two have seen is two in their sum, so a cap is reached early, never late.
    """

    requests: Count = 0
    entities: Count = 0


class GatewayReport(_Document):
    """What one gateway has counted since its process began, by family, by the salt of the split, then by variant.

    `families` has what chance assigned: only this may be compared. `segments` has what the named entities of a segment
    got, which nobody drew; it says how a variant fares, not how it compares. Requests that forced or named a version,
    and those that fell back to another, are in neither. `groups` has what chance assigned once more, by group and then
    by variant, without histograms; beside it, as groups `segment` and `forced`, what was named and forced. `exposures`
    and `shadows` are by family and salt.
    """

    gateway: str
    families: dict[str, dict[str, dict[str, Measurement]]] = {}
    segments: dict[str, dict[str, dict[str, Measurement]]] = {}
    groups: dict[str, dict[str, dict[str, dict[str, Measurement]]]] = {}
    exposures: dict[str, dict[str, Exposure]] = {}
    shadows: dict[str, dict[str, ShadowReport]] = {}

    @property
    def exposed_entities(self) -> dict[str, dict[str, int]]:
        """Different targeting keys that were not answered by the default variant, by family and salt."""
        return {
            family: {salt: exposure.entities for salt, exposure in by_salt.items()}
            for family, by_salt in self.exposures.items()
        }
