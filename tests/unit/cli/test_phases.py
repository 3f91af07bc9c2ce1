import io

import pytest
from rich.console import Console

from serve_app.cli.phases import Phases


def test_in_a_log_each_phase_is_one_line_at_its_end() -> None:
    console = Console(file=io.StringIO(), width=100)
    with Phases(console) as phases:
        with phases.phase("ray", "profile safe"):
            pass
        with phases.phase("replicas") as phase:
            phase.report("1/2 running", done=1, total=2)
            phase.report("2/2 running", done=2, total=2)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["ray", "replicas"]
    assert lines[0].endswith("profile safe")
    assert lines[1].endswith("2/2 running")


def test_a_phase_that_fails_is_not_told_as_done() -> None:
    console = Console(file=io.StringIO(), width=100)
    with pytest.raises(ValueError, match="broken"), Phases(console) as phases, phases.phase("ray"):
        raise ValueError("broken")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""


def test_on_a_terminal_the_line_shows_what_is_under_way() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with Phases(console) as phases, phases.phase("replicas") as phase:
        phase.report("1/2 running", done=1, total=2)
    assert isinstance(console.file, io.StringIO)
    assert "1/2 running" in console.file.getvalue()
