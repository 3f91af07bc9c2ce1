"""The commands `replay` and `rollout shadow`, over a real socket."""

import io
import json

import pytest
from rich.console import Console, RenderableType

from serve_app.cli.shadow_view import replay_view, shadow_view
from serve_app.domain.exposure import WorstInput
from serve_app.domain.recording import ReplayFailure, ReplayReport
from tests.fakes.replayer import replay_report
from tests.unit.cli.test_control import Operator
from tests.unit.cli.test_control import operator as caller  # noqa: F401  # a fixture
from tests.unit.ingress.administered import ROLLOUT
from tests.unit.ingress.serving import FAMILY
from tests.unit.ingress.test_shadow import TOLD


@pytest.fixture
def operator(caller: Operator) -> Operator:  # noqa: F811  # the fixture that was imported
    """Return one whose token may change rollouts, of a server that records and that v2 was published on."""
    caller.token_file.write_text(f"ops rollout {ROLLOUT}\n")
    caller.served.plane.publish("v2")
    caller.served.plane.replays["v2"] = replay_report(FAMILY, "v2")
    return caller


def shown(view: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(view)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_replay_shows_agreement_and_what_it_was_run_on(operator: Operator) -> None:
    result = operator.run("replay", FAMILY, "v2", "--limit", "10")
    assert result.exit_code == 0, result.output
    for said in ("90 % agree: 9 of 10 compared", "v2 on 10 of 10 recorded requests", "answered live by v1 (10)"):
        assert said in result.output
    assert operator.served.plane.replayed == [(FAMILY, "v2", 10, "ops")]


def test_replay_prints_all_as_json(operator: Operator) -> None:
    result = operator.run("replay", FAMILY, "v2", "--json")
    assert ReplayReport.model_validate(json.loads(result.output)) == replay_report(FAMILY, "v2")


@pytest.mark.parametrize(("words", "said"), [
    (("none", "v2"), "unknown family 'none'"),
    ((FAMILY, "v9"), "has no version 'v9'"),
    ((FAMILY, "v1"), f"families.{FAMILY}.record"),
])  # fmt: skip
def test_replay_that_is_refused_says_why_in_one_sentence(operator: Operator, words: tuple[str, ...], said: str) -> None:
    result = operator.run("replay", *words)
    assert (result.exit_code, said in result.output, "Traceback" in result.output) == (1, True, False)


def test_shadow_is_shown_and_its_absence_told(operator: Operator) -> None:
    assert "has had no rollout" in operator.run("rollout", "shadow", FAMILY).output
    operator.served.plane.shadows[FAMILY] = TOLD
    plan = {"strategy": "shadow", "shadow_first": {"hold_s": 60}}
    operator.served.plane.rolled.clear()
    started = operator.run("rollout", "start", "v2", "--plan", _written(operator, plan))
    assert started.exit_code == 0, started.output
    result = operator.run("rollout", "shadow", FAMILY)
    assert "v2 as the shadow of v1, as 2 gateways tell, 1 of them away" in result.output
    assert json.loads(operator.run("rollout", "shadow", FAMILY, "--json").output) == TOLD.model_dump(mode="json")


def _written(operator: Operator, plan: object) -> str:
    path = operator.token_file.with_name("plan.json")
    path.write_text(json.dumps(plan))
    return str(path)


def test_views_show_failures_worst_inputs_and_who_answered_again() -> None:
    report = replay_report(FAMILY, "v2")
    worst = WorstInput(difference=1.5, rows=((1.0,) * 9,), live=(("setosa",),), shadow=((2.0,),))
    report = report.model_copy(
        update={
            "diff": report.diff.model_copy(update={"worst": (worst,)}),
            "failures": (ReplayFailure(number=7, at_s=0.0, error="RuntimeError: \x1b[31mno"),),
            "record": report.record.model_copy(update={"redacted": ("cpu",)}),
            "compared_with": "v1",
        }
    )
    text = shown(replay_view(report))
    for said in (
        "redacted: cpu; compared with v1, which ran as well",
        "RuntimeError",
        "1, 1, 1, 1, 1, 1, 1, 1, …",
        "setosa",
    ):
        assert said in text
    assert "\x1b" not in text


def test_view_of_a_shadow_that_was_asked_nothing_says_so() -> None:
    empty = TOLD.diff.model_copy(update={"agreement": None, "compared": 0})
    assert "nothing was compared" in shown(shadow_view(TOLD.model_copy(update={"diff": empty})))
