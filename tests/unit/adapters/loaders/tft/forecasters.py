"""Small forecasters, and bundles of them, whose details do not matter."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.adapters.loaders.tft.forecaster import TftForecaster
from serve_app.adapters.loaders.tft.server_mapping import ServerMapping
from serve_app.adapters.loaders.tft.tft_config import Metric, TftConfig
from serve_app.adapters.loaders.tft.weights import weights_bytes
from serve_app.usecases.ports import Bundle
from tests import builders

SERVERS = ("web-01", "web-02", "db-01")
END_S = 1_767_571_200.0 + 30 * 3600
CPU = Metric(name="cpu_percent", unit="percent", minimum=0.0, maximum=100.0)
DISK = Metric(name="disk_io_mb_per_s", unit="MB/s", transform="log1p", minimum=0.0)


def config(**changes: Any) -> TftConfig:
    """Return the configuration of a network that passes a window in a millisecond."""
    known: dict[str, Any] = {
        "max_encoder_length": 12,
        "max_prediction_length": 4,
        "season_steps": 6,
        "metrics": (CPU, DISK),
        "hidden_size": 8,
        "attention_heads": 2,
    }
    return TftConfig(**known | changes)


def forecaster(*, seed: int = 0, scatter: float = 0.3, **changes: Any) -> TftForecaster:
    """Return an untrained forecaster whose every tensor is random, so that nothing is hidden by a zero."""
    torch.manual_seed(seed)
    made = TftForecaster(config(**changes), len(SERVERS))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * scatter)
        made.normaliser.centre.copy_(torch.tensor([[40.0, 2.0], [30.0, 1.0], [45.0, 2.0], [60.0, 3.0]]))
        made.normaliser.scale.copy_(torch.tensor([[10.0, 0.5], [8.0, 0.4], [12.0, 0.5], [9.0, 0.8]]))
    return made.eval().requires_grad_(False)


def windows(n: int, made: TftForecaster | None = None, *, seed: int = 1) -> NDArray[np.float32]:
    """Return windows in the metrics' units, float32 (n, 12, 2)."""
    shape = config() if made is None else made.config
    rng = np.random.default_rng(seed)
    size = (n, shape.max_encoder_length, len(shape.metrics))
    return (rng.random(size) * 40 + 10).astype(np.float32)


def end_times(n: int) -> NDArray[np.float64]:
    """Return end times that differ, float64 (n,)."""
    return END_S + 300 * np.arange(n, dtype=np.float64)


def files(made: TftForecaster | None = None) -> dict[str, bytes]:
    """Return the files of a bundle."""
    used = forecaster() if made is None else made
    return {
        "config.json": used.config.model_dump_json().encode(),
        "model.safetensors": weights_bytes(used),
        "server_mapping.json": ServerMapping.of(SERVERS).to_bytes(),
    }


def bundle(contents: Mapping[str, bytes] | None = None, **facts: Any) -> Bundle:
    """Return a bundle in memory."""
    known = {"models_type": "tft", "loader": "torch", "family": "tft", "model_version": "tft_model_20260130_090000"}
    return builders.bundle(files() if contents is None else contents, **known | facts)


def changed_config(**changes: Any) -> bytes:
    """Return a `config.json` with some keys changed; one that is set to None is removed."""
    document = json.loads(config().model_dump_json()) | changes
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()
