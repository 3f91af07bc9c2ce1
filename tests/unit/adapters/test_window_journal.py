import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serve_app.adapters.window_journal import WindowJournal
from serve_app.domain.errors import StoreError
from serve_app.domain.windows import Metric, Record, WindowRules
from serve_app.usecases.keep_windows import WindowTable
from tests.contracts.window_writers import writing

RULES = WindowRules((Metric("cpu"), Metric("ram")), length=6)
STEP_S = 300


def records(*steps: int, entity: str = "web-1") -> list[Record]:
    return [Record(entity, step * STEP_S, {"cpu": float(step), "ram": 1.0}) for step in steps]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[WindowJournal]:
    made = WindowJournal(tmp_path / "windows", RULES)
    made.open()
    yield made
    made.close()


def reopened(journal: WindowJournal, rules: WindowRules = RULES) -> WindowTable:
    """Read what the next process would find, and go on."""
    journal.close()
    if rules == RULES:
        return journal.open()
    other = WindowJournal(journal._directory, rules)
    try:
        return other.open()
    finally:
        other.close()


def cpu(table: WindowTable, entity: str = "web-1") -> list[float]:
    return [float(v) for v in np.nan_to_num(table.windows([entity]).values[0, :, 0], nan=-1)]


def files(journal: WindowJournal) -> set[str]:
    return {path.name for path in journal._directory.iterdir()} - {"writer.lock"}


def test_new_directory_is_an_empty_table(journal: WindowJournal) -> None:
    assert reopened(journal).entities == ()


def test_appended_records_are_there_after_a_restart(journal: WindowJournal) -> None:
    journal.append(records(10, 11))
    journal.append([*records(12), *records(7, entity="web-2")])
    table = reopened(journal)
    assert table.entities == ("web-1", "web-2")
    assert cpu(table) == [-1, -1, -1, 10, 11, 12]


def test_compaction_keeps_everything_in_one_image_and_goes_on(journal: WindowJournal) -> None:
    table = WindowTable(RULES)
    for number in range(3):
        journal.append(records(10 + number))
        for record in records(10 + number):
            table.put(record)
        journal.compact(table.image())
    journal.append(records(13))
    assert files(journal) == {"image-00000003.safetensors", "journal-00000003.log"}
    assert cpu(reopened(journal)) == [-1, -1, 10, 11, 12, 13]


def test_crash_between_the_new_journal_and_the_image_loses_nothing(
    journal: WindowJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append(records(10))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(StoreError, match="No space left on device"):
            journal.compact(WindowTable(RULES).image())
    assert files(journal) == {"journal-00000000.log", "journal-00000001.log"}
    journal.append(records(11))
    assert cpu(reopened(journal)) == [-1, -1, -1, -1, 10, 11]


@pytest.mark.parametrize("cut", [1, 7, 8, 20])
def test_frame_that_was_cut_off_is_dropped_and_the_journal_goes_on(journal: WindowJournal, cut: int) -> None:
    journal.append(records(10))
    whole = journal.journal_bytes
    journal.append(records(11))
    (path,) = journal._directory.glob("journal-*")
    os.truncate(path, whole + cut)
    assert cpu(reopened(journal)) == [-1, -1, -1, -1, -1, 10]
    assert path.stat().st_size == whole
    journal.append(records(12))
    assert cpu(reopened(journal)) == [-1, -1, -1, 10, 11, 12]


@pytest.mark.parametrize("place", [0, 3, 5, 12])
def test_flipped_bits_end_the_journal_where_they_are(journal: WindowJournal, place: int) -> None:
    journal.append(records(10))
    start = journal.journal_bytes
    journal.append(records(11))
    (path,) = journal._directory.glob("journal-*")
    content = bytearray(path.read_bytes())
    content[start + place] ^= 0xFF
    path.write_bytes(content)
    assert cpu(reopened(journal)) == [-1, -1, -1, -1, -1, 10]


def test_failed_append_is_undone_and_told(journal: WindowJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.append(records(10))
    write = os.write
    with monkeypatch.context() as patched:
        full = iter([5])

        def until_full(descriptor: int, data: bytes) -> int:
            n_bytes = next(full, None)
            if n_bytes is None:
                raise OSError(28, "No space left on device")
            return write(descriptor, data[:n_bytes])

        patched.setattr(os, "write", until_full)
        with pytest.raises(StoreError, match="No space left on device"):
            journal.append(records(11))
    journal.append(records(12))
    assert cpu(reopened(journal)) == [-1, -1, -1, 10, 11, 12]


def test_image_that_cannot_be_read_is_put_aside_and_the_journals_count(journal: WindowJournal) -> None:
    journal.append(records(10))
    journal.compact(reopened(journal).image())
    journal.append(records(11))
    (image,) = journal._directory.glob("image-*")
    image.write_bytes(b"no tensors")
    assert cpu(reopened(journal)) == [-1, -1, -1, -1, -1, 11]
    assert "image-00000001.unreadable" in files(journal)


def test_windows_of_other_rules_are_put_aside_with_their_journal(journal: WindowJournal) -> None:
    journal.append(records(10))
    journal.compact(reopened(journal).image())
    journal.append(records(11))
    longer = WindowRules(RULES.metrics, length=12)
    assert cpu(reopened(journal, longer)) == [-1] * 11 + [11]
    assert files(journal) >= {"image-00000001.unreadable", "journal-00000001.aside"}


def test_what_a_crash_left_half_written_goes_away(journal: WindowJournal) -> None:
    (journal._directory / "image-00000009.staged").write_bytes(b"half")
    reopened(journal)
    assert files(journal) == {"journal-00000000.log"}


def test_more_than_a_frame_may_hold_is_told_before_it_is_written(
    journal: WindowJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.adapters.window_journal.MAX_FRAME_BYTES", 100)
    with pytest.raises(StoreError, match="expected at most 100 bytes of records at once, got "):
        journal.append(records(*range(10)))
    assert journal.journal_bytes == 0


def test_directory_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "windows").write_text("a file")
    with pytest.raises(StoreError, match="windows cannot be read from"):
        WindowJournal(tmp_path / "windows", RULES).open()


@pytest.mark.parametrize("n_acknowledged", [1, 23, 64])
def test_kill_loses_nothing_that_was_acknowledged(tmp_path: Path, n_acknowledged: int) -> None:
    with writing("file", str(tmp_path)) as writer:
        writer.await_steps(n_acknowledged)
        last = writer.kill()
    journal = WindowJournal(tmp_path, RULES)
    table = journal.open()
    journal.close()
    assert int(table.windows(["web-1"]).values[0, -1, 0]) >= last
    assert int(table.windows(["web-1"]).newest_step[0]) <= last + 1
