"""How the answers of one version differ from those that clients got: of a shadow, or of a replay of recorded requests.

Gateways report a shadow each for itself. What they have told is kept by gateway, so that one that is away still counts
with what it last told, and is merged when somebody asks.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict

from serve_app.domain.differences import DifferenceHistogram
from serve_app.domain.errors import ServeAppError
from serve_app.domain.evidence import Measurement
from serve_app.domain.exposure import MAX_WORST, SHADOW, GatewayReport, ShadowReport, WorstInput
from serve_app.domain.histogram import LatencyHistogram
from serve_app.domain.statistics import Moments

KEPT_SALTS: Final = 3
"""Of a family: shadows of which the gateways' counts are kept, the newest ones."""
KEPT_GATEWAYS: Final = 64
"""Of one shadow: a gateway that restarts is another one, and of so many the newest are kept."""


class NoShadowError(ServeAppError):
    """No gateway has told of a shadow of the family's last rollout."""

    def __init__(self, family: str) -> None:
        self.family = family
        super().__init__(f"the last rollout of family {family!r} has had no shadow that a gateway has told of")

    def __reduce__(self) -> tuple[type["NoShadowError"], tuple[str]]:
        return type(self), (self.family,)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Differences(_Document):
    """How far apart numbers were: over pairs of answers, the mean absolute difference of their outputs.

    Quantiles are bounds that are at most 9 % above those of the sample. All are None where no pair was of numbers.
    """

    count: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    largest: float | None = None


class Latencies(_Document):
    """Latencies of one side in seconds; None without any."""

    count: int = 0
    mean_s: float | None = None
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None


class DiffReport(_Document):
    """How the answers of `version` differ from the live ones.

    `copied` requests were asked of it, of which `failed` got an error or nothing in time and `compared` were compared;
    `disagreed` of these differed by more than the family allows, and `agreement` is the share of the others. `dropped`
    were meant for it and not sent, for live requests came first. `live` is the latency of the answers that clients got
    and that were compared, `latency` that of `version`. `worst` is empty unless the family may keep inputs.
    """

    version: str
    copied: int
    failed: int
    dropped: int
    compared: int
    disagreed: int
    agreement: float | None
    differences: Differences
    live: Latencies
    latency: Latencies
    worst: tuple[WorstInput, ...] = ()


class GatewayShadow(_Document):
    """What one gateway told of a shadow, and when (seconds since the epoch)."""

    report: ShadowReport
    copies: Measurement
    at_s: float


class ShadowLedger(_Document):
    """What gateways have told of one shadow, by gateway. `last` are those that answered when they were last asked."""

    family: str
    salt: str
    gateways: dict[str, GatewayShadow] = {}
    last: tuple[str, ...] = ()

    @property
    def at_s(self) -> float:
        """When any of them last told something new."""
        return max((gateway.at_s for gateway in self.gateways.values()), default=0.0)


class ShadowLedgers(_Document):
    """The ledgers of all families."""

    ledgers: tuple[ShadowLedger, ...] = ()

    def of(self, family: str, salt: str) -> ShadowLedger | None:
        """Return the ledger of a shadow, None where no gateway has told of it."""
        return next((one for one in self.ledgers if (one.family, one.salt) == (family, salt)), None)

    def with_told(self, reports: Sequence[GatewayReport], *, now_s: float) -> "ShadowLedgers":
        """Return them with what gateways tell now; of one that does not tell, what it told before stays."""
        ledgers = {(one.family, one.salt): one for one in self.ledgers}
        answered = {report.gateway for report in reports}
        for report in reports:
            for family, by_salt in report.shadows.items():
                for salt, shadow in by_salt.items():
                    copies = report.families.get(family, {}).get(salt, {}).get(SHADOW, Measurement())
                    known = ledgers.get((family, salt), ShadowLedger(family=family, salt=salt))
                    ledgers[family, salt] = _with(known, report.gateway, shadow, copies, now_s)
        told = (_answered(one, answered) if reports else one for one in ledgers.values())
        return ShadowLedgers(ledgers=tuple(_newest(told)))


