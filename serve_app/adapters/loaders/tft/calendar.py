"""What is known of every step without looking at it: where it lies in the day and in the week."""

import numpy as np

from serve_app.adapters.loaders.tft.tft_config import KnownFeature, TftConfig
from serve_app.usecases.window_rows import Float32, Float64

_DAY_S, _WEEK_S = 86_400, 7 * 86_400


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
