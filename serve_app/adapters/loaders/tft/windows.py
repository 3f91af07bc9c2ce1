"""Windows as rows: how a server's last observations become one float64 row of a batch, and the answer an array again.

A row is `[server_key, end_time_s, window]`, the window flattened step by step, oldest first, each step with all metrics
in the order of the configuration; NaN is a value that was not observed. An answer is flattened the same way: future
step, metric, quantile. So the rows travel, batch and are checked like those of any other family.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.adapters.loaders.tft.tft_config import KnownFeature, TftConfig
from serve_app.domain.errors import InvalidInputError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_HEAD = 2
_DAY_S, _WEEK_S = 86_400, 7 * 86_400


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """What `unpack_rows` gives: windows float32 (batch, encoder_length, n_metrics), times and keys of the servers."""

    windows: Float32
    end_times_s: Float64
    server_keys: NDArray[np.int64]


def server_key(server: str) -> int:
    """Return the number that stands for a server in a row: the first 48 bits of the sha256 of its name.

    It is the same for every version, so a row fits whichever version predicts it; float64 holds it exactly. The chance
    that two of 10,000 servers share one is below 1 in 5 million; a bundle whose servers do is refused.
    """
    return int.from_bytes(hashlib.sha256(server.encode()).digest()[:6])


def pack_rows(config: TftConfig, windows: Float32, end_times_s: Float64, servers: Sequence[str]) -> Float64:
    """Return float64 rows (batch, 2 + encoder_length * n_metrics).

    Args:
        config: Of the model that is to predict.
        windows: float32 (batch, n_steps, n_metrics) with at most `max_encoder_length` steps; a shorter window, of a
            server that was seen only recently, is filled with NaN in front.
        end_times_s: Seconds since the epoch of the last step, float64 (batch,).
        servers: Names; the model need not know them.

    Raises:
        InvalidInputError: The shapes do not fit the configuration or each other.
    """
    n_metrics, length = len(config.metrics), config.max_encoder_length
    if windows.ndim != 3 or windows.shape[2] != n_metrics or not 1 <= windows.shape[1] <= length:
        raise InvalidInputError(
            f"expected windows of shape (batch, 1 to {length}, {n_metrics}), found {tuple(windows.shape)}"
        )
    if not len(windows) == len(end_times_s) == len(servers):
        raise InvalidInputError(
            f"expected as many times and servers as windows ({len(windows)}), "
            f"found {len(end_times_s)} and {len(servers)}"
        )
    rows = np.full((len(windows), _HEAD + length * n_metrics), np.nan)
    rows[:, 0] = [server_key(server) for server in servers]
    rows[:, 1] = end_times_s
    rows[:, rows.shape[1] - windows.shape[1] * n_metrics :] = windows.reshape(len(windows), -1)
    return rows


def unpack_rows(config: TftConfig, rows: Float64) -> WindowBatch:
    """Take rows apart again; the reverse of `pack_rows`.

    Raises:
        InvalidInputError: The rows have another width, or a head that is no key or no time.
    """
    width = _HEAD + config.max_encoder_length * len(config.metrics)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise InvalidInputError(f"expected rows of {width} values, found an array of shape {tuple(rows.shape)}")
    if not np.isfinite(rows[:, :_HEAD]).all():
        raise InvalidInputError("expected a server_key and an end_time_s in each row, found one that is not finite")
    return WindowBatch(
        windows=rows[:, _HEAD:].astype(np.float32).reshape(len(rows), config.max_encoder_length, len(config.metrics)),
        end_times_s=rows[:, 1],
        server_keys=rows[:, 0].astype(np.int64),
    )


def pack_forecasts(forecasts: Float32) -> Float64:
    """Flatten float32 (batch, prediction_length, n_metrics, n_quantiles) into answers, float64 (batch, n_outputs)."""
    return forecasts.reshape(len(forecasts), -1).astype(np.float64)


def unpack_forecasts(config: TftConfig, outputs: Float64) -> Float32:
    """Return answers as float32 (batch, prediction_length, n_metrics, n_quantiles); the reverse of `pack_forecasts`."""
    shape = (len(outputs), config.max_prediction_length, len(config.metrics), len(config.quantiles))
    return outputs.reshape(shape).astype(np.float32)


def known_features(config: TftConfig, end_times_s: Float64) -> Float32:
    """Return what the calendar says of all steps of window and future, UTC.

    Returns:
        float32 (batch, encoder_length + prediction_length, n_known), each from -1 to 1; of one row only where all
        windows end at the same time, as they do when a whole fleet is predicted.
    """
    ends = end_times_s[:1] if len(end_times_s) and (end_times_s == end_times_s[0]).all() else end_times_s
    steps = np.arange(1 - config.max_encoder_length, config.max_prediction_length + 1) * config.step_seconds
    times_s = ends[:, None] + steps
    return np.stack([_known(name, times_s) for name in config.known_features], axis=-1).astype(np.float32)


def _known(name: KnownFeature, times_s: Float64) -> Float64:
    period_s = _DAY_S if name.startswith("time_of_day") else _WEEK_S
    angle: Float64 = 2 * np.pi * np.mod(times_s, period_s) / period_s
    return np.sin(angle) if name.endswith("sin") else np.cos(angle)
