"""The record on disk: its bounds, its order, and what it never holds."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.adapters.request_files import FILES, RecordedFiles, RequestFiles
from serve_app.domain.errors import StoreError
from tests.fakes.clock import FakeClock
from tests.recorded import head, request

SMALL = {"max_requests": 160, "max_bytes": 16_000}


def files(directory: Path, clock: FakeClock | None = None, **bounds: int) -> RequestFiles:
    return RequestFiles(directory, now_s=(clock or FakeClock()).now_s, **(SMALL | bounds))


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def times(directory: Path, newest: int | None = None) -> list[float]:
    return [one.at_s for _, one in RecordedFiles(directory, newest=newest)]


def test_requests_come_back_as_they_were(tmp_path: Path) -> None:
    sent = [request(1.5, 0.1, -2.0, answer=3.25), request(2.5, 1e-300, 1e300, version="v2")]
    assert files(tmp_path).append(head(), sent) == 2
    found = list(RecordedFiles(tmp_path))
    assert [one for _, one in found] == sent
    assert {(known.inputs, known.outputs) for known, _ in found} == {((("cpu", 1), ("ram", 1)), (("y", 1),))}


def test_labels_and_whole_numbers_stay_what_they_are(tmp_path: Path) -> None:
    one = request(1.0)
    files(tmp_path).append(head(), [type(one)(1.0, "v1", [[1.0]], [["setosa", 2, 2.5]], 0.1)])
    ((_, found),) = RecordedFiles(tmp_path)
    assert [type(value) for value in found.outputs[0]] == [str, int, float]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(1, 400), min_size=1, max_size=30)), min_size=1, max_size=25
    )
)
def test_record_is_never_larger_than_it_may_be(batches: list[tuple[int, list[int]]]) -> None:
    """Three processes write requests of all sizes, some larger than a file may be; after each write it is looked."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        clock = FakeClock()
        writers = [files(directory, clock) for _ in range(3)]
        for writer, widths in batches:
            clock.advance(1.0)
            kept = writers[writer].append(head(), [request(clock.now_s(), *([0.5] * width)) for width in widths])
            assert 0 <= kept <= len(widths)
            assert size_of(directory) <= SMALL["max_bytes"]
            assert len(times(directory)) <= SMALL["max_requests"]


def test_oldest_requests_give_way_and_the_newest_stay(tmp_path: Path) -> None:
    clock = FakeClock()
    record = files(tmp_path, clock, max_bytes=1 << 20)
    for i in range(1000):
        clock.advance(0.01)
        record.append(head(), [request(float(i))])
    kept = times(tmp_path)
    assert kept == [float(i) for i in range(1000 - len(kept), 1000)]
    assert 7 / 8 * SMALL["max_requests"] - 20 <= len(kept) <= SMALL["max_requests"]
    assert len(list(tmp_path.glob("*.requests"))) <= FILES


def test_newest_requests_of_several_processes_are_in_the_order_they_came(tmp_path: Path) -> None:
    clock = FakeClock()
    first, second = files(tmp_path, clock), files(tmp_path, clock)
    for i in range(10):
        (first if i % 2 else second).append(head(), [request(float(i))])
    assert times(tmp_path) == [float(i) for i in range(10)]
    assert times(tmp_path, newest=3) == [7.0, 8.0, 9.0]


def test_smaller_bounds_hold_from_the_next_request_on(tmp_path: Path) -> None:
    clock = FakeClock()
    files(tmp_path, clock, max_bytes=1 << 20, max_requests=1600).append(head(), [request(float(i)) for i in range(900)])
    clock.advance(1.0)
    files(tmp_path, clock).append(head(), [request(1000.0)])
    assert (size_of(tmp_path) <= SMALL["max_bytes"], times(tmp_path)[-1]) == (True, 1000.0)


def test_files_with_more_than_may_be_kept_now_are_deleted(tmp_path: Path) -> None:
    clock = FakeClock()
    files(tmp_path, clock).append(head(), [request(1.0, 12345.5, 2.0)])
    clock.advance(1.0)
    files(tmp_path, clock).append(head("cpu"), [request(2.0, 0.0, 2.0)])
    assert times(tmp_path) == [2.0]
    assert b"12345.5" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_request_that_was_cut_off_and_a_file_without_a_head_are_left_out(tmp_path: Path) -> None:
    clock = FakeClock()
    files(tmp_path, clock).append(head(), [request(1.0), request(2.0)])
    (path,) = tmp_path.glob("*.requests")
    path.write_bytes(path.read_bytes()[:-7])
    (tmp_path / "0000000000001-0123456789ab.requests").write_bytes(b'{"inputs": \n[1.0]\n')
    assert times(tmp_path) == [1.0]
    clock.advance(1.0)
    files(tmp_path, clock).append(head(), [request(3.0)])
    assert times(tmp_path) == [1.0, 3.0]
    assert not (tmp_path / "0000000000001-0123456789ab.requests").exists()


def test_file_that_somebody_deleted_is_not_written_on(tmp_path: Path) -> None:
    record = files(tmp_path)
    record.append(head(), [request(1.0)])
    for path in tmp_path.glob("*.requests"):
        path.unlink()
    assert record.append(head(), [request(2.0)]) == 1
    assert times(tmp_path) == [2.0]


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    files(tmp_path / "record").append(head(), [request(1.0)])
    (path,) = (tmp_path / "record").glob("*.requests")
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_directory_is_an_empty_record(tmp_path: Path) -> None:
    assert len(RecordedFiles(tmp_path / "none")) == 0


def test_directory_that_cannot_be_made_is_an_error_that_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"the record in {tmp_path}/file/record cannot be written"):
        files(tmp_path / "file" / "record").append(head(), [request(1.0)])
