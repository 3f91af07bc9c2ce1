"""The servers this one is compared with: how each is set up and asked."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ALL_CORES = str(os.cpu_count() or 1)

Setting = tuple[str, ...]
"""Arguments for a peer's `serve.py`."""


def instances(row: Sequence[float]) -> Any:
    """Make the body that most servers take."""
    return {"instances": [list(row)]}


def open_inference(row: Sequence[float]) -> Any:
    """Make a body of the Open Inference Protocol."""
    return {"inputs": [{"name": "rows", "shape": [1, len(row)], "datatype": "FP64", "data": list(row)}]}


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer. `settings` are tried before the measurement and the best is kept; the first is the usual winner."""

    name: str
    title: str
    configuration: str
    packages: tuple[str, ...]
    ready_path: str
    """Answers 200 once the model is loaded."""
    path: str
    answer_at: tuple[str | int, ...]
    """Where in the answer the one prediction stands."""
    settings: tuple[Setting, ...]
    body: Callable[[Sequence[float]], Any] = instances

    @property
    def requirements(self) -> Path:
        """The exact content of its environment."""
        return HERE / self.name / "requirements.txt"

    @property
    def program(self) -> Path:
        """What starts it."""
        return HERE / self.name / "serve.py"


def _setting(**values: str) -> Setting:
    return tuple(part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value))


PEERS: tuple[Peer, ...] = (
    Peer(
        name="mlserver",
        title="MLServer",
        configuration="`mlserver start`, its scikit-learn runtime, adaptive batching on, uvloop, REST",
        packages=("mlserver", "mlserver-sklearn", "scikit-learn", "uvicorn"),
        ready_path="/v2/models/iris/ready",
        path="/v2/models/iris/infer",
        answer_at=("outputs", 0, "data", 0),
        body=open_inference,
        settings=(
            _setting(workers="0", max_batch_size="64", max_batch_time_s="0.005"),
            _setting(workers="0", max_batch_size="64", max_batch_time_s="0.001"),
            _setting(workers="1", max_batch_size="64", max_batch_time_s="0.005"),
            _setting(workers=ALL_CORES, max_batch_size="64", max_batch_time_s="0.005"),
        ),
    ),
    Peer(
        name="litserve",
        title="LitServe",
        configuration="`LitServer` with a `LitAPI` that stacks the batch, batching on, uvloop",
        packages=("litserve", "scikit-learn", "fastapi", "uvicorn"),
        ready_path="/health",
        path="/predict",
        answer_at=("predictions", 0),
        settings=(
            _setting(workers="1", api_servers="1", max_batch_size="64", batch_timeout_s="0.005"),
            _setting(workers="1", api_servers="1", max_batch_size="64", batch_timeout_s="0.001"),
            (
                *_setting(workers="1", api_servers="1", max_batch_size="64", batch_timeout_s="0.005"),
                "--fast-queue",
            ),
            _setting(workers="1", api_servers=ALL_CORES, max_batch_size="64", batch_timeout_s="0.005"),
            _setting(workers=ALL_CORES, api_servers="1", max_batch_size="64", batch_timeout_s="0.005"),
        ),
    ),
    Peer(
        name="bentoml",
        title="BentoML",
        configuration="`bentoml serve`, a batchable API on NumPy arrays, adaptive batching on, uvloop, access log off",
        packages=("bentoml", "scikit-learn", "uvicorn"),
        ready_path="/readyz",
        path="/predict",
        answer_at=(0,),
        settings=(
            _setting(workers="1", max_batch_size="64", max_latency_ms="1000"),
            _setting(workers="1", max_batch_size="64", max_latency_ms="200"),
            _setting(workers=ALL_CORES, max_batch_size="64", max_latency_ms="1000"),
        ),
    ),
    Peer(
        name="fastapi",
        title="FastAPI + uvicorn",
        configuration="a `def` route that calls scikit-learn's `predict`, uvloop, httptools, access log off",
        packages=("fastapi", "uvicorn", "scikit-learn"),
        ready_path="/openapi.json",
        path="/predict",
        answer_at=("predictions", 0),
        settings=(_setting(workers=ALL_CORES), _setting(workers="1")),
    ),
    Peer(
        name="mlflow",
        title="mlflow models serve",
        configuration="the forest logged with `mlflow.sklearn`, `mlflow models serve --env-manager local`, uvloop",
        packages=("mlflow", "scikit-learn", "uvicorn"),
        ready_path="/ping",
        path="/invocations",
        answer_at=("predictions", 0),
        settings=(_setting(workers=ALL_CORES), _setting(workers="1")),
    ),
    Peer(
        name="rayserve",
        title="Ray Serve, defaults",
        configuration="a FastAPI ingress before a model deployment, every option at its default, no batching",
        packages=("ray", "scikit-learn", "fastapi", "uvicorn"),
        ready_path="/openapi.json",
        path="/predict",
        answer_at=("predictions", 0),
        settings=((),),
    ),
)
