"""LitServe with batching; runs in this peer's own environment."""

import argparse
from pathlib import Path
from typing import Any

import joblib
import litserve  # type: ignore[import-not-found, unused-ignore]  # it lives in this peer's environment only
import numpy as np
from numpy.typing import NDArray


class Forest(litserve.LitAPI):  # type: ignore[misc, unused-ignore]  # the base class is unknown outside that environment
    """One forest; a batch is one array of shape (batch, 4)."""

    def __init__(self, path: Path, **batching: Any) -> None:
        """Remember where the model lies; each worker loads its own copy in `setup`."""
        super().__init__(**batching)
        self._path = path

    def setup(self, device: str) -> None:
        """Load the model."""
        self._model = joblib.load(self._path)

    def decode_request(self, request: dict[str, list[list[float]]]) -> list[float]:
        """Take the one row of the body."""
        return request["instances"][0]

    def batch(self, inputs: list[list[float]]) -> NDArray[np.float64]:
        """Stack the rows that wait."""
        return np.asarray(inputs, dtype=np.float64)

    def predict(self, batch: NDArray[np.float64]) -> list[float]:
        """Predict the stacked rows."""
        predictions: list[float] = self._model.predict(batch).tolist()
        return predictions

    def unbatch(self, output: list[float]) -> list[float]:
        """Give each request its prediction."""
        return output

    def encode_response(self, output: float) -> dict[str, list[float]]:
        """Answer in the same shape as the others."""
        return {"predictions": [output]}


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--spare-ports", type=int, nargs=2, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--api-servers", type=int, default=1)
    parser.add_argument("--max-batch-size", type=int, default=32)
    parser.add_argument("--batch-timeout-s", type=float, default=0.005)
    parser.add_argument("--fast-queue", action="store_true")
    options = parser.parse_args()
    api = Forest(options.model, max_batch_size=options.max_batch_size, batch_timeout=options.batch_timeout_s)
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=options.workers, fast_queue=options.fast_queue
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=options.api_servers,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
