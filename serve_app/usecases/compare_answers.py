"""Two answers to the same request: whether they agree, how far they are apart, and the count of it."""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.exposure import WorstInput
from serve_app.usecases.coalesce_requests import Rows
from serve_app.usecases.count_evidence import ShadowTally, VariantTally

MAX_KEPT_ROWS: Final = 10
"""Rows of one of the worst inputs; of a larger request only the first are kept."""
MAX_KEPT_VALUES: Final = 2000
"""Values of one of them; of wider rows fewer are kept."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Numbers agree when they differ by at most `atol + rtol * |live|`; `keeps_inputs`: the worst may be kept."""

    rtol: float = 1e-3
    atol: float = 1e-9
    keeps_inputs: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """What was asked, what was said live, and what the other version says."""

    rows: Rows
    live: NDArray[Any]
    other: NDArray[Any]


def count_compared(tally: ShadowTally, copies: VariantTally, pair: Pair, comparison: Comparison) -> bool:
    """Compare two answers, count what comes of it, and say whether they agree."""
    agree, difference = compared(pair.live, pair.other, rtol=comparison.rtol, atol=comparison.atol)
    copies.compared += 1
    copies.disagreed += not agree
    if difference is None:
        return agree
    mean, largest = difference
    tally.add_difference(mean)
    if comparison.keeps_inputs and tally.is_among_worst(largest):
        most = min(MAX_KEPT_ROWS, max(MAX_KEPT_VALUES // max(len(pair.rows[0]), 1), 1))
        rows = tuple(tuple(float(value) for value in row) for row in pair.rows[:most])
        live, other = _listed(pair.live[:most]), _listed(pair.other[:most])
        tally.keep(WorstInput(difference=largest, rows=rows, live=live, shadow=other))
    return agree


def compared(
    live: NDArray[Any], shadow: NDArray[Any], *, rtol: float, atol: float
) -> tuple[bool, tuple[float, float] | None]:
    """Say whether two answers (n_rows, n_outputs) agree, and their mean and largest absolute difference.

    Fractions agree within the bounds, everything else if it is equal. There is no difference of what are no numbers,
    of answers of different shapes, and of those that are not finite.
    """
    if live.shape != shadow.shape:
        return False, None
    if not (np.issubdtype(live.dtype, np.number) and np.issubdtype(shadow.dtype, np.number)):
        return bool(np.array_equal(live, shadow)), None
    differences = np.abs(live.astype(np.float64) - shadow.astype(np.float64))
    is_exact = np.issubdtype(live.dtype, np.integer) and np.issubdtype(shadow.dtype, np.integer)
    near = 0.0 if is_exact else rtol
    agree = bool(np.allclose(shadow, live, rtol=near, atol=0.0 if is_exact else atol, equal_nan=True))
    largest = float(differences.max(initial=0.0))
    return agree, (float(differences.mean()), largest) if math.isfinite(largest) and differences.size else None


def _listed(outputs: NDArray[Any]) -> tuple[tuple[float | str, ...], ...]:
    return tuple(tuple(value if isinstance(value, str) else float(value) for value in row) for row in outputs.tolist())
