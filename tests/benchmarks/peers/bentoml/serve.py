"""BentoML with adaptive batching; runs in this peer's own environment."""

import argparse
import os
import sys
from pathlib import Path


def main() -> None:
    """Hand the settings to `service.py` through the environment, then become `bentoml serve`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--spare-ports", type=int, nargs=2, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-batch-size", type=int, default=32)
    parser.add_argument("--max-latency-ms", type=int, default=100)
    options = parser.parse_args()
    os.environ.update(
        BENTOML_HOME=str(options.directory),
        BENTOML_DO_NOT_TRACK="True",
        FOREST_MODEL=str(options.model),
        FOREST_WORKERS=str(options.workers),
        FOREST_MAX_BATCH_SIZE=str(options.max_batch_size),
        FOREST_MAX_LATENCY_MS=str(options.max_latency_ms),
    )
    program = Path(sys.executable).parent / "bentoml"
    here = Path(__file__).resolve().parent
    command = [
        "serve",
        "service:Forest",
        "--working-dir",
        str(here),
        "--host",
        "127.0.0.1",
        "--port",
        str(options.port),
    ]
    os.execv(program, [str(program), *command])


if __name__ == "__main__":
    main()
