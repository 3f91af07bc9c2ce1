"""The arithmetic of common scikit-learn scalers without their input checks, where it gives the same bits."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import MinMaxScaler, StandardScaler

Rows = NDArray[np.float64]
Scaling = Callable[[Rows], Rows]


def forward(scaler: Any, n_columns: int) -> Scaling:
    """Return a function equal to `scaler.transform`: float64 (batch, n) -> float64 (batch, n)."""
    fast = _forward_arithmetic(scaler)
    return _proven(fast, scaler.transform, scaler, n_columns)


def backward(scaler: Any) -> Scaling:
    """Return a function equal to `scaler.inverse_transform` of one column: float64 (batch, 1) -> float64 (batch, 1)."""
    fast = _backward_arithmetic(scaler)
    return _proven(fast, scaler.inverse_transform, scaler, 1)


def _forward_arithmetic(scaler: Any) -> Scaling | None:
    if type(scaler) is StandardScaler:
        return _steps((np.subtract, scaler.mean_ if scaler.with_mean else None), (np.divide, scaler.scale_))
    if type(scaler) is MinMaxScaler and not scaler.clip:
        return _steps((np.multiply, scaler.scale_), (np.add, scaler.min_))
    return None


def _backward_arithmetic(scaler: Any) -> Scaling | None:
    if type(scaler) is StandardScaler:
        return _steps((np.multiply, scaler.scale_), (np.add, scaler.mean_ if scaler.with_mean else None))
    if type(scaler) is MinMaxScaler:
        return _steps((np.subtract, scaler.min_), (np.divide, scaler.scale_))
    return None


def _steps(*steps: tuple[np.ufunc, Any]) -> Scaling:
    """Apply each step that has an operand, in scikit-learn's order, for the order decides the last bit."""
    present = [(step, np.asarray(operand, dtype=np.float64)) for step, operand in steps if operand is not None]

    def apply(rows: Rows) -> Rows:
        for operation, operand in present:
            rows = operation(rows, operand)
        return rows

    return apply


def _proven(fast: Scaling | None, slow: Scaling, scaler: Any, n_columns: int) -> Scaling:
    """Return `fast` if it gives the bits of `slow` on rows of many magnitudes, else `slow`."""
    # A scaler fitted on a data frame warns at each array that it gets; the names were checked against the signature.
    if "feature_names_in_" in getattr(scaler, "__dict__", {}):
        del scaler.feature_names_in_
    if fast is None:
        return lambda rows: np.asarray(slow(rows), dtype=np.float64)
    random = np.random.default_rng(20260130)
    rows = random.standard_normal((256, n_columns)) * 10.0 ** random.integers(-6, 7, size=(256, n_columns))
    return fast if np.array_equal(fast(rows), slow(rows)) else slow
