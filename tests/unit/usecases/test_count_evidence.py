import pytest

from serve_app.domain.evidence import Measurement
from serve_app.domain.exposure import FORGET_AFTER_S, MAX_WORST, WorstInput
from serve_app.domain.histogram import LatencyHistogram, bucket_of
from serve_app.domain.statistics import Moments
from serve_app.usecases.count_evidence import EvidenceBook, KeySketch, ShadowTally, VariantTally


def test_answers_are_counted_as_they_would_be_one_by_one() -> None:
    tally = VariantTally()
    latencies = (0.00005, 0.004, 0.0041, 3600.0)
    for status, seconds in zip((200, 200, 500, 503), latencies, strict=True):
        tally.count(status, seconds)
    counts: dict[int, int] = {}
    for seconds in latencies:
        counts[bucket_of(seconds)] = counts.get(bucket_of(seconds), 0) + 1
    found = tally.measured()
    assert (found.requests, found.errors) == (4, 2)
    assert found.latency == LatencyHistogram(counts=counts)
    expected = Moments.of(latencies)
    assert found.latency_s.count == 4
    assert found.latency_s.total == pytest.approx(expected.total)
    assert found.latency_s.squares == pytest.approx(expected.squares)


@pytest.mark.parametrize("status", [400, 404, 413, 415, 422, 499])
def test_what_is_the_clients_fault_counts_nowhere(status: int) -> None:
    tally = VariantTally()
    tally.count(status, 0.01)
    assert tally.measured() == Measurement()


def test_sketch_counts_different_keys() -> None:
    sketch = KeySketch()
    new = sum(sketch.add(f"user-{i}") for i in range(100_000))
    assert not any(sketch.add(f"user-{i}") for i in range(1000))
    assert sketch.distinct == pytest.approx(100_000, rel=0.01)
    assert 0.9 < new / 100_000 < 1.0


def test_empty_sketch_counts_none() -> None:
    assert KeySketch().distinct == 0


def test_split_is_forgotten_a_minute_after_the_table_ceased_to_name_it() -> None:
    now_s = 0.0
    book = EvidenceBook(now_s=lambda: now_s)
    for salt in ("one", "two"):
        book.of("iris", salt).drawn["stable", "hash"] = VariantTally()
    book.keep({"iris": "two"})
    now_s = FORGET_AFTER_S - 1
    book.keep({"iris": "two"})
    assert set(book.report("g1").families["iris"]) == {"one", "two"}
    now_s = FORGET_AFTER_S
    book.keep({"iris": "two"})
    assert set(book.report("g1").families["iris"]) == {"two"}


def test_split_that_comes_back_in_time_goes_on_counting() -> None:
    now_s = 0.0
    book = EvidenceBook(now_s=lambda: now_s)
    tally = book.of("iris", "one")
    book.keep({})
    now_s = FORGET_AFTER_S - 1
    book.keep({"iris": "one"})
    now_s = FORGET_AFTER_S * 3
    book.keep({"iris": "one"})
    assert book.of("iris", "one") is tally


def test_only_the_worst_inputs_are_kept_and_the_worst_is_first() -> None:
    tally = ShadowTally("v2")
    for i in range(MAX_WORST * 2):
        assert tally.is_among_worst(float(i + 1))
        tally.keep(WorstInput(difference=float(i + 1), rows=((1.0,),), live=((1.0,),), shadow=((2.0,),)))
    assert [one.difference for one in tally.reported().worst] == [float(i) for i in range(2 * MAX_WORST, MAX_WORST, -1)]
    assert not tally.is_among_worst(1.0)
    assert not ShadowTally("v2").is_among_worst(0.0)
