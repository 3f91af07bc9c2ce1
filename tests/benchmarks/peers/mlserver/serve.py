"""MLServer's scikit-learn runtime with adaptive batching; runs in this peer's own environment."""

import argparse
import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Write MLServer's two settings files, then become `mlserver start`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--spare-ports", type=int, nargs=2, required=True, help="for gRPC and for metrics")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-batch-size", type=int, default=32)
    parser.add_argument("--max-batch-time-s", type=float, default=0.005)
    options = parser.parse_args()
    server = {
        "host": "127.0.0.1",
        "http_port": options.port,
        "grpc_port": options.spare_ports[0],
        "metrics_port": options.spare_ports[1],
        "parallel_workers": options.workers,
        "debug": False,
    }
    model = {
        "name": "iris",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": str(options.model)},
        "max_batch_size": options.max_batch_size,
        "max_batch_time": options.max_batch_time_s,
    }
    (options.directory / "settings.json").write_text(json.dumps(server))
    (options.directory / "model-settings.json").write_text(json.dumps(model))
    # MLServer makes its metrics and environments folders in the working directory.
    os.chdir(options.directory)
    program = Path(sys.executable).parent / "mlserver"
    os.execv(program, [str(program), "start", str(options.directory)])


if __name__ == "__main__":
    main()
