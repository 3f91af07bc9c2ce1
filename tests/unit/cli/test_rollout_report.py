"""`rollout report` against a server that is reached over a real socket; its control plane is a fake one."""

import json
from pathlib import Path
from xml.etree import ElementTree

from serve_app.domain.experiment_report import ExperimentReport
from tests.unit.cli.test_control import Operator
from tests.unit.cli.test_control import operator as caller  # noqa: F401  # a fixture
from tests.unit.cli.test_rollout import operator, started  # noqa: F401  # fixtures
from tests.unit.ingress.serving import FAMILY


def test_report_is_shown_as_text(started: Operator) -> None:  # noqa: F811  # the fixture that was imported
    for words in (["rollout", "report"], ["rollout", "report", FAMILY]):
        result = started.run(*words)
        assert result.exit_code == 0, result.output
        for said in (f"v2 against v1: {FAMILY}", "Nothing can be said of v2 yet", "the candidate is loaded"):
            assert said in result.output
        assert "**" not in result.output


def test_report_is_json_that_can_be_read_back(started: Operator) -> None:  # noqa: F811
    told = ExperimentReport.model_validate(json.loads(started.run("rollout", "report", "--json").output))
    assert (told.family, told.reason) == (FAMILY, "try it")


def test_report_is_a_page_in_markdown(started: Operator) -> None:  # noqa: F811
    assert started.run("rollout", "report", "--markdown").output.startswith(f"# v2 against v1: {FAMILY}\n")


def test_plot_is_written_to_a_file(started: Operator, tmp_path: Path) -> None:  # noqa: F811
    plot = tmp_path / "plot.svg"
    result = started.run("rollout", "report", "--plot", str(plot))
    assert (result.exit_code, "wrote" in result.output) == (0, True), result.output
    assert ElementTree.fromstring(plot.read_text()).tag.endswith("svg")


def test_what_cannot_be_done_is_said_in_one_sentence(started: Operator, tmp_path: Path) -> None:  # noqa: F811
    for words, said in (
        (["--plot", str(tmp_path / "plot.png")], "ends with .svg"),
        (["--plot", str(tmp_path / "absent" / "plot.svg")], "cannot be written"),
        (["--json", "--markdown"], "choose one"),
        (["none"], "none"),
    ):
        result = started.run("rollout", "report", *words)
        assert (result.exit_code, "Traceback" in result.output) == (1, False)
        assert said in result.output.replace("\n", "")


def test_report_without_a_rollout_says_so(operator: Operator) -> None:  # noqa: F811
    assert "no rollout was started yet" in operator.run("rollout", "report").output
    assert "has had no rollout" in operator.run("rollout", "report", FAMILY).output
