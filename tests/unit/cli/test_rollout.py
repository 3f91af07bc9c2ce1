"""The commands `rollout …` against a server that is reached over a real socket; its control plane is a fake one."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from serve_app.cli.rollout_view import list_view, plan_line, rollout_view
from serve_app.domain.analysis import Analysis, MetricAnalysis
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import report_of
from serve_app.domain.statistics import Interval
from serve_app.domain.verdict import Verdict
from tests.unit.cli.test_control import Operator
from tests.unit.cli.test_control import operator as caller  # noqa: F401  # a fixture
from tests.unit.ingress.administered import ROLLOUT
from tests.unit.ingress.serving import FAMILY

PLAN = """
strategy: canary
steps:
  - {weight: 5, hold_s: 60}
  - {weight: 50, hold_s: 60}
"""


@pytest.fixture
def operator(caller: Operator) -> Operator:  # noqa: F811  # the fixture that was imported
    """Return one whose token may change rollouts."""
    caller.token_file.write_text(f"ops rollout {ROLLOUT}\n")
    return caller


@pytest.fixture
def started(operator: Operator, tmp_path: Path) -> Operator:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    operator.served.plane.publish("v2")
    result = operator.run("rollout", "start", "v2", "--plan", str(plan), "--reason", "try it")
    assert result.exit_code == 0, result.output
    assert f"{FAMILY}: v1 → v2, step 1 of 2, 5 % of the traffic" in result.output
    return operator


def test_start_without_a_plan_says_where_one_belongs(operator: Operator) -> None:
    operator.served.plane.publish("v2")
    result = operator.run("rollout", "start")
    assert result.exit_code == 1
    assert f"families.{FAMILY}.rollout" in result.output


@pytest.mark.parametrize(("text", "said"), [("strategy: canary", "steps"), ("a: [", "cannot be read")])
def test_plan_that_cannot_be_used_is_refused_in_one_sentence(
    operator: Operator, tmp_path: Path, text: str, said: str
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(text)
    result = operator.run("rollout", "start", "--plan", str(plan))
    assert (result.exit_code, said in result.output, "Traceback" in result.output) == (1, True, False)


def test_status_shows_the_rollout_and_its_moves(started: Operator) -> None:
    for words in (["rollout", "status"], ["rollout", "status", FAMILY]):
        output = started.run(*words).output
        assert "step 1 of 2" in output
        assert "canary: 5 % for 60 s → 50 % for 60 s" in output
        assert "the candidate is loaded" in output


def test_status_without_a_rollout_says_so(operator: Operator) -> None:
    assert "no rollout was started yet" in operator.run("rollout", "status").output
    assert "has had no rollout" in operator.run("rollout", "status", FAMILY).output


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("promote", "promoting"), ("pause", "paused (operator)"), ("abort", "aborting, 0 % of the traffic"),
        ("skip", "step 2 of 2, 50 % of the traffic"),
    ],
)  # fmt: skip
def test_command_says_how_the_rollout_stands_then(started: Operator, command: str, said: str) -> None:
    result = started.run("rollout", command, "--reason", "because")
    assert (result.exit_code, said in result.output) == (0, True), result.output
    moves = started.served.plane.rolled[FAMILY].state.history
    assert (moves[-1].actor, moves[-1].reason) == ("ops", "because")


def test_pause_and_resume_by_the_name_of_the_family(started: Operator) -> None:
    started.run("rollout", "pause", FAMILY)
    assert "step 1 of 2" in started.run("rollout", "resume", FAMILY).output


def test_command_that_does_not_fit_is_refused_with_what_was_expected(started: Operator) -> None:
    result = started.run("rollout", "retry")
    assert (result.exit_code, "aborted or failed" in result.output) == (1, True)


def test_metrics_are_shown_with_their_intervals(started: Operator) -> None:
    metric = MetricAnalysis(
        name="error_rate", verdict=Verdict.FAIL, reason="worse", stable=0.01, canary=0.06, increase=0.05,
        interval=Interval(lower=0.02, upper=0.08),
    )  # fmt: skip
    analysis = Analysis(verdict=Verdict.FAIL, reason="error_rate: worse", metrics=(metric,), n_windows=7)
    report = report_of(started.served.plane.rolled[FAMILY]).model_copy(update={"analysis": analysis})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(rollout_view(report, now_s=0.0))
    text = console.export_text()
    assert "[0.02, 0.08]" in text
    assert "fail: error_rate: worse" in text
    assert "7 windows" in text


def test_several_rollouts_are_one_line_each(started: Operator) -> None:
    report = report_of(started.served.plane.rolled[FAMILY])
    other = report.model_copy(update={"family": "iris"})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(list_view([report, other], now_s=0.0))
    assert [line.split()[0] for line in console.export_text().splitlines()[1:]] == [FAMILY, "iris"]


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        ({"strategy": "ab", "steps": [{"weight": 50}], "deadline_s": 600}, "experiment: 50 % for 600 s"),
        ({"strategy": "shadow", "shadow_first": {"hold_s": 60, "sample": 10}}, "shadow: 10 % for 60 s"),
        ({"strategy": "immediate"}, "immediate"),
    ],
)
def test_plan_in_one_line(plan: dict[str, object], line: str) -> None:
    assert plan_line(RolloutPlan.model_validate(plan)) == line