class ShadowDiff(_Document):
    """What is told of a shadow: the merged report, and how many gateways it is of.

    `away` of them did not answer just now; they count with what they told last.
    """

    family: str
    salt: str
    live_version: str
    gateways: int
    away: int
    at_s: float
    diff: DiffReport


def shadow_diff(ledger: ShadowLedger, *, live_version: str) -> ShadowDiff:
    """Return what is told of a shadow."""
    told = ledger.gateways
    return ShadowDiff(
        family=ledger.family,
        salt=ledger.salt,
        live_version=live_version,
        gateways=len(told),
        away=len(told.keys() - set(ledger.last)),
        at_s=ledger.at_s,
        diff=diff_of([(gateway.report, gateway.copies) for gateway in told.values()]),
    )


def diff_of(told: Sequence[tuple[ShadowReport, Measurement]]) -> DiffReport:
    """Add up what gateways tell of one shadow; at least one of them."""
    reports = [report for report, _ in told]
    measured, differences, live_s = Measurement(), Moments(), Moments()
    spread, live = DifferenceHistogram(), LatencyHistogram()
    for report, copies in told:
        measured = measured.merged(copies)
        differences, live_s = differences.merged(report.differences), live_s.merged(report.live_s)
        spread, live = spread.merged(report.spread), live.merged(report.live)
    compared = measured.compared
    return DiffReport(
        version=reports[-1].version,
        copied=sum(report.copied for report in reports),
        failed=sum(report.failed for report in reports),
        dropped=sum(report.dropped for report in reports),
        compared=compared,
        disagreed=measured.disagreed,
        agreement=1 - measured.disagreed / compared if compared else None,
        differences=_differences(differences, spread),
        live=_latencies(live_s, live),
        latency=_latencies(measured.latency_s, measured.latency),
        worst=_worst(report.worst for report in reports),
    )


def _with(ledger: ShadowLedger, gateway: str, report: ShadowReport, copies: Measurement, now_s: float) -> ShadowLedger:
    before = ledger.gateways.get(gateway)
    if before is not None and (before.report, before.copies) == (report, copies):
        return ledger
    gateways = {**ledger.gateways, gateway: GatewayShadow(report=report, copies=copies, at_s=now_s)}
    newest = sorted(gateways, key=lambda name: gateways[name].at_s)[-KEPT_GATEWAYS:]
    return ledger.model_copy(update={"gateways": {name: gateways[name] for name in newest}})


def _answered(ledger: ShadowLedger, gateways: Collection[str]) -> ShadowLedger:
    last = tuple(name for name in ledger.gateways if name in gateways)
    return ledger if last == ledger.last else ledger.model_copy(update={"last": last})


def _newest(ledgers: Iterable[ShadowLedger]) -> list[ShadowLedger]:
    """Return the newest of each family."""
    kept: list[ShadowLedger] = []
    for ledger in sorted(ledgers, key=lambda one: one.at_s, reverse=True):
        if sum(one.family == ledger.family for one in kept) < KEPT_SALTS:
            kept.append(ledger)
    return kept


def _differences(moments: Moments, spread: DifferenceHistogram) -> Differences:
    return Differences(
        count=moments.count,
        mean=moments.mean if moments.count else None,
        p50=spread.quantile(0.5),
        p90=spread.quantile(0.9),
        p99=spread.quantile(0.99),
        largest=spread.quantile(1.0),
    )


def _latencies(moments: Moments, histogram: LatencyHistogram) -> Latencies:
    return Latencies(
        count=moments.count,
        mean_s=moments.mean if moments.count else None,
        p50_s=histogram.quantile_s(0.5),
        p95_s=histogram.quantile_s(0.95),
        p99_s=histogram.quantile_s(0.99),
    )


def _worst(kept: Iterable[Sequence[WorstInput]]) -> tuple[WorstInput, ...]:
    every = [one for some in kept for one in some]
    return tuple(sorted(every, key=lambda one: -one.difference)[:MAX_WORST])
