"""What is particular to windows in Redis: the lease and the fence, and a server that goes away, forgets or is full."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from serve_app.adapters.window_redis import _COMMIT, RedisJournal
from serve_app.domain.errors import NotTheWriterError, StoreError
from serve_app.usecases.keep_windows import WindowTable
from tests.contracts.redis_server import NoRedisError, RedisServer, redis_server
from tests.contracts.window_writers import LEASE_S, RULES, cpu, make_journal, records, reopened


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    try:
        with redis_server() as started:
            yield started
    except NoRedisError as error:
        pytest.skip(str(error))


@pytest.fixture
def two(server: RedisServer) -> Iterator[tuple[RedisJournal, RedisJournal]]:
    family = server.new_family()
    made = (
        RedisJournal(server.url, family, RULES, lease_s=LEASE_S),
        RedisJournal(server.url, family, RULES, lease_s=LEASE_S),
    )
    yield made
    for journal in made:
        journal.close()


def test_writer_that_slept_through_its_lease_is_fenced_once_another_took_over(
    two: tuple[RedisJournal, RedisJournal],
) -> None:
    slept, other = two
    table = slept.open()
    slept.append(records(10))
    assert cpu(other.open(wait_s=LEASE_S * 5)) == [-1, -1, -1, -1, -1, 10]
    with pytest.raises(NotTheWriterError, match=r"found process [0-9]+ on .* at work"):
        slept.append(records(11, entity="web-2"))
    with pytest.raises(NotTheWriterError):
        slept.compact(table.image())
    with pytest.raises(NotTheWriterError):
        slept.renew()
    other.append(records(11, entity="web-3"))
    with pytest.raises(NotTheWriterError):
        slept.open()
    assert reopened(other).entities == ("web-1", "web-3")


def test_first_write_that_another_overtook_may_be_a_compaction(two: tuple[RedisJournal, RedisJournal]) -> None:
    slept, other = two
    image = slept.open().image()
    other.open(wait_s=LEASE_S * 5)
    other.append(records(10))
    with pytest.raises(NotTheWriterError):
        slept.compact(image)
    assert reopened(other).entities == ("web-1",)


def test_writer_that_slept_goes_on_when_nobody_took_over(two: tuple[RedisJournal, RedisJournal]) -> None:
    slept, other = two
    slept.open()
    time.sleep(LEASE_S * 1.5)  # it is the passing of time that is tested
    slept.append(records(10))
    with pytest.raises(NotTheWriterError):
        other.open()


def test_writer_whose_answers_were_lost_may_ask_again(two: tuple[RedisJournal, RedisJournal]) -> None:
    """The client sends a command again when the connection broke; its first one may have been carried out."""
    journal, _ = two
    table = journal.open()
    journal.open()  # the lease is its own
    for step in (10, 11):
        journal.append(records(step))
    table.put(records(10)[0])
    table.put(records(11)[0])
    journal.compact(table.image())
    for step in (12, 13, 14):
        journal.append(records(step))
    journal._write(_COMMIT, f"{journal._prefix}:image", f"{journal._number}-1", 1, 2)
    assert cpu(reopened(journal)) == [-1, 10, 11, 12, 13, 14]


def test_lease_that_is_renewed_keeps_another_waiting(two: tuple[RedisJournal, RedisJournal]) -> None:
    first, second = two
    first.open()
    refused = threading.Event()

    def try_for_a_while() -> None:
        with pytest.raises(NotTheWriterError):
            second.open(wait_s=LEASE_S * 2.5)
        refused.set()

    trying = threading.Thread(target=try_for_a_while)
    trying.start()
    while trying.is_alive():
        first.renew()
        trying.join(LEASE_S / 5)
    assert refused.is_set()


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    try:
        with redis_server() as started:
            yield started
    except NoRedisError as error:
        pytest.skip(str(error))


def test_redis_that_is_away_is_told_and_used_again_when_it_is_back(own_server: RedisServer) -> None:
    journal = make_journal("redis", own_server.url, "tft")
    journal.open()
    journal.append(records(10))
    own_server.kill()
    attempts: list[Callable[[], object]] = [
        lambda: journal.append(records(11)),
        journal.renew,
        make_journal("redis", own_server.url, "another").open,
    ]
    for attempt in attempts:
        started_s = time.monotonic()
        with pytest.raises(StoreError, match=rf"windows cannot be \w+ in Redis at 127.0.0.1:{own_server.port}: "):
            attempt()
        assert time.monotonic() - started_s < 5
    own_server.start()
    journal.append(records(12))
    assert cpu(reopened(journal)) == [-1, -1, -1, 10, 11, 12]  # 11 is the line between
    journal.close()


def test_kill_of_redis_amid_appends_loses_nothing_that_was_acknowledged(own_server: RedisServer) -> None:
    journal = make_journal("redis", own_server.url, "tft")
    table = journal.open()
    acknowledged = 0
    for round_ in range(3):
        killing = threading.Timer(0.05 + 0.02 * round_, own_server.kill)
        killing.start()
        with pytest.raises(StoreError):  # noqa: PT012  # the loop ends with the server
            for step in range(acknowledged + 1, 1_000_000):
                journal.append(records(step))
                table.put(records(step)[0])
                acknowledged = step
                if step % 50 == 0:
                    journal.compact(table.image())
        killing.join()
        own_server.start()
        newest = reopened(journal).newest_step
        assert newest is not None
        assert acknowledged <= newest <= acknowledged + 1
    assert acknowledged > 10
    journal.close()


def test_redis_that_forgot_everything_is_told_and_not_written_to(
    two: tuple[RedisJournal, RedisJournal], server: RedisServer
) -> None:
    journal, _ = two
    journal.open()
    journal.append(records(10))
    with server.client() as client:
        for key in client.scan_iter(f"*{journal._prefix}*"):
            client.delete(key)
    with pytest.raises(NotTheWriterError, match="found that another was it since, or that Redis has forgotten"):
        journal.append(records(11))
    assert journal.open().entities == ()


def test_image_whose_parts_are_gone_is_put_aside(two: tuple[RedisJournal, RedisJournal], server: RedisServer) -> None:
    journal, _ = two
    table = journal.open()
    table.put(records(10)[0])
    journal.compact(table.image())
    journal.append(records(11))
    with server.client() as client:
        (part,) = client.scan_iter(f"{journal._prefix}:image:*")
        client.delete(part)
        assert cpu(reopened(journal)) == [-1, -1, -1, -1, -1, 11]
        assert len(list(client.scan_iter(f"{journal._prefix}:aside:*"))) == 2


def test_images_in_many_parts_leave_no_parts_of_older_ones(
    two: tuple[RedisJournal, RedisJournal], server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.adapters.window_redis.CHUNK_BYTES", 100)
    journal, _ = two
    table = journal.open()
    for n in range(20, 0, -5):
        table = WindowTable(RULES)
        for i in range(n):
            table.put(records(10, entity=f"web-{i}")[0])
        journal.compact(table.image())
    assert len(reopened(journal)) == 5
    with server.client() as client:
        parts = list(client.scan_iter(f"{journal._prefix}:image:*"))
        assert len(parts) == int(client.hget(f"{journal._prefix}:head", "chunks") or 0)
        assert all(client.ttl(part) == -1 for part in parts)


def test_redis_that_may_forget_is_told_in_the_log(own_server: RedisServer) -> None:
    journal = make_journal("redis", own_server.url, "tft")
    for answer, said in (("yes", []), ("no", ["this Redis may forget windows when it dies: appendonly is off"])):
        with own_server.client() as client:
            client.config_set("appendonly", answer)
        with capture_logs() as logs:
            reopened(journal)
        assert [entry["event"] for entry in logs] == said
    journal.close()


def test_redis_that_is_full_is_told_and_keeps_what_was_there(own_server: RedisServer) -> None:
    journal = make_journal("redis", own_server.url, "tft")
    table = journal.open()
    journal.append(records(10))
    table.put(records(10)[0])
    with own_server.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreError, match="maxmemory"):
            journal.append(records(11))
        with pytest.raises(StoreError, match="maxmemory"):
            journal.compact(table.image())
        client.config_set("maxmemory", "0")
    journal.append(records(12))
    assert cpu(reopened(journal)) == [-1, -1, -1, 10, 11, 12]
    journal.close()
