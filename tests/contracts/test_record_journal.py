"""What every journal of windows promises, run over files and a Redis that the tests start."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from serve_app.domain.errors import NotTheWriterError
from serve_app.domain.windows import Metric, Record, WindowRules
from serve_app.usecases.keep_windows import WindowTable
from serve_app.usecases.record_journal import RecordJournal
from tests.contracts.redis_server import NoRedisError, RedisServer, redis_server
from tests.contracts.window_writers import LEASE_S, RULES, STEP_S, cpu, make_journal, records, reopened, writing


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    try:
        with redis_server() as started:
            yield started
    except NoRedisError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["file", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    """Where a journal is, as `make_journal` takes it."""
    if request.param == "file":
        return "file", str(tmp_path / "windows")
    redis: RedisServer = request.getfixturevalue("server")
    return "redis", redis.url, redis.new_family()


Make = Callable[..., RecordJournal]


@pytest.fixture
def make(where: tuple[str, ...]) -> Iterator[Make]:
    """Make further journals over the same data, as other processes would have them."""
    made: list[RecordJournal] = []

    def make_one(rules: WindowRules = RULES) -> RecordJournal:
        made.append(make_journal(*where, rules=rules))
        return made[-1]

    yield make_one
    for journal in made:
        journal.close()


# What is kept


def test_new_journal_is_an_empty_table(make: Make) -> None:
    journal = make()
    assert journal.open().entities == ()
    assert journal.journal_bytes == 0


def test_appended_records_are_there_after_a_restart(make: Make) -> None:
    journal = make()
    journal.open()
    journal.append(records(10, 11))
    journal.append([*records(12), *records(7, entity="wéb-2")])
    n_bytes = journal.journal_bytes
    assert n_bytes > 0
    table = reopened(journal)
    assert table.entities == ("web-1", "wéb-2")
    assert cpu(table) == [-1, -1, -1, 10, 11, 12]
    assert journal.journal_bytes == n_bytes


def test_restart_gives_the_table_to_the_last_bit(make: Make) -> None:
    random = np.random.default_rng(5)
    journal, table = make(), WindowTable(RULES)
    journal.open()
    for number in range(40):
        batch = [
            Record(f"web-{int(random.integers(4))}", float(random.uniform(0, 20 * STEP_S)), {"cpu": float(cpu)})
            for cpu in random.normal(size=10)
        ]
        journal.append(batch)
        for record in batch:
            table.put(record)
        if number % 11 == 10:
            journal.compact(table.image())
    found, expected = reopened(journal).image(), table.image()
    assert found.entities == expected.entities
    for name in ("values", "times", "newest_step"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()


def test_compaction_between_appends_loses_nothing_and_shortens_the_journal(make: Make) -> None:
    journal = make()
    table = journal.open()
    for step in range(10, 14):
        journal.append(records(step))
        table.put(records(step)[0])
        journal.compact(table.image())
        assert journal.journal_bytes == 0
    journal.append(records(14))
    assert cpu(reopened(journal)) == [-1, 10, 11, 12, 13, 14]


def test_entities_that_an_image_lacks_are_forgotten_and_may_come_again(make: Make) -> None:
    journal = make()
    table = journal.open()
    for record in [*records(10, entity="old"), *records(11)]:
        journal.append([record])
        table.put(record)
    journal.compact(table.image(without={"old"}))
    assert reopened(journal).entities == ("web-1",)
    journal.append(records(12, entity="old"))
    assert cpu(reopened(journal), "old") == [-1, -1, -1, -1, -1, 12]


def test_more_entities_than_are_allowed_now_are_read_all(make: Make) -> None:
    journal = make()
    journal.open()
    journal.append([*records(1, entity="a"), *records(1, entity="b")])
    journal.close()
    fewer = make(WindowRules(RULES.metrics, length=6, max_entities=1))
    table = fewer.open()
    assert table.entities == ("a", "b")
    assert table.check_room("c") is not None


@pytest.mark.parametrize(
    "other",
    [
        WindowRules(RULES.metrics, length=12),
        WindowRules(RULES.metrics, length=6, step_s=60),
        WindowRules((Metric("cpu"), Metric("disk")), length=6),
    ],
    ids=["length", "step", "metrics"],
)
def test_image_of_other_rules_is_put_aside_and_the_journal_is_taken_over(make: Make, other: WindowRules) -> None:
    journal = make()
    table = journal.open()
    table.put(records(10)[0])
    journal.append(records(10))
    journal.compact(table.image())
    journal.append(records(11))
    journal.close()
    changed = make(other)
    found = changed.open()
    assert [value for value in cpu(found) if value != -1] == [11]
    changed.append(records(12))
    changed.compact(found.image())
    changed.close()
    assert make(other).open().entities == ("web-1",)


def test_records_of_metrics_that_are_all_gone_make_no_entity(make: Make) -> None:
    journal = make()
    journal.open()
    journal.append(records(10))
    journal.close()
    assert make(WindowRules((Metric("disk"),), length=6)).open().entities == ()


# One writer


def test_second_writer_is_refused_in_a_bounded_time_and_told_who_writes(make: Make) -> None:
    first, second = make(), make()
    first.open()
    started_s = time.monotonic()
    with pytest.raises(
        NotTheWriterError, match=r"expected to be the only writer of .*, found process [0-9]+ .*at work"
    ):
        second.open(wait_s=0.3)
    assert 0.3 <= time.monotonic() - started_s < 3
    first.append(records(10))
    assert cpu(reopened(first)) == [-1, -1, -1, -1, -1, 10]


def test_waiting_writer_begins_when_the_first_closes_and_has_all_of_it(make: Make) -> None:
    first, second = make(), make()
    first.open()
    found: list[WindowTable] = []
    waiting = threading.Thread(target=lambda: found.append(second.open(wait_s=10)))
    waiting.start()
    first.append(records(10))
    first.renew()
    assert waiting.is_alive()
    first.close()
    waiting.join(5)
    assert cpu(found[0]) == [-1, -1, -1, -1, -1, 10]


@pytest.mark.parametrize("n_acknowledged", [1, 23])
def test_kill_of_the_writer_loses_nothing_and_the_next_takes_over(
    where: tuple[str, ...], make: Make, n_acknowledged: int
) -> None:
    next_one = make()
    with writing(*where) as writer:
        writer.await_steps(n_acknowledged)
        with pytest.raises(NotTheWriterError, match=f"process {writer.pid}"):
            next_one.open()
        writer.await_steps(1)
        last = writer.kill()
    started_s = time.monotonic()
    table = next_one.open(wait_s=10)
    assert time.monotonic() - started_s < (0.5 if where[0] == "file" else LEASE_S + 1)
    newest = int(table.windows(["web-1"]).newest_step[0])
    assert last <= newest <= last + 1
    assert cpu(table) == [step if step >= 1 else -1 for step in range(newest - 5, newest + 1)]
    next_one.append(records(newest + 1))
    assert reopened(next_one).newest_step == newest + 1
