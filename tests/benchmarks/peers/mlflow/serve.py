"""`mlflow models serve` of the logged forest; runs in this peer's own environment."""

import argparse
import os
import sys
from pathlib import Path

import joblib
import mlflow


def log_model(model: Path, directory: Path) -> str:
    """Log the forest in a store of its own below `directory` and return the model's address."""
    mlflow.set_tracking_uri(f"sqlite:///{directory / 'mlflow.db'}")
    experiment = mlflow.create_experiment(f"forest-{os.getpid()}", artifact_location=(directory / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment):
        logged = mlflow.sklearn.log_model(
            joblib.load(model), name="forest", pip_requirements=[], serialization_format="cloudpickle"
        )
    address: str = logged.model_uri
    return address


def main() -> None:
    """Log the model, then become `mlflow models serve`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--spare-ports", type=int, nargs=2, required=True)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    address = log_model(options.model, options.directory)
    programs = Path(sys.executable).parent
    os.environ.update(
        MLFLOW_TRACKING_URI=f"sqlite:///{options.directory / 'mlflow.db'}",
        # mlflow starts uvicorn by its bare name.
        PATH=f"{programs}{os.pathsep}{os.environ['PATH']}",
    )
    program = programs / "mlflow"
    serving = ["--model-uri", address, "--env-manager", "local", "--workers", str(options.workers)]
    os.execv(
        program,
        [str(program), "models", "serve", *serving, "--host", "127.0.0.1", "--port", str(options.port)],
    )


if __name__ == "__main__":
    main()
