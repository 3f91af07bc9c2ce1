from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serve_app.domain.evidence import Evidence
from tests.pages import DOCS
from tests.simulations import plots, report
from tests.simulations.figures import Found, Share, SimulationRun, summed_up
from tests.simulations.rivals import (
    RIVALS,
    asymptotic_crossing,
    crossings,
    flagger_crossing,
    plug_in_crossing,
    z_crossing,
)
from tests.simulations.rollouts import simulate
from tests.simulations.scenarios import (
    ANALYSIS,
    CANARY_REQUESTS,
    EQUAL,
    EQUAL_HALVES,
    ERRORS,
    ERRORS_AT_MARGIN,
    HARMFUL,
    LATENCY,
    LATENCY_AT_MARGIN,
    N_LOOKS,
    Scenario,
    drawn,
)
from tests.simulations.simulated import Course, run

BAD = Scenario("errors 1 % → 20 %", error_rate=0.2)


def found(scenario: Scenario, *courses: Course) -> Found:
    return summed_up(scenario, courses, [metric.name for metric in ANALYSIS.metrics])


def course(*, aborted: int = 0, promoted: int = 0, passed: tuple[int, int] = (0, 0)) -> Course:
    return Course(
        aborted=aborted,
        promoted=promoted,
        exposed=12_000,
        failed=aborted,
        split_alarm=0,
        passed=passed,
        rivals=(0,) * len(RIVALS),
        canary_requests=tuple(CANARY_REQUESTS * look for look in range(1, N_LOOKS + 1)),
    )


def small_run() -> SimulationRun:
    scenarios = (EQUAL, EQUAL_HALVES, ERRORS_AT_MARGIN, LATENCY_AT_MARGIN, *HARMFUL)
    return SimulationRun(
        started_at="2026-02-06T10:00:00+00:00", command="…", code="…", machine="…", seconds=1, seed=1, alpha=0.05,
        side_alpha=0.01, looks=N_LOOKS, canary_requests=CANARY_REQUESTS, base_error_rate=0.01,
        found=tuple(found(scenario, course(aborted=3, passed=(0, 7)), course(promoted=5)) for scenario in scenarios),
    )  # fmt: skip


def test_traffic_is_drawn_as_the_scenario_says() -> None:
    series = drawn(Scenario("slow and bad", error_rate=0.2, slower=2.0), np.random.default_rng(1))
    assert series.canary_requests.mean() == pytest.approx(CANARY_REQUESTS, rel=0.05)
    assert series.canary_errors.sum() / series.canary_requests.sum() == pytest.approx(0.2, abs=0.02)
    window = series.evidence(3, 0.1)
    assert window.canary.latency.total == window.canary.requests == window.canary.assigned
    whole = Evidence()
    for look in range(N_LOOKS):
        whole = whole.merged(series.evidence(look, 0.1))
    slow, fast = whole.canary.latency.quantile_s(0.95), whole.stable.latency.quantile_s(0.95)
    assert slow is not None
    assert fast is not None
    assert fast == pytest.approx(0.01 * np.exp(0.5 * 1.645), rel=0.05)
    assert slow / fast == pytest.approx(2.0, rel=0.05)


def test_a_bad_canary_is_aborted_at_the_first_look_and_an_equal_one_promoted() -> None:
    bad = run(BAD, np.random.default_rng(1))
    assert (bad.aborted, bad.promoted) == (1, 0)
    assert bad.exposed == bad.canary_requests[0]
    equal = run(EQUAL, np.random.default_rng(1))
    assert equal.aborted == 0
    assert 1 < equal.promoted <= N_LOOKS
    assert equal.exposed == equal.canary_requests[equal.promoted - 1]


def test_the_same_seed_gives_the_same_figures_however_the_work_is_split() -> None:
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two:
        first = simulate(BAD, 30, one, seed=5, number=1)
        assert simulate(BAD, 30, two, seed=5, number=1) == first
    assert first.aborted.total == 30


def test_the_rivals_rules_are_what_they_are_said_to_be() -> None:
    series = drawn(BAD, np.random.default_rng(1))
    assert flagger_crossing(series, 0.02) == 5
    assert flagger_crossing(series, 0.99) == 0
    even = np.array([100, 100])
    assert z_crossing(np.array([5, 30]), even, np.array([5, 5]), even) == 2
    assert z_crossing(np.array([0, 0]), even, np.array([0, 0]), even) == 0
    assert z_crossing(np.array([5, 0]), even, np.array([30, 30]), even) == 0
    assert len(crossings(series)) == len(RIVALS)
    for sequential in (asymptotic_crossing, plug_in_crossing):
        few, many, requests = np.array([1, 1, 1]), np.array([1, 30, 30]), np.full(3, 100)
        assert sequential(many, requests, few, requests) > 1
        assert sequential(few, requests, many, requests) == sequential(few, requests, few, requests) == 0


@pytest.mark.parametrize(
    ("count", "total", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_shares_have_the_interval_of_wilson(count: int, total: int, low: float, high: float) -> None:
    found_low, found_high = Share(count=count, total=total).interval
    assert found_low == pytest.approx(low, abs=1e-4)
    assert found_high == pytest.approx(high, abs=1e-4)


def test_what_never_happened_lies_beyond_all_quantiles() -> None:
    ours = found(BAD, course(aborted=2), course(aborted=4), course()).methods[0]
    assert (ours.looks_p50, ours.looks_p90, ours.exposed_p50) == (4, None, 800)
    assert ours.by_look[:5] == (0, 1, 1, 2, 2)
    assert ours.share.count == 2


def test_the_page_says_whether_the_aims_are_met(tmp_path: Path) -> None:
    page = report.write(small_run(), tmp_path).read_text()
    assert "at most alpha = 0.05 | 100.00%" in page
    assert "**no**" in page
    assert SimulationRun.model_validate_json((tmp_path / "statistics.json").read_text()) == small_run()


def test_every_plot_that_the_page_shows_is_drawn(tmp_path: Path) -> None:
    plots.draw(small_run(), tmp_path)
    page = report.render(small_run())
    drawn_files = {file.name for file in tmp_path.iterdir()}
    assert drawn_files == {plots.FALSE_ABORTS, plots.DETECTION, plots.SEQUENCE}
    assert all(f"]({name})" in page for name in drawn_files)


def test_the_page_in_the_documentation_is_that_of_its_figures() -> None:
    run_of_docs = SimulationRun.model_validate_json((DOCS / "statistics.json").read_text())
    assert (DOCS / "statistics.md").read_text() == report.render(run_of_docs)
    assert run_of_docs.found[0].rollouts == 10_000
    assert run_of_docs.found[2].passed[ERRORS].value <= run_of_docs.side_alpha
    assert run_of_docs.found[3].passed[LATENCY].value <= run_of_docs.side_alpha
