"""Journals for tests, and what these run in processes of their own, so that they can be killed."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from serve_app.adapters.window_journal import WindowJournal
from serve_app.adapters.window_redis import RedisJournal
from serve_app.domain.windows import Metric, Record, WindowRules
from serve_app.usecases.keep_windows import WindowTable
from serve_app.usecases.record_journal import RecordJournal
from tests.forked import forked

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


class Writer:
    """A process that writes step after step of one entity until it is killed, an image now and then.

    It tells each step once it is written, the first is 1.
    """

    def __init__(self, where: tuple[str, ...]) -> None:
        context = forked()
        self._told, telling = context.Pipe(duplex=False)
        self._process = context.Process(target=_write_on_and_on, args=(where, telling))
        self._process.start()
        telling.close()  # so that what is told ends with the process
        self._last = 0

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def await_steps(self, n: int) -> None:
        """Wait until so many more steps are written."""
        for _ in range(n):
            self._last = self._told.recv()

    def kill(self) -> int:
        """Kill it, and return the last step that it told."""
        self._process.kill()
        self._process.join()
        with suppress(EOFError):
            while True:
                self.await_steps(1)
        return self._last


@contextmanager
def writing(*where: str) -> Iterator[Writer]:
    """Have one write to the journal that `make_journal` makes of these."""
    writer = Writer(where)
    try:
        yield writer
    finally:
        writer.kill()


def _write_on_and_on(where: tuple[str, ...], telling: "Connection[int, int]") -> None:
    journal = make_journal(*where)
    table = journal.open(wait_s=10)
    for step in count(1):
        journal.append(records(step))
        table.put(records(step)[0])
        telling.send(step)
        if step % 7 == 0:
            journal.compact(table.image())
