"""Runs a version on recorded requests and compares its answers with those that were given live."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.diff_report import diff_of
from serve_app.domain.recording import (
    MAX_TOLD_FAILURES,
    RecordedRequest,
    RecordFacts,
    RecordHead,
    ReplayError,
    ReplayFailure,
    ReplayReport,
    columns_told,
    places_of,
    widths,
)
from serve_app.usecases.compare_answers import Comparison, Pair, count_compared
from serve_app.usecases.count_evidence import ShadowTally, VariantTally
from serve_app.usecases.load_model import LoadedModel
from serve_app.usecases.ports import Predictor

MAX_ERROR: Final = 500
Recorded = Iterable[tuple[RecordHead, RecordedRequest]]


class RequestReplay:
    """One version on trial, and what comes of its answers.

    Args:
        family: The family that recorded.
        candidate: The version, loaded.
        again: The version that answered, loaded, where inputs are redacted: its recorded answers do not fit them.
        comparison: When answers agree.
        max_s: Seconds after which no further request is run.
        now_s: Seconds that never go back.
    """

    def __init__(
        self,
        family: str,
        candidate: LoadedModel,
        again: LoadedModel | None,
        *,
        comparison: Comparison,
        max_s: float,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._family = family
        self._candidate = candidate
        self._again = again
        self._comparison = comparison
        self._max_s = max_s
        self._now_s = now_s
        self._tally = ShadowTally(candidate.facts.version)
        self._copies = VariantTally()
        self._failures: list[ReplayFailure] = []

    def run(self, recorded: Recorded, facts: RecordFacts) -> ReplayReport:
        """Run the requests in their order, and return what came of it; `facts` are theirs.

        Raises:
            ReplayError: The version takes or gives other columns than were recorded.
        """
        until_s = self._now_s() + self._max_s
        replayed = 0
        for number, (head, request) in enumerate(recorded, 1):
            if replayed and self._now_s() >= until_s:
                break
            self._run(number, head, request)
            replayed += 1
        return ReplayReport(
            family=self._family,
            version=self._candidate.facts.version,
            record=facts,
            replayed=replayed,
            compared_with=self._again.facts.version if self._again is not None else "",
            diff=diff_of([(self._tally.reported(), self._copies.measured())]),
            failures=tuple(self._failures),
        )

    def _run(self, number: int, head: RecordHead, request: RecordedRequest) -> None:
        rows = np.array(request.rows, dtype=np.float64)
        live = np.array(request.outputs)
        if self._again is not None:
            live = _answer(self._again.predictor, rows, head)
        started_s = self._now_s()
        self._tally.copied += 1
        try:
            outputs = _answer(self._candidate.predictor, rows, head)
        except ReplayError:
            raise
        except Exception as error:  # the model's code may raise anything
            self._copies.count(500, self._now_s() - started_s)
            self._tally.failed += 1
            if len(self._failures) < MAX_TOLD_FAILURES:
                told = f"{type(error).__name__}: {error}"[:MAX_ERROR]
                self._failures.append(ReplayFailure(number=number, at_s=request.at_s, error=told))
            return
        self._copies.count(200, self._now_s() - started_s)
        self._tally.live.count(200, request.seconds)
        count_compared(self._tally, self._copies, Pair(rows, live, outputs), self._comparison)


def facts_of(recorded: Recorded) -> RecordFacts:
    """Say what requests these are."""
    times: list[float] = []
    answered: Counter[str] = Counter()
    redacted: set[str] = set()
    for head, request in recorded:
        times.append(request.at_s)
        answered[request.version] += 1
        redacted.update(head.redacted)
    return RecordFacts(
        requests=len(times),
        from_s=min(times, default=None),
        to_s=max(times, default=None),
        answered_by=dict(answered.most_common()),
        redacted=tuple(sorted(redacted)),
    )


def _answer(predictor: Predictor, rows: NDArray[np.float64], head: RecordHead) -> NDArray[Any]:
    """Have a model answer rows as they were recorded, in the order of the recorded columns.

    Raises:
        ReplayError: It takes or gives other columns.
    """
    taken, given = widths(predictor.signature.inputs), widths(predictor.signature.outputs)
    inputs, places = places_of(head.inputs, taken), places_of(given, head.outputs)
    if inputs is None:
        raise ReplayError(f"inputs: expected {columns_told(head.inputs)}, as recorded, found {columns_told(taken)}")
    if places is None:
        raise ReplayError(f"outputs: expected {columns_told(head.outputs)}, as recorded, found {columns_told(given)}")
    outputs = predictor.predict(rows[:, inputs])
    expected = (len(rows), predictor.signature.output_width)
    if outputs.shape != expected:
        raise ValueError(f"expected outputs of shape {expected}, found {outputs.shape}")
    return outputs[:, places]
