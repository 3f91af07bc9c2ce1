import itertools
import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.adapters.prediction_log import MAX_EXPIRED, PredictionFiles
from serve_app.domain.errors import StoreError
from serve_app.domain.labels import Predicted, PredictionId, PredictionRecord
from tests.fakes.clock import FakeClock
from tests.forked import forked

US, THEM = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
BY = Predicted("v1", "stable", "default", "", (("y", "float64"),))
MIB = 1 << 20


def files(directory: Path, clock: FakeClock, *, keep_days: float = 14, max_bytes: int = MIB) -> PredictionFiles:
    return PredictionFiles(directory, keep_days=keep_days, max_bytes=max_bytes, now_s=clock.now_s)


def some(first: int, n: int, clock: FakeClock, *, rows: int = 1) -> list[tuple[int, PredictionRecord]]:
    return [(first + i, PredictionRecord(clock.now_s(), BY, [[float(first + i)]] * rows)) for i in range(n)]


def found(log: PredictionFiles, numbers: range, prefix: str = US) -> list[int]:
    told = log.find([PredictionId(prefix, n) for n in numbers])
    assert all(record is None or record.rows[0][0] == one.number for one, record in told.items())
    return sorted(one.number for one, record in told.items() if record is not None)


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def test_what_a_kill_cut_off_is_passed_over_wherever_it_cut(tmp_path: Path) -> None:
    clock = FakeClock()
    log = files(tmp_path, clock)
    log.append(US, some(1, 3, clock))
    (path,) = tmp_path.glob("*.predictions")
    whole = path.read_bytes()
    log.append(US, some(4, 3, clock))
    longer = path.read_bytes()
    for length in range(len(longer) + 1):
        path.write_bytes(longer[:length])
        expected = [1, 2, 3, 4, 5, 6] if length == len(longer) else [1, 2, 3] if length >= len(whole) else []
        assert found(files(tmp_path, clock), range(1, 9)) == expected


def test_a_damaged_frame_costs_only_itself(tmp_path: Path) -> None:
    clock = FakeClock()
    log = files(tmp_path, clock)
    for first in (1, 4, 7):
        log.append(US, some(first, 3, clock))
    (path,) = tmp_path.glob("*.predictions")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert found(log, range(1, 12)) == [1, 2, 3, 7, 8, 9]


def test_a_torn_note_of_a_label_is_none(tmp_path: Path) -> None:
    clock = FakeClock()
    log = files(tmp_path, clock)
    log.append(US, some(1, 3, clock))
    assert log.claim([(PredictionId(US, 1), 0), (PredictionId(US, 2), 0)]) == [True, True]
    (path,) = tmp_path.glob("*.labels")
    path.write_bytes(path.read_bytes()[:-3])
    assert log.claim([(PredictionId(US, 1), 0), (PredictionId(US, 2), 0)]) == [False, True]
    assert log.claim([(PredictionId(US, 2), 0)]) == [False]


def _write_on_and_on(directory: Path) -> None:
    clock = FakeClock()
    log = files(directory, clock, max_bytes=64 * MIB)
    for first in itertools.count(1, 500):
        log.append(US, some(first, 500, clock))


def test_a_real_kill_loses_nothing_but_the_end(tmp_path: Path) -> None:
    writer = forked().Process(target=_write_on_and_on, args=(tmp_path,))
    writer.start()
    give_up_s = time.monotonic() + 60
    while not any(path.stat().st_size > 1 << 18 for path in tmp_path.glob("*.predictions")):
        assert writer.is_alive()
        assert time.monotonic() < give_up_s
        os.sched_yield()
    writer.kill()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    numbers = found(files(tmp_path, FakeClock()), range(1, size_of(tmp_path)))  # each takes more than a byte
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 1000


def test_another_process_finds_and_claims_after_a_restart(tmp_path: Path) -> None:
    clock = FakeClock()
    log = files(tmp_path, clock)
    log.append(US, some(1, 3, clock))
    log.claim([(PredictionId(US, 1), 0)])
    later = files(tmp_path, clock)
    later.append(THEM, some(1, 1, clock))
    assert found(later, range(1, 9)) == [1, 2, 3]
    assert later.claim([(PredictionId(US, 1), 0), (PredictionId(US, 2), 0)]) == [False, True]


