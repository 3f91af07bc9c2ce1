"""Ray Serve, all options default: a FastAPI ingress before a model; runs in this peer's own environment."""

import argparse
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import joblib
import ray
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve


class Rows(BaseModel):
    """The body of a request."""

    instances: list[list[float]]


api = FastAPI()


@serve.deployment
class Forest:
    """The model."""

    def __init__(self, path: str) -> None:
        """Load the model."""
        self._model = joblib.load(path)

    def predict(self, instances: list[list[float]]) -> list[float]:
        """Predict the rows of one request."""
        predictions: list[float] = self._model.predict(instances).tolist()
        return predictions


@serve.deployment
@serve.ingress(api)
class Ingress:
    """The HTTP side."""

    def __init__(self, forest: Any) -> None:
        """Keep the handle of the model deployment."""
        self._forest = forest

    @api.post("/predict")
    async def predict(self, rows: Rows) -> dict[str, list[float]]:
        """Ask the model deployment."""
        return {"predictions": await self._forest.predict.remote(rows.instances)}


def main() -> None:
    """Start a Ray of its own, serve until told to stop, and stop that Ray again."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--spare-ports", type=int, nargs=2, required=True)
    options = parser.parse_args()
    # Ray's socket names must stay below 108 characters, so its folder cannot lie deep below the state directory.
    ray_directory = tempfile.mkdtemp(prefix="bench-ray-")
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    # address="local" keeps it from joining a Ray that already runs on this machine; its own ports stay on loopback.
    ray.init(address="local", _temp_dir=ray_directory, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    # The types of `serve.deployment` hide that it makes a Deployment of a class.
    forest = Forest.bind(str(options.model))  # type: ignore[attr-defined, unused-ignore]
    serve.run(Ingress.bind(forest))  # type: ignore[attr-defined, unused-ignore]
    signal.sigwait(signals)
    serve.shutdown()  # type: ignore[no-untyped-call, unused-ignore]  # Ray's own gap
    ray.shutdown()
    shutil.rmtree(ray_directory, ignore_errors=True)


if __name__ == "__main__":
    main()
