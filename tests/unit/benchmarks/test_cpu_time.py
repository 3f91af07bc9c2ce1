import subprocess
import sys

import psutil
import pytest

from tests.benchmarks.cpu_time import Birth, cpu_seconds, difference, tree

BURN = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True)\ninput()"


def test_the_difference_counts_new_processes_whole_and_ended_ones_not_at_all() -> None:
    old, new, ended = Birth(1, 10.0), Birth(2, 20.0), Birth(3, 30.0)

    assert difference({old: 5.0, ended: 9.0}, {old: 7.0, new: 1.5}) == pytest.approx(3.5)


def test_a_reused_pid_is_another_process() -> None:
    assert difference({Birth(1, 10.0): 5.0}, {Birth(1, 99.0): 0.5}) == pytest.approx(0.5)


def test_the_time_of_a_child_counts() -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"burnt\n"
        used = cpu_seconds(tree(psutil.Process(process.pid)))
        process.stdin.write(b"\n")

    assert len(used) == 2
    assert sum(used.values()) >= 0.3


def test_a_tree_that_is_gone_is_empty() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        root = psutil.Process(process.pid)
        assert process.stdin is not None
        process.stdin.write(b"\n")

    assert tree(root) == []
    assert cpu_seconds([root]) == {}
