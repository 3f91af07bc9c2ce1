"""Journals for tests, and what these run in processes of their own, so that they can be killed.

    python -m tests.contracts.window_writers file <directory>
    python -m tests.contracts.window_writers redis <url> <family>

Writes step after step of one entity until it is killed, and prints each number once it is written.
"""

import sys
from itertools import count
from pathlib import Path

import numpy as np

from serve_app.adapters.window_journal import WindowJournal
from serve_app.adapters.window_redis import RedisJournal
from serve_app.domain.windows import Metric, Record, WindowRules
from serve_app.usecases.keep_windows import WindowTable
from serve_app.usecases.record_journal import RecordJournal

STEP_S = 300
RULES = WindowRules((Metric("cpu"), Metric("ram")), length=6)
LEASE_S = 1.0


def records(*steps: int, entity: str = "web-1") -> list[Record]:
    """Return one record for each step; its first value is the step."""
    return [Record(entity, step * STEP_S, {"cpu": float(step), "ram": 1.0}) for step in steps]


def make_journal(kind: str, *where: str, rules: WindowRules = RULES) -> RecordJournal:
    """Make a journal of either kind."""
    if kind == "file":
        return WindowJournal(Path(where[0]), rules)
    return RedisJournal(where[0], where[1], rules, timeout_s=5, lease_s=LEASE_S)


def reopened(journal: RecordJournal) -> WindowTable:
    """Return what the next process would find, and go on."""
    journal.close()
    return journal.open()


def cpu(table: WindowTable, entity: str = "web-1") -> list[float]:
    """Return the series of the first metric, -1 where there is none."""
    return [float(v) for v in np.nan_to_num(table.windows([entity]).values[0, :, 0], nan=-1)]


def write_until_killed(journal: RecordJournal) -> None:
    """Write on and on, with an image now and then."""
    table = journal.open(wait_s=10)
    for step in count(1):
        journal.append(records(step))
        table.put(records(step)[0])
        sys.stdout.write(f"{step}\n")
        sys.stdout.flush()
        if step % 7 == 0:
            journal.compact(table.image())


if __name__ == "__main__":
    write_until_killed(make_journal(*sys.argv[1:]))
