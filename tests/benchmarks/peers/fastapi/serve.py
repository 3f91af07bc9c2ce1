"""FastAPI under uvicorn with a plain synchronous predict; runs in this peer's own environment."""

import argparse
import os
from pathlib import Path

import joblib
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Rows(BaseModel):
    """The body of a request."""

    instances: list[list[float]]


def build() -> FastAPI:
    """Load the model and make the application; each uvicorn worker calls this."""
    model = joblib.load(os.environ["FOREST_MODEL"])
    app = FastAPI()

    @app.post("/predict")
    def predict(rows: Rows) -> dict[str, list[float]]:
        return {"predictions": model.predict(rows.instances).tolist()}

    return app


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--spare-ports", type=int, nargs=2, required=True)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    os.environ["FOREST_MODEL"] = str(options.model)
    here = str(Path(__file__).resolve().parent)
    uvicorn.run(
        "serve:build",
        factory=True,
        app_dir=here,
        host="127.0.0.1",
        port=options.port,
        workers=options.workers,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
