"""Windows as rows: how an entity's last observations become one float64 row of a batch, and the answer an array again.

A row is `[server_key, end_time_s, window]`, the window flattened step by step, oldest first, each step with all metrics
in the order of the `TemporalShape`; NaN is a value that was not observed. An answer is flattened the same way: future
step, metric, quantile. So the rows travel, batch and are checked like those of any other family.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.errors import InvalidInputError
from serve_app.domain.temporal import TemporalShape

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_HEAD = 2
_KEPT_KEYS = 1 << 16
"""Keys that are remembered: a fleet is asked for again and again, and a sha256 costs more than the rest of its row."""


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """What `unpack_rows` gives: windows float32 (batch, encoder_length, n_metrics), times and keys of the entities."""

    windows: Float32
    end_times_s: Float64
    server_keys: NDArray[np.int64]


@lru_cache(maxsize=_KEPT_KEYS)
def server_key(server: str) -> int:
    """Return the number that stands for a server, or any other entity, in a row: 48 bits of the sha256 of its name.

    It is the same for every version, so a row fits whichever version predicts it; float64 holds it exactly. The chance
    that two of 10,000 servers share one is below 1 in 5 million; a bundle whose servers do is refused.
    """
    return int.from_bytes(hashlib.sha256(server.encode()).digest()[:6])


def pack_rows(shape: TemporalShape, windows: Float32, end_times_s: Float64, entities: Sequence[str]) -> Float64:
    """Return float64 rows (batch, 2 + encoder_length * n_metrics).

    Args:
        shape: Of the model that is to predict.
        windows: float32 (batch, n_steps, n_metrics) with at most `max_encoder_length` steps; a shorter window, of an
            entity that was seen only recently, is filled with NaN in front.
        end_times_s: Seconds since the epoch of the last step, float64 (batch,).
        entities: Names; the model need not know them.

    Raises:
        InvalidInputError: The arrays do not fit the model or each other.
    """
    n_metrics, length = len(shape.metrics), shape.max_encoder_length
    if windows.ndim != 3 or windows.shape[2] != n_metrics or not 1 <= windows.shape[1] <= length:
        raise InvalidInputError(
            f"expected windows of shape (batch, 1 to {length}, {n_metrics}), found {tuple(windows.shape)}"
        )
    if not len(windows) == len(end_times_s) == len(entities):
        raise InvalidInputError(
            f"expected as many times and entities as windows ({len(windows)}), "
            f"found {len(end_times_s)} and {len(entities)}"
        )
    rows = np.empty((len(windows), _HEAD + length * n_metrics))
    first = rows.shape[1] - windows.shape[1] * n_metrics
    rows[:, 0] = [server_key(entity) for entity in entities]
    rows[:, 1] = end_times_s
    rows[:, _HEAD:first] = np.nan
    rows[:, first:] = windows.reshape(len(windows), windows.shape[1] * n_metrics)
    return rows


def unpack_rows(shape: TemporalShape, rows: Float64) -> WindowBatch:
    """Take rows apart again; the reverse of `pack_rows`.

    Raises:
        InvalidInputError: The rows have another width, or a head that is no key or no time.
    """
    width = _HEAD + shape.max_encoder_length * len(shape.metrics)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise InvalidInputError(f"expected rows of {width} values, found an array of shape {tuple(rows.shape)}")
    if not np.isfinite(rows[:, :_HEAD]).all():
        raise InvalidInputError("expected a server_key and an end_time_s in each row, found one that is not finite")
    return WindowBatch(
        windows=rows[:, _HEAD:].astype(np.float32).reshape(len(rows), shape.max_encoder_length, len(shape.metrics)),
        end_times_s=rows[:, 1],
        server_keys=rows[:, 0].astype(np.int64),
    )


def pack_forecasts(forecasts: Float32) -> Float64:
    """Flatten float32 (batch, prediction_length, n_metrics, n_quantiles) into answers, float64 (batch, width)."""
    return forecasts.reshape(len(forecasts), -1).astype(np.float64)


def unpack_forecasts(shape: TemporalShape, outputs: Float64) -> Float32:
    """Return answers as float32 (batch, prediction_length, n_metrics, n_quantiles); the reverse of `pack_forecasts`."""
    answer = (len(outputs), shape.max_prediction_length, len(shape.metrics), len(shape.quantiles))
    return outputs.reshape(answer).astype(np.float32)
