from tests.benchmarks.measurements import reason


def test_a_reason_is_one_line_without_the_places_of_this_machine() -> None:
    error = OSError("no such file:\n  /home/somebody/bench/model.joblib, fetched from https://example.org/simple/x")

    assert reason(error) == "no such file: …, fetched from …"


def test_a_long_reason_is_cut() -> None:
    assert len(reason(ValueError("x" * 5000))) == 300
