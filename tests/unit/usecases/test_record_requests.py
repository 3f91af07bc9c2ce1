"""Requests are recorded beside answers: sampled, bounded, redacted before anything is written."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.adapters.request_files import RecordedFiles, RequestFiles
from serve_app.domain.errors import StoreError
from serve_app.domain.recording import RecordedRequest, RecordHead
from serve_app.usecases import record_requests
from serve_app.usecases.record_requests import RecordSettings, RequestRecorder
from serve_app.usecases.target import Target
from tests import labelled
from tests.fakes.clock import FakeClock
from tests.labelled import answer
from tests.recorded import RecordCounts, signature

FAMILY = "forecaster"


class FakeLog:
    """Keeps requests in memory; set `error` to make every call raise it."""

    def __init__(self) -> None:
        self.kept: list[tuple[RecordHead, RecordedRequest]] = []
        self.error: Exception | None = None

    def append(self, head: RecordHead, requests: Sequence[RecordedRequest]) -> int:
        if self.error is not None:
            raise self.error
        self.kept += [(head, one) for one in requests]
        return len(requests)


class Recorded:
    """A recorder of one family over a fake log; `drawn` is what chance says next."""

    def __init__(self, **facts: Any) -> None:
        self.log, self.counts, self.drawn = FakeLog(), RecordCounts(), 0.0
        self.recorder = RequestRecorder(
            {FAMILY: (self.log, RecordSettings(**facts))}, self.counts, now_s=FakeClock().now_s,
            draw=lambda: self.drawn,
        )  # fmt: skip

    def offer(self, *row: float, target: Target | None = None, outputs: Any = None) -> None:
        rows = [list(row or (1.0, 2.0))]
        self.recorder.offer(target or made(), rows, answer(5.0) if outputs is None else outputs, 0.25)


def made(**facts: Any) -> Target:
    """Return where a request with inputs cpu and ram could have gone."""
    return replace(labelled.target(**facts), signature=signature())


async def test_answer_is_written_with_its_version_and_time() -> None:
    recorded = Recorded()
    recorded.offer(1.5, 2.5)
    assert recorded.log.kept == []  # nothing is written on the request's path
    await recorded.recorder.write()
    ((head, one),) = recorded.log.kept
    assert one == RecordedRequest(FakeClock().now_s(), "v1", [[1.5, 2.5]], [[5.0]], 0.25)
    assert ([name for name, _ in head.inputs], head.redacted) == (["cpu", "ram"], ())
    assert (recorded.counts.kept, recorded.counts.dropped) == (1, 0)


async def test_only_the_sample_is_recorded() -> None:
    recorded = Recorded(share=0.1)
    for recorded.drawn in (0.0, 0.09, 0.1, 0.99):
        recorded.offer()
    await recorded.recorder.write()
    assert len(recorded.log.kept) == 2


@pytest.mark.parametrize(("reason", "is_kept"), [
    ("default", True), ("hash", True), ("segment", True), ("forced", False), ("named", False), ("fallback", False),
])  # fmt: skip
async def test_only_answers_to_whoever_asked_for_the_family_are_recorded(reason: str, is_kept: bool) -> None:
    recorded = Recorded()
    recorded.offer(target=made(reason=reason))
    await recorded.recorder.write()
    assert bool(recorded.log.kept) is is_kept


async def test_other_families_are_not_recorded() -> None:
    recorded = Recorded()
    recorded.offer(target=made(family="iris"))
    await recorded.recorder.write()
    assert (recorded.log.kept, recorded.counts.dropped) == ([], 0)


async def test_what_comes_while_the_queue_is_full_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_requests, "MAX_WAITING", 3)
    recorded = Recorded()
    for _ in range(5):
        recorded.offer()
    await recorded.recorder.write()
    recorded.offer()
    await recorded.recorder.write()
    assert (len(recorded.log.kept), recorded.counts.kept, recorded.counts.dropped) == (4, 4, 2)


async def test_large_requests_fill_the_queue_by_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_requests, "MAX_WAITING_VALUES", 5)
    recorded = Recorded()
    for _ in range(5):
        recorded.offer()
    await recorded.recorder.write()
    assert (recorded.counts.kept, recorded.counts.dropped) == (2, 3)


async def test_disk_that_is_full_drops_what_waits_and_the_next_is_kept() -> None:
    recorded = Recorded()
    recorded.log.error = StoreError("no space left")
    recorded.offer()
    await recorded.recorder.write()
    recorded.log.error = None
    recorded.offer()
    await recorded.recorder.write()
    assert (recorded.counts.kept, recorded.counts.dropped) == (1, 1)


async def test_answers_that_json_has_no_word_for_are_left_out() -> None:
    recorded = Recorded()
    recorded.offer(outputs=answer(float("nan")))
    recorded.offer(outputs=np.array([["setosa"]]))
    await recorded.recorder.write()
    assert [one.outputs for _, one in recorded.log.kept] == [[["setosa"]]]
    assert (recorded.counts.kept, recorded.counts.dropped) == (1, 1)


async def test_nothing_is_recorded_where_what_is_to_be_redacted_is_no_input() -> None:
    recorded = Recorded(redact=("income",))
    recorded.offer()
    await recorded.recorder.write()
    assert (recorded.log.kept, recorded.counts.dropped) == ([], 1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(1e3, 1e9), min_size=2, max_size=2), min_size=1, max_size=20))
async def test_redacted_values_never_reach_the_disk(rows: list[list[float]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        log = RequestFiles(Path(name), max_requests=1000, max_bytes=1 << 20, now_s=FakeClock().now_s)
        recorder = RequestRecorder({FAMILY: (log, RecordSettings(redact=("ram",)))}, RecordCounts())
        target = made()
        for row in rows:
            recorder.offer(target, [[7.0, row[1]]], answer(5.0), 0.25)
        recorder.offer(target, np.array(rows), answer(*([5.0] * len(rows))), 0.25)
        await recorder.write()
        found = [row for _, one in RecordedFiles(Path(name)) for row in one.rows]
        assert {row[1] for row in found} == {0.0}
        assert [row[0] for row in found] == [7.0] * len(rows) + [row[0] for row in rows]
        written = b"".join(path.read_bytes() for path in Path(name).iterdir())
        others = {repr(row[0]) for row in rows}
        assert not [row for row in rows if repr(row[1]) not in others and repr(row[1]).encode() in written]


async def test_rows_of_the_request_itself_stay_as_they_are() -> None:
    recorded = Recorded(redact=("cpu",))
    rows = np.array([[1.0, 2.0]])
    recorded.recorder.offer(made(), rows, answer(5.0), 0.25)
    await recorded.recorder.write()
    assert rows.tolist() == [[1.0, 2.0]]
    assert recorded.log.kept[0][1].rows == [[0.0, 2.0]]
