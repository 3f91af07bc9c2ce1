"""The page of a report claims what was found, and nothing beyond. The whole page stands in `docs/ab-report.md`."""

import re

import pytest

from serve_app.domain.analysis_plan import MetricKind
from serve_app.domain.evidence import Measurement
from serve_app.domain.experiment_report import ExperimentReport, MetricReport, Unit, experiment_report
from serve_app.domain.rollout import Command
from serve_app.domain.sample_size import SampleSize
from serve_app.domain.statistics import Interval
from serve_app.domain.verdict import Verdict
from serve_app.usecases.write_report import page_of, result_of, title_of
from tests.simulations.ab_report import simulated
from tests.unit.domain.test_experiment_report import NOW_S, begun, commanded, looked

TOLD = simulated(n_looks=5)


def found(
    lower: float, upper: float, *, verdict: Verdict = Verdict.INCONCLUSIVE, size: SampleSize | None = None
) -> MetricReport:
    return MetricReport(
        name="error_rate", kind=MetricKind.ERROR_RATE, verdict=verdict, reason="neither", unit=Unit.SHARE,
        value_unit=Unit.SHARE, stable=0.02, canary=0.02, n_stable=1_000, n_canary=1_000,
        difference=(lower + upper) / 2, interval=Interval(lower=lower, upper=upper), interval_of="", margin=0.005,
        margin_told="0.5 percentage points", p_worse=None, size=size, is_exact=True, over_time=(),
    )  # fmt: skip


def told(*metrics: MetricReport, verdict: Verdict = Verdict.INCONCLUSIVE) -> ExperimentReport:
    return TOLD.model_copy(update={"metrics": metrics, "verdict": verdict})


def test_better_candidate_has_fewer_errors_and_the_interval_is_said() -> None:
    said = result_of(told(found(-0.02, -0.004, verdict=Verdict.PASS), verdict=Verdict.PASS))
    assert "**Against v6, v7 has 1.20 percentage points fewer errors (−2.00 to −0.40).**" in said
    assert "at least 95 %" in said
    assert "No metric is worse by its margin" in said


def test_worse_candidate_has_more_errors() -> None:
    said = result_of(told(found(0.004, 0.02, verdict=Verdict.FAIL), verdict=Verdict.FAIL))
    assert "v7 has 1.20 percentage points more errors (0.40 to 2.00)" in said
    assert "the verdict is fail" in said


def test_difference_that_is_not_proven_is_not_claimed() -> None:
    said = result_of(told(found(-0.02, 0.004)))
    assert "**No difference between v7 and v6 is proven.**" in said
    assert "error rate (−2.00 to 0.40 percentage points)" in said
    assert "inconclusive" in said
    assert not re.search("fewer|more errors|better|lower|higher", said)


def test_inconclusive_says_how_many_more_it_takes() -> None:
    page = page_of(told(found(-0.02, 0.004, size=SampleSize(n_stable=5_000, n_canary=13_456))))
    assert "To see the margin takes about 12,000 more samples of v7" in page
    page = page_of(told(found(-0.02, 0.004, size=SampleSize(n_stable=500, n_canary=500))))
    assert "a difference near the margin takes longer" in page
    page = page_of(told(found(-0.02, 0.004, verdict=Verdict.PASS, size=SampleSize(n_stable=5_000, n_canary=9_000))))
    assert "more samples" not in page


def test_report_without_evidence_says_that_nothing_can_be_said() -> None:
    page = page_of(experiment_report(begun(), now_s=NOW_S + 1))
    assert "**Nothing can be said of v2 yet**: nothing was compared yet." in page
    assert "## Metrics" not in page
    assert "/admin/rollouts/f/shadow" in page


def test_earlier_evidence_is_told_apart() -> None:
    record = looked(begun(), NOW_S + 10, stable=Measurement(requests=500), shadow=Measurement(requests=400))
    record = looked(
        commanded(record, Command.SKIP_STEP), NOW_S + 60, stable=Measurement(requests=1_400),
        canary=Measurement(requests=100, errors=3),
    )  # fmt: skip
    page = page_of(experiment_report(record, now_s=NOW_S + 61))
    assert "Before that, `shadow` was compared in 1 looks" in page


def test_broken_split_is_an_alarm() -> None:
    split = TOLD.split.model_copy(update={"p": 1e-9, "is_as_asked": False})
    assert "not as asked: nothing above can be trusted" in page_of(TOLD.model_copy(update={"split": split}))


def test_segments_are_exploratory_and_say_when_they_are_too_few() -> None:
    page = page_of(TOLD)
    section = page[page.index("## Per segment") : page.index("## What was done")]
    assert "**Exploratory**" in section
    assert "3 groups and 2 measures" in section
    assert "too few" in section


@pytest.mark.parametrize("level", [0.95, 0.975])
def test_level_is_that_of_the_plan(level: float) -> None:
    assert f"at least {100 * level:g} %" in page_of(TOLD.model_copy(update={"level": level}))


HOSTILE = "x|y\n# z <script>alert(1)</script> [a](b) `c` *d*\x1b[31m"


def test_what_others_wrote_stays_text_on_one_line() -> None:
    version = TOLD.canary.version.model_copy(update={"version": HOSTILE})
    canary = TOLD.canary.model_copy(update={"version": version})
    moves = tuple(move.model_copy(update={"reason": HOSTILE, "actor": HOSTILE}) for move in TOLD.moves)
    hostile = TOLD.model_copy(update={"canary": canary, "moves": moves, "actor": HOSTILE, "reason": HOSTILE})
    page = page_of(hostile)
    assert "<script" not in page
    assert "\x1b" not in page
    assert not re.search(r"^# z", page, re.MULTILINE)
    assert not re.search(r"(?<!\\)\[a(?<!\\)\]", page)
    rows = [re.findall(r"(?<!\\)\|", line) for line in page.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} <= {4, 5, 6, 9}


def test_tables_have_as_many_cells_in_every_row() -> None:
    for table in re.findall(r"(?:^\|.*\|\n)+", page_of(TOLD, plot="a.svg"), re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("loss_absolute_error", "mean absolute error"), ("loss_zero_one.y_2", "share of wrong classes of y_2"),
        ("loss_cost", "mean loss cost"), ("loss_log_loss", "mean log loss"),
    ],
)  # fmt: skip
def test_losses_of_labels_have_the_names_that_people_know(name: str, title: str) -> None:
    metric = found(-0.2, -0.1).model_copy(update={"name": name, "kind": MetricKind.LOSS, "unit": Unit.LOSS})
    assert title_of(metric) == title
    assert f"a {title} 0.150 lower" in result_of(told(metric))
