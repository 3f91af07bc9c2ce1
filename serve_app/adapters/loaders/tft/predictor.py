"""The forecaster behind the port that every family has: rows in, rows out."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.adapters.loaders.tft.forecaster import TftForecaster
from serve_app.adapters.loaders.tft.server_mapping import ServerMapping
from serve_app.adapters.loaders.tft.tft_config import TftConfig
from serve_app.domain.errors import PredictionError
from serve_app.domain.signature import Signature
from serve_app.domain.temporal import TemporalShape
from serve_app.usecases.explanation import TemporalWeights
from serve_app.usecases.window_rows import pack_forecasts, unpack_rows


class TftPredictor:
    """Predicts rows of `window_rows.pack_rows`, in any number of threads at once. Holds no state between calls."""

    def __init__(
        self, forecaster: TftForecaster, mapping: ServerMapping, *, artifact_bytes: int, precision: str = "float32"
    ) -> None:
        self._forecaster = forecaster
        self._mapping = mapping
        self._artifact_bytes = artifact_bytes
        self._signature = forecaster.config.signature()
        self._temporal = forecaster.config.temporal(len(mapping.servers))
        engine = f"torch {torch.__version__} on {forecaster.device.type} in {precision}"
        self._engine = dict.fromkeys(forecaster.config.metric_names, engine)

    @property
    def signature(self) -> Signature:
        """A window, its end and whose it is; the forecast."""
        return self._signature

    @property
    def engine(self) -> Mapping[str, str]:
        """Torch and the device, for each metric."""
        return self._engine

    @property
    def artifact_bytes(self) -> int:
        """Size of the files it was made of."""
        return self._artifact_bytes

    @property
    def config(self) -> TftConfig:
        """What `config.json` says."""
        return self._forecaster.config

    @property
    def temporal(self) -> TemporalShape:
        """What its windows and forecasts look like."""
        return self._temporal

    @property
    def entities(self) -> tuple[str, ...]:
        """The servers it was trained on, as every temporal model calls them."""
        return self._mapping.servers

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers it was trained on."""
        return self._mapping.servers

    @property
    def forecaster(self) -> TftForecaster:
        """The module itself, for those that have arrays instead of rows."""
        return self._forecaster

    def predict(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predict rows, float64 (batch, input_width) -> (batch, output_width); see `window_rows.unpack_forecasts`.

        Raises:
            InvalidInputError: The rows are none of this configuration.
            PredictionError: torch raised on these rows.
        """
        batch = unpack_rows(self._temporal, rows)
        servers = self._mapping.numbers_of_keys(batch.server_keys)
        try:
            return pack_forecasts(self._forecaster.forecast(batch.windows, batch.end_times_s, servers))
        except RuntimeError as error:  # torch's own, memory that does not suffice included
            raise PredictionError(f"{type(error).__name__}: {error}") from error

    def explain(self, rows: NDArray[np.float64]) -> TemporalWeights:
        """Say what the predictions of the same rows rest on; see `Explaining.explain`. Raises as `predict`."""
        batch = unpack_rows(self._temporal, rows)
        servers = self._mapping.numbers_of_keys(batch.server_keys)
        try:
            found = self._forecaster.explain(batch.windows, batch.end_times_s, servers)
        except RuntimeError as error:  # as above
            raise PredictionError(f"{type(error).__name__}: {error}") from error
        config = self.config
        return TemporalWeights(
            config.static_variables, config.past_variables, config.future_variables,
            found.static, found.past, found.future, found.attention,
        )  # fmt: skip