def _claim_all(directory: Path, gate: Barrier, told: "multiprocessing.Queue[int]") -> None:
    log = files(directory, FakeClock())
    gate.wait()
    told.put(sum(bool(log.claim([(PredictionId(US, n), 0)])[0]) for n in range(1, 51)))


def test_processes_that_claim_at_the_same_time_count_each_row_once(tmp_path: Path) -> None:
    clock = FakeClock()
    files(tmp_path, clock).append(US, some(1, 50, clock))
    context = forked()
    gate, told = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_claim_all, args=(tmp_path, gate, told)) for _ in range(2)]
    for worker in workers:
        worker.start()
    counts = [told.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sum(counts) == 50


def test_a_file_is_begun_every_hour_and_all_are_read(tmp_path: Path) -> None:
    clock = FakeClock()
    log = files(tmp_path, clock)
    for first in range(1, 6):
        log.append(US, some(first, 1, clock))
        clock.advance(1900)
    assert len(list(tmp_path.glob("*.predictions"))) == 3
    assert found(log, range(1, 9)) == [1, 2, 3, 4, 5]


def test_old_predictions_are_expired_whether_their_file_is_deleted_or_not(tmp_path: Path) -> None:
    clock = FakeClock()
    log = files(tmp_path, clock, keep_days=1)
    log.append(US, some(1, 2, clock))
    log.claim([(PredictionId(US, 1), 0)])
    clock.advance(86_401)
    assert log.find([PredictionId(US, 1)]) == {PredictionId(US, 1): None}
    clock.advance(3600)
    log.append(US, some(3, 1, clock))
    assert len(list(tmp_path.glob("*.predictions"))) == 1
    assert not list(tmp_path.glob("*.labels"))
    assert log.find([PredictionId(US, n) for n in (1, 2, 9)]) == {PredictionId(US, 1): None, PredictionId(US, 2): None}
    assert log.claim([(PredictionId(US, 1), 0)]) == [None]
    assert found(log, range(1, 9)) == [3]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 40)), min_size=10, max_size=30))
def test_bytes_stay_within_the_bound_and_the_newest_stay(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, int]]
) -> None:
    directory, clock = tmp_path_factory.mktemp("log"), FakeClock()
    log = files(directory, clock)
    first = 1
    for n, rows in batches:
        log.append(US, some(first, n, clock, rows=rows))
        assert size_of(directory) <= MIB + 1024
        first += n
        clock.advance(1)
    told = log.find([PredictionId(US, n) for n in range(1, first)])
    kept = [one.number for one, record in told.items() if record is not None]
    assert sorted(kept) == list(range(min(kept), first))
    assert {one.number for one, record in told.items() if record is None} == set(range(1, min(kept)))


def test_expired_processes_are_told_up_to_a_bound(tmp_path: Path) -> None:
    clock = FakeClock()
    log = files(tmp_path, clock, keep_days=0.01)
    for i in range(MAX_EXPIRED + 10):
        log.append(f"{i:012x}", some(1, 1, clock))
    clock.advance(86_400)
    log.append(US, some(1, 1, clock))
    gone = [PredictionId(f"{i:012x}", 1) for i in range(MAX_EXPIRED + 10)]
    assert len(log.find(gone)) == MAX_EXPIRED


def test_a_directory_that_somebody_deleted_comes_back(tmp_path: Path) -> None:
    clock = FakeClock()
    log = files(tmp_path / "log", clock)
    log.append(US, some(1, 1, clock))
    for path in (tmp_path / "log").iterdir():
        path.unlink()
    (tmp_path / "log").rmdir()
    log.append(US, some(2, 1, clock))
    assert found(log, range(1, 4)) == [2]


def test_a_disk_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the directory should be")
    log = files(tmp_path / "log", FakeClock())
    with pytest.raises(StoreError, match="predictions cannot be written"):
        log.append(US, some(1, 1, FakeClock()))
    with pytest.raises(StoreError, match="predictions cannot be noted"):
        log.claim([(PredictionId(US, 1), 0)])
