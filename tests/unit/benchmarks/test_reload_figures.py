from tests.benchmarks.reload_figures import (
    Memory,
    cut_and_refused,
    failed,
    full_capacity_s,
    growth,
    latencies,
    port_back_s,
    went_back,
)
from tests.traffic import Answer


def an_answer(
    at_s: float = 1.0, *, latency_s: float = 0.01, status: int = 200, generation: int = 1, connection: int = 0
) -> Answer:
    return Answer(at_s, latency_s, status, "v1", generation, connection)


def test_latencies_are_in_milliseconds() -> None:
    answers = [an_answer(latency_s=i / 1000) for i in range(1, 101)]
    found = latencies(answers)
    assert found is not None
    assert (found.requests, found.p50_ms, found.p99_ms, found.longest_ms) == (100, 51.0, 100.0, 100.0)


def test_a_window_without_answers_has_no_latencies() -> None:
    assert latencies([]) is None


def test_every_answer_but_200_is_a_failure() -> None:
    assert failed([an_answer(), an_answer(status=503), an_answer(status=0)]) == 2


def test_a_lower_generation_counts_on_the_same_connection_only() -> None:
    assert went_back([an_answer(generation=2), an_answer(generation=1, connection=1)]) == 0
    assert went_back([an_answer(generation=2), an_answer(generation=1), an_answer(generation=2)]) == 1


def test_each_answer_of_the_old_generation_after_a_newer_one_counts() -> None:
    assert went_back([an_answer(generation=2), an_answer(generation=1), an_answer(generation=1)]) == 2


def test_an_answer_without_a_generation_is_no_step_back() -> None:
    assert went_back([an_answer(generation=2), an_answer(status=0, generation=-1)]) == 0


def test_the_first_lost_request_of_a_connection_is_cut_and_those_after_it_are_refused() -> None:
    answers = [an_answer(), an_answer(status=0), an_answer(status=0), an_answer(), an_answer(status=0)]
    assert cut_and_refused(answers) == (2, 1)


def test_an_error_answer_is_neither_cut_nor_refused() -> None:
    assert cut_and_refused([an_answer(status=503), an_answer(status=503)]) == (0, 0)


def test_the_port_is_back_after_the_last_request_without_an_answer() -> None:
    answers = [an_answer(10.5, status=0), an_answer(12.0, status=0), an_answer(11.0), an_answer(13.0, status=503)]
    assert port_back_s(answers, since_s=10.0) == 2.0
    assert port_back_s([an_answer()], since_s=0.0) == 0.0


def test_capacity_is_full_again_after_the_last_bin_that_lacks_answers() -> None:
    steady = [an_answer(10 + i / 100) for i in range(400)]
    assert full_capacity_s(steady, since_s=10.0, until_s=14.0, per_s=100) == 0.0
    holed = [answer for answer in steady if not 10.7 < answer.at_s < 11.2]
    assert full_capacity_s(holed, since_s=10.0, until_s=14.0, per_s=100) == 1.5
    ended = [answer for answer in steady if answer.at_s < 12]
    assert full_capacity_s(ended, since_s=10.0, until_s=14.0, per_s=100) is None


def test_growth_counts_from_the_last_of_the_first_reloads() -> None:
    series = [
        Memory(reload=i, call_to_answer_s=0.1, rss_bytes={"gateway": size})
        for i, size in enumerate((50, 100, 110, 104))
    ]
    assert growth(series, after=1) == {"gateway": 110 / 100 - 1}
    assert growth(series, after=9) == {}
