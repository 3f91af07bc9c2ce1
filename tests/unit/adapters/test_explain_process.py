import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from sklearn.linear_model import LinearRegression

from serve_app.adapters.explain_process import INSTALL, ExplainProcess
from serve_app.adapters.shap_values import ExplainedModel
from serve_app.domain.errors import CannotExplainError, UnavailableError
from tests.builders import rows

X = rows()


@pytest.fixture
def own() -> Iterator[ExplainProcess]:
    pytest.importorskip("shap", reason="shap is not installed: pip install -e '.[explain]'", exc_type=ImportError)
    process = ExplainProcess(timeout_s=120.0)
    yield process
    process.close()


def linear(factor: float = 1.0) -> ExplainedModel:
    return ExplainedModel(LinearRegression().fit(X, X @ np.array([1.0, 2.0, 3.0]) * factor), background=X[:4])


def test_nothing_is_started_before_it_is_asked() -> None:
    assert ExplainProcess().pid is None


def test_without_shap_it_is_said_what_to_install() -> None:
    process = ExplainProcess(is_installed=lambda: False)
    with pytest.raises(CannotExplainError) as caught:
        process.shares("a", linear(), X[:1], None)
    assert str(caught.value) == INSTALL
    assert process.pid is None


def test_process_stays_knows_its_models_and_starts_again_after_a_kill(own: ExplainProcess) -> None:
    first = own.shares("a", linear(), X[:2], None)
    pid = own.pid
    again = own.shares("a", linear(factor=9.0), X[:2], None)  # the key stands for what was sent with it first
    np.testing.assert_array_equal(again.contributions, first.contributions)
    assert own.pid == pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    after = own.shares("a", linear(), X[:2], None)
    np.testing.assert_array_equal(after.contributions, first.contributions)
    assert own.pid not in (None, pid)
    assert not psutil.pid_exists(pid)


def test_models_that_nobody_asked_for_lately_are_sent_again(explaining: ExplainProcess) -> None:
    first = explaining.shares("lately 0", linear(), X[:1], None)
    for i in range(1, 16):
        explaining.shares(f"lately {i}", linear(), X[:1], None)
    again = explaining.shares("lately 0", linear(), X[:1], None)
    np.testing.assert_array_equal(again.contributions, first.contributions)


def test_process_that_does_not_answer_is_killed_in_time() -> None:
    process = ExplainProcess(timeout_s=0.2, is_installed=lambda: True)
    started_s = time.monotonic()
    with pytest.raises(UnavailableError, match=r"no explanation within 0\.2 s"):  # it takes longer to start than that
        process.shares("a", linear(), X[:1], None)
    assert time.monotonic() - started_s < 5
    assert process.pid is None


class Stopping:
    """A model that kills its process when it predicts."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_model_that_ends_the_process_ends_nothing_else(own: ExplainProcess) -> None:
    with pytest.raises(UnavailableError, match="ended before it answered"):
        own.shares("a", ExplainedModel(Stopping()), X[:1], None)
    assert own.shares("b", linear(), X[:1], None).values.shape == (1,)


def test_model_that_cannot_be_pickled_is_told(explaining: ExplainProcess) -> None:
    with pytest.raises(CannotExplainError, match="cannot be handed to the process"):
        explaining.shares("not pickled", ExplainedModel(lambda: None), X[:1], None)


def test_threads_get_their_own_answers(explaining: ExplainProcess) -> None:
    answers: dict[int, float] = {}

    def ask(factor: int) -> None:
        answers[factor] = float(explaining.shares(f"times {factor}", linear(float(factor)), X[:1], None).values[0])

    threads = [threading.Thread(target=ask, args=(factor,)) for factor in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = float(X[0] @ np.array([1.0, 2.0, 3.0]))
    assert answers == pytest.approx({factor: expected * factor for factor in range(1, 5)})
