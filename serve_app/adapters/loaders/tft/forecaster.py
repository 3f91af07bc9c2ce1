"""A loaded Temporal Fusion Transformer: windows in, quantiles in the metrics' units out, and why."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serve_app.adapters.loaders.tft.calendar import known_features
from serve_app.adapters.loaders.tft.network import Inputs, Outcome, TemporalFusionTransformer
from serve_app.adapters.loaders.tft.normaliser import Normalised, Normaliser
from serve_app.adapters.loaders.tft.tft_config import TftConfig
from serve_app.usecases.window_rows import Float32, Float64

CHUNK_WINDOWS = 32
"""Windows that pass the network at once on a CPU: with more, what is between two layers no longer fits its caches."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a prediction rests on; all shares are float32 and sum to 1 over their last axis.

    Attributes:
        static: (batch, n_static), of `config.static_variables`.
        past: (batch, encoder_length, n_past), of `config.past_variables`, for each step of the window.
        future: (batch, prediction_length, n_future), of `config.future_variables`, for each future step.
        attention: (batch, prediction_length, encoder_length + prediction_length), of each future step over the window
            and the future; 0 for steps after it.
    """

    static: Float32
    past: Float32
    future: Float32
    attention: Float32


class TftForecaster(nn.Module):
    """Normaliser and network together; its tensors are those of `model.safetensors`.

    `forecast` and `explain` may be called from several threads at once and keep nothing between calls.
    """

    def __init__(self, config: TftConfig, n_servers: int) -> None:
        super().__init__()
        self.config = config
        self.computes_in_bf16 = False
        self.normaliser = Normaliser(config.metrics, n_servers)
        self.network = TemporalFusionTransformer(config, n_servers)

    def forward(self, windows: Tensor, known: Tensor, servers: Tensor) -> tuple[Outcome, Normalised]:
        """Predict on the scale of the windows.

        Args:
            windows: float32 (B, T, M) in the metrics' units, NaN for what was not observed.
            known: float32 (G, T + H, K), see `Inputs`.
            servers: int64 (B,), 0 for an unknown server.
        """
        normalised: Normalised = self.normaliser(windows, servers)
        outcome: Outcome = self.network(
            Inputs(normalised.values, normalised.observed, known, servers, normalised.level)
        )
        return outcome, normalised

    def forecast(self, windows: Float32, end_times_s: Float64, servers: NDArray[np.int64]) -> Float32:
        """Forecast the steps after each window.

        Args:
            windows: float32 (batch, encoder_length, n_metrics) in the metrics' units, NaN for what was not observed.
            end_times_s: Seconds since the epoch of each window's last step, float64 (batch,).
            servers: Numbers of the servers as in `server_mapping.json`, int64 (batch,); 0 for an unknown one.

        Returns:
            float32 (batch, prediction_length, n_metrics, n_quantiles), ascending in the quantiles.
        """
        config = self.config
        shape = (config.max_prediction_length, len(config.metrics), len(config.quantiles))
        parts = [
            self.normaliser.restored(outcome.quantiles.float(), normalised).float().cpu().numpy()
            for outcome, normalised in self._passes(windows, end_times_s, servers)
        ]
        return np.concatenate([np.empty((0, *shape), dtype=np.float32), *parts])

    def explain(self, windows: Float32, end_times_s: Float64, servers: NDArray[np.int64]) -> Explanation:
        """Say what the forecasts of the same arguments rest on."""
        outcomes = [outcome for outcome, _ in self._passes(windows, end_times_s, servers)]

        def joined(part: Callable[[Outcome], Tensor]) -> Float32:
            return np.concatenate([part(outcome).float().cpu().numpy() for outcome in outcomes])

        return Explanation(
            static=joined(lambda outcome: outcome.static_weights),
            past=joined(lambda outcome: outcome.past_weights),
            future=joined(lambda outcome: outcome.future_weights),
            attention=joined(lambda outcome: outcome.attention),
        )

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.normaliser.centre.device

    def _passes(
        self, windows: Float32, end_times_s: Float64, servers: NDArray[np.int64]
    ) -> Iterator[tuple[Outcome, Normalised]]:
        """Pass the batch through the network, on a CPU in chunks, on anything else at once."""
        known = torch.from_numpy(known_features(self.config, end_times_s))
        chunk = CHUNK_WINDOWS if self.device.type == "cpu" else max(1, len(windows))
        for first in range(0, len(windows), chunk):
            here = slice(first, first + chunk)
            tensors = (
                torch.from_numpy(np.ascontiguousarray(windows[here], dtype=np.float32)),
                known if len(known) == 1 else known[here],
                torch.from_numpy(np.ascontiguousarray(servers[here], dtype=np.int64)),
            )
            bf16 = torch.autocast(self.device.type, torch.bfloat16, enabled=self.computes_in_bf16)
            with torch.inference_mode(), bf16:
                result: tuple[Outcome, Normalised] = self(*(tensor.to(self.device) for tensor in tensors))
            yield result
