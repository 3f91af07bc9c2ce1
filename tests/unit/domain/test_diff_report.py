import pickle

import numpy as np
import pytest

from serve_app.domain.diff_report import (
    KEPT_GATEWAYS,
    KEPT_SALTS,
    NoShadowError,
    ShadowDiff,
    ShadowLedgers,
    diff_of,
    shadow_diff,
)
from serve_app.domain.exposure import MAX_WORST, SHADOW, GatewayReport, ShadowReport
from serve_app.usecases.compare_answers import Comparison, Pair, count_compared
from serve_app.usecases.count_evidence import ShadowTally, VariantTally

FAMILY = "iris"


def counted(*differences: float, dropped: int = 0, failed: int = 0) -> tuple[ShadowTally, VariantTally]:
    """Return what a gateway counts of copies of rows [d] that live answered with 0 and the shadow with d."""
    tally, copies = ShadowTally("v2"), VariantTally()
    tally.dropped, tally.failed, tally.copied = dropped, failed, failed + len(differences)
    for difference in differences:
        tally.live.count(200, 0.010)
        copies.count(200, 0.020)
        pair = Pair([[difference]], np.array([[0.0]]), np.array([[difference]]))
        count_compared(tally, copies, pair, Comparison(keeps_inputs=True))
    return tally, copies


def report(gateway: str, *differences: float, salt: str = "salt-1", family: str = FAMILY, **more: int) -> GatewayReport:
    tally, copies = counted(*differences, **more)
    return GatewayReport(
        gateway=gateway,
        families={family: {salt: {SHADOW: copies.measured()}}},
        shadows={family: {salt: tally.reported()}},
    )


def told(ledgers: ShadowLedgers, salt: str = "salt-1") -> ShadowDiff:
    ledger = ledgers.of(FAMILY, salt)
    assert ledger is not None
    return shadow_diff(ledger, live_version="v1")


def test_reports_of_all_gateways_are_one() -> None:
    ledgers = ShadowLedgers().with_told([report("a", 0.0, 0.5, dropped=3), report("b", 2.0, failed=1)], now_s=10.0)
    found = told(ledgers)
    assert (found.gateways, found.away, found.at_s, found.live_version) == (2, 0, 10.0, "v1")
    diff = found.diff
    assert (diff.version, diff.copied, diff.failed, diff.dropped) == ("v2", 4, 1, 3)
    assert (diff.compared, diff.disagreed, diff.differences.count) == (3, 2, 3)
    assert diff.agreement == pytest.approx(1 / 3)
    assert diff.differences.mean == pytest.approx(2.5 / 3)
    assert diff.differences.p50 == pytest.approx(0.5)
    assert diff.differences.largest == pytest.approx(2.0)
    assert [one.difference for one in diff.worst] == [2.0, 0.5]
    assert (diff.live.count, diff.latency.count) == (3, 3)
    assert diff.live.p99_s == pytest.approx(0.010, rel=0.05)
    assert diff.latency.p50_s == pytest.approx(0.020, rel=0.05)


def test_gateway_that_is_away_counts_with_what_it_told_last() -> None:
    both = ShadowLedgers().with_told([report("a", 0.0), report("b", 1.0)], now_s=10.0)
    alone = told(both.with_told([report("a", 0.0, 0.0)], now_s=11.0))
    assert (alone.gateways, alone.away, alone.diff.compared, alone.diff.disagreed) == (2, 1, 3, 1)
    nobody = both.with_told([], now_s=12.0)
    assert told(nobody).diff == told(both).diff


def test_what_a_gateway_tells_again_is_counted_once() -> None:
    ledgers = ShadowLedgers()
    for now_s in (1.0, 2.0, 3.0):
        ledgers = ledgers.with_told([report("a", 0.0, 1.0)], now_s=now_s)
    assert told(ledgers).diff.compared == 2
    assert told(ledgers).at_s == 1.0


def test_only_the_newest_shadows_and_gateways_are_kept() -> None:
    ledgers = ShadowLedgers()
    for i in range(KEPT_SALTS + 2):
        ledgers = ledgers.with_told([report("a", 0.0, salt=f"salt-{i}")], now_s=float(i))
    ledgers = ledgers.with_told([report("a", 0.0, family="other")], now_s=0.0)
    assert [one.salt for one in ledgers.ledgers if one.family == FAMILY] == ["salt-4", "salt-3", "salt-2"]
    assert ledgers.of("other", "salt-1") is not None
    for i in range(KEPT_GATEWAYS + 5):
        ledgers = ledgers.with_told([report(f"g{i}", 0.0, salt="many")], now_s=100.0 + i)
    many = told(ledgers, "many")
    assert (many.gateways, many.diff.compared) == (KEPT_GATEWAYS, KEPT_GATEWAYS)


def test_worst_of_all_gateways_are_bounded() -> None:
    parts = [counted(*(float(i + j) for j in range(1, MAX_WORST + 1))) for i in (0, 100)]
    worst = diff_of([(tally.reported(), copies.measured()) for tally, copies in parts]).worst
    assert [one.difference for one in worst] == [float(120 - j) for j in range(MAX_WORST)]


def test_shadow_that_was_asked_nothing_has_no_agreement() -> None:
    diff = diff_of([(ShadowReport(version="v2", dropped=5), VariantTally().measured())])
    assert (diff.agreement, diff.differences.mean, diff.live.p50_s, diff.dropped) == (None, None, None, 5)


def test_ledgers_survive_the_disk() -> None:
    ledgers = ShadowLedgers().with_told([report("a", 0.0, 0.5, failed=2)], now_s=1.5)
    assert ShadowLedgers.model_validate_json(ledgers.model_dump_json()) == ledgers


def test_error_keeps_its_fact_between_processes() -> None:
    error = pickle.loads(pickle.dumps(NoShadowError("iris")))
    assert (error.family, "iris" in str(error)) == ("iris", True)
