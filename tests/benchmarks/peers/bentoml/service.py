"""The service that `bentoml serve` imports; `serve.py` says its settings in the environment."""

import os

import bentoml  # type: ignore[import-not-found, unused-ignore]  # it lives in this peer's environment only
import joblib
import numpy as np
from numpy.typing import NDArray


@bentoml.service(
    workers=int(os.environ["FOREST_WORKERS"]), traffic={"timeout": 60}, logging={"access": {"enabled": False}}
)
class Forest:
    """One forest in each worker."""

    def __init__(self) -> None:
        """Load the model."""
        self._model = joblib.load(os.environ["FOREST_MODEL"])

    @bentoml.api(  # type: ignore[untyped-decorator, unused-ignore]  # unknown outside that environment
        batchable=True,
        max_batch_size=int(os.environ["FOREST_MAX_BATCH_SIZE"]),
        max_latency_ms=int(os.environ["FOREST_MAX_LATENCY_MS"]),
    )
    def predict(self, instances: NDArray[np.float64]) -> list[float]:
        """Predict the stacked rows, float64 of shape (batch, 4)."""
        predictions: list[float] = self._model.predict(instances).tolist()
        return predictions
