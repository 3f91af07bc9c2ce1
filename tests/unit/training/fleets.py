"""Small fleets for the tests of the temporal family."""

from typing import Any

import numpy as np

from serve_app.adapters.loaders.tft.tft_config import Metric, TftConfig
from training.fit_tft import Plan
from training.fleet_data import Fleet

CPU = Metric(name="cpu_percent", unit="percent", minimum=0.0, maximum=100.0)
DISK = Metric(name="disk_io_mb_per_s", unit="MB/s", transform="log1p", minimum=0.0)
DAY_STEPS = 24
PLAN = Plan(epochs=4, batches=12, times=2, servers=4, learning_rate=1e-2, patience=9, seed=3)


def hourly_fleet(*, servers: int = 5, days: int = 20, seed: int = 0) -> Fleet:
    """Return a fleet of hourly steps that goes up and down every day, with noise; some values are missing."""
    rng = np.random.default_rng(seed)
    steps = np.arange(days * DAY_STEPS)
    season = np.sin(2 * np.pi * steps / DAY_STEPS)
    levels = rng.uniform(25, 60, size=(servers, 1))
    cpu = levels + 15 * season + rng.normal(scale=3.0, size=(servers, len(steps)))
    disk = np.exp(1.0 + 0.5 * season + rng.normal(scale=0.3, size=(servers, len(steps))))
    values = np.stack([cpu.clip(0, 100), disk], axis=-1).astype(np.float32)
    values[rng.random(values.shape) < 0.01] = np.nan
    names = tuple(f"server-{i}" for i in range(servers))
    return Fleet(names, (CPU, DISK), 3600, 1_767_571_200.0, values, {"kind": "test"})


def hourly_config(**changes: Any) -> TftConfig:
    """Return a small network for it."""
    known: dict[str, Any] = {
        "max_encoder_length": 24,
        "max_prediction_length": 6,
        "step_seconds": 3600,
        "season_steps": 24,
        "metrics": (CPU, DISK),
        "hidden_size": 8,
        "attention_heads": 2,
    }
    return TftConfig(**known | changes)
