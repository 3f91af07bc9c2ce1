"""A version is run on recorded requests, and compared with what was answered."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.domain.recording import MAX_TOLD_FAILURES, RecordedRequest, RecordHead, ReplayError, ReplayReport
from serve_app.domain.signature import Signature
from serve_app.usecases.compare_answers import Comparison
from serve_app.usecases.load_model import LoadedModel
from serve_app.usecases.replay_requests import RequestReplay, facts_of
from tests.recorded import head, request, signature
from tests.reports import loaded

FAMILY = "forecaster"
Answer = Callable[[NDArray[np.float64]], NDArray[Any]]


class Model:
    """A predictor made of a function."""

    artifact_bytes = 1

    def __init__(self, answer: Answer, columns: Signature) -> None:
        self.engine: dict[str, str] = {}
        self._answer = answer
        self.signature = columns

    def predict(self, rows: NDArray[np.float64]) -> NDArray[Any]:
        return self._answer(rows)


def model(answer: Answer, version: str = "v2", columns: Signature | None = None) -> LoadedModel:
    columns = columns or signature()
    return LoadedModel(Model(answer, columns), loaded(version, signature=columns))


def first_input(rows: NDArray[np.float64]) -> NDArray[Any]:
    return rows[:, :1]


def replay(
    candidate: LoadedModel, *requests: RecordedRequest, again: LoadedModel | None = None, of: RecordHead | None = None,
    max_s: float = 1e6, keeps_inputs: bool = False,
) -> ReplayReport:  # fmt: skip
    recorded = [(of or head(), one) for one in requests]
    comparison = Comparison(rtol=1e-3, atol=1e-9, keeps_inputs=keeps_inputs)
    now_s = iter(float(i) for i in range(10_000))
    replayed = RequestReplay(FAMILY, candidate, again, comparison=comparison, max_s=max_s, now_s=lambda: next(now_s))
    return replayed.run(recorded, facts_of(recorded))


def test_equal_version_agrees_with_all_that_was_answered() -> None:
    sent = [request(float(i), i + 0.5, 1.0, answer=i + 0.5, version="v1" if i else "v0") for i in range(4)]
    report = replay(model(first_input), *sent)
    assert (report.version, report.replayed, report.compared_with) == ("v2", 4, "")
    assert (report.diff.agreement, report.diff.compared, report.diff.failed) == (1.0, 4, 0)
    assert (report.record.requests, report.record.from_s, report.record.to_s) == (4, 0.0, 3.0)
    assert dict(report.record.answered_by) == {"v1": 3, "v0": 1}
    assert report.diff.live.mean_s == pytest.approx(0.01)


def test_other_version_is_told_with_how_far_it_is_off() -> None:
    sent = [request(float(i), 1.0, 1.0, answer=1.0) for i in range(3)] + [request(3.0, 3.0, 1.0, answer=1.0)]
    report = replay(model(first_input), *sent, keeps_inputs=True)
    assert (report.diff.agreement, report.diff.disagreed) == (0.75, 1)
    assert report.diff.differences.largest == pytest.approx(2.0, rel=0.1)
    (worst,) = report.diff.worst
    assert (worst.rows, worst.live, worst.shadow) == (((3.0, 1.0),), ((1.0,),), ((3.0,),))


def test_requests_that_fail_are_told_with_their_error_and_the_rest_is_run() -> None:
    def moody(rows: NDArray[np.float64]) -> NDArray[Any]:
        if rows[0, 0] < 0:
            raise RuntimeError("no negative load")
        return rows[:, :1]

    sent = [request(float(i), -1.0 if i % 2 else 1.0, 1.0, answer=1.0) for i in range(60)]
    report = replay(model(moody), *sent)
    assert (report.replayed, report.diff.failed, report.diff.compared, report.diff.agreement) == (60, 30, 30, 1.0)
    assert len(report.failures) == MAX_TOLD_FAILURES
    failure = report.failures[0]
    assert (failure.number, failure.at_s, failure.error) == (2, 1.0, "RuntimeError: no negative load")


def test_outputs_of_a_wrong_shape_have_failed() -> None:
    report = replay(model(lambda rows: np.zeros((len(rows), 2))), request(0.0))
    assert (report.diff.failed, "found (1, 2)" in report.failures[0].error) == (1, True)


def test_redacted_requests_are_compared_with_the_version_that_answered_again() -> None:
    sent = [request(float(i), 0.0, 4.0, answer=99.0) for i in range(3)]
    before = model(lambda rows: rows.sum(axis=1, keepdims=True), "v1")
    report = replay(model(lambda rows: rows[:, 1:]), *sent, again=before, of=head("cpu"))
    assert (report.compared_with, report.record.redacted, report.diff.agreement) == ("v1", ("cpu",), 1.0)
    assert replay(model(first_input), *sent, again=before, of=head("cpu")).diff.agreement == 0.0


def test_columns_in_another_order_are_put_in_the_model_s() -> None:
    swapped = signature(("ram", "cpu"), ("z", "y"))
    sent = RecordedRequest(0.0, "v1", [[1.0, 2.0]], [[1.0, 2.0]], 0.1)
    report = replay(model(lambda rows: rows, columns=swapped), sent, of=head(outputs=("y", "z")))
    assert report.diff.agreement == 1.0


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (signature(("cpu", "disk")), "inputs: expected cpu, ram, as recorded, found cpu, disk"),
        (signature(outputs=("y", "z")), "outputs: expected y, as recorded, found y, z"),
    ],
)
def test_version_of_other_columns_is_refused_in_one_sentence(columns: Signature, said: str) -> None:
    with pytest.raises(ReplayError, match=said):
        replay(model(first_input, columns=columns), request(0.0))


def test_replay_ends_when_its_time_is_up_and_says_how_far_it_came() -> None:
    report = replay(model(first_input), *[request(float(i), 1.0, 1.0, answer=1.0) for i in range(100)], max_s=30.0)
    assert 0 < report.replayed < 100
    assert (report.diff.compared, report.record.requests) == (report.replayed, 100)
