import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from serve_app.cli import processes
from serve_app.cli.profile import INSTANCE_VARIABLE

SAY_AND_WAIT = "print('up', flush=True); import sys; sys.stdin.read()"
IGNORE_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SAY_AND_WAIT
PARENT_OF_UNMARKED = (
    f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SAY_AND_WAIT!r}], env={{}}).wait()"
)

Starter = Callable[..., psutil.Process]


@pytest.fixture
def start() -> Iterator[Starter]:
    """Start Python programs that run until they are ended, marked with a runtime directory or not."""
    started: list[subprocess.Popen[str]] = []

    def start_one(program: str, *, marked: Path | None = None) -> psutil.Process:
        environment = {**os.environ, **({INSTANCE_VARIABLE: str(marked)} if marked else {})}
        child = subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        return psutil.Process(child.pid)

    yield start_one
    for child in started:
        child.kill()
        child.communicate()


def test_ends_what_is_marked_and_nothing_else(start: Starter, tmp_path: Path) -> None:
    ours, stranger = start(SAY_AND_WAIT, marked=tmp_path), start(SAY_AND_WAIT, marked=tmp_path / "other")

    ended = processes.end_all(tmp_path)

    assert [record.pid for record in ended] == [ours.pid]
    assert processes.find(tmp_path) == []
    assert stranger.status() != psutil.STATUS_ZOMBIE


def test_a_descendant_without_the_mark_is_ended_too(start: Starter, tmp_path: Path) -> None:
    parent = start(PARENT_OF_UNMARKED, marked=tmp_path)
    (child,) = parent.children()

    ended = processes.end_all(tmp_path)

    assert {record.pid for record in ended} == {parent.pid, child.pid}
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_ignores_the_polite_signal_is_killed(
    start: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    stubborn = start(IGNORE_TERM, marked=tmp_path)
    assert [record.pid for record in processes.end_all(tmp_path)] == [stubborn.pid]
    assert processes.find(tmp_path) == []


def test_a_recorded_process_is_ended_without_the_mark(start: Starter, tmp_path: Path) -> None:
    record = processes.record_of(start(SAY_AND_WAIT))
    assert processes.end_all(tmp_path, [record]) == [record]


def test_a_later_process_with_a_recorded_pid_is_left_alone(start: Starter, tmp_path: Path) -> None:
    later = start(SAY_AND_WAIT)
    record = processes.record_of(later).model_copy(update={"create_time": later.create_time() - 60})
    assert processes.end_all(tmp_path, [record]) == []
    assert later.status() != psutil.STATUS_ZOMBIE


def test_nothing_to_end_is_no_error(tmp_path: Path) -> None:
    assert processes.end_all(tmp_path) == []


def test_the_command_itself_is_never_among_the_processes_to_end(start: Starter, tmp_path: Path) -> None:
    """`down` called from a shell that an instance started must not end that shell."""
    program = (
        "from pathlib import Path; import os; from serve_app.cli import processes; "
        f"assert os.getpid() not in [p.pid for p in processes.find(Path({str(tmp_path)!r}))]; " + SAY_AND_WAIT
    )
    start(program, marked=tmp_path)


def test_an_instance_without_raylet_is_not_complete(start: Starter, tmp_path: Path) -> None:
    assert not processes.is_complete([start(SAY_AND_WAIT, marked=tmp_path)])
