"""Plain Ray Serve whose `reconfigure` loads the model that `user_config` names, as Ray's own documentation has it."""

import asyncio
from pathlib import Path
from typing import Any

import joblib
from ray import serve
from ray.serve import Application, Deployment
from starlette.requests import Request
from starlette.responses import JSONResponse


class Forest:
    """Answers `POST` with the predictions of its forest, and `GET` once it has one."""

    def __init__(self) -> None:
        """Start without a model; Ray Serve calls `reconfigure` before the first request."""
        self._model: Any = None

    def reconfigure(self, user_config: dict[str, str]) -> None:
        """Load the model; unpickling it may take long or raise."""
        self._model = joblib.load(Path(user_config["model"]))

    async def __call__(self, request: Request) -> JSONResponse:
        """Predict."""
        if request.method == "GET":
            return JSONResponse({"status": "ok"})
        rows = (await request.json())["instances"]
        predictions = await asyncio.to_thread(self._model.predict, rows)
        return JSONResponse({"predictions": predictions.tolist()})


def build(_args: dict[str, Any]) -> Application:
    """Build it; the config says how many replicas there are and with which model."""
    forest: Deployment = serve.deployment(Forest)  # type: ignore[assignment]  # Ray's overloads
    return forest.options(name="forest", ray_actor_options={"num_cpus": 0.1}).bind()
