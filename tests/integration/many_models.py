"""A server with one family that serves many registered models of a real MLflow server by name."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.integration import instance
from tests.integration.instance import Instance, await_that, shipped_config
from tests.mlflow_server import MlflowServer

FAMILY = "zoo"
OWN_MODEL = "zoo-keeper"
INTERVAL_S = 2.0
ROW = [5.1, 3.5, 1.4, 0.2]
BODY = json.dumps({"instances": [ROW]}).encode()
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class ManyModels:
    """The running server, its registry, and short ways to ask it."""

    instance: Instance
    http: httpx.Client
    mlflow: MlflowServer

    @property
    def url(self) -> str:
        """What is asked; without a query the family's own model answers."""
        return f"{self.instance.address}/predict/{FAMILY}"

    def ask(self, model: str | None = None, version: str | None = None, **headers: str) -> httpx.Response:
        """Predict with what is named."""
        named = {"model": model, "version": version}
        params = {name: value for name, value in named.items() if value is not None}
        return self.http.post(
            f"/predict/{FAMILY}", params=params, content=BODY, headers={"Content-Type": "application/json"} | headers
        )

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all samples with these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        samples = [
            sample
            for family in text_string_to_metric_families(self.http.get("/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(sample.value for sample in samples)


@contextmanager
def running(
    directory: Path,
    mlflow: MlflowServer,
    *,
    max_versions: int,
    preload: Sequence[str] = (),
    interval_s: float = INTERVAL_S,
    **source: Any,
) -> Iterator[ManyModels]:
    """Start a server that serves the model `zoo-keeper` and, by name, every `zoo-…`; stop it at the end."""
    document = shipped_config("bench.yaml")
    family = {
        "models_type": "classification",
        "loader": "mlflow",
        "source": {
            "kind": "mlflow_registry", "tracking_uri": mlflow.uri, "model": OWN_MODEL, "other_models": True,
            "allowed_models": ["zoo-*"], "preload": list(preload), **source,
        },
        "reload": {"interval_s": interval_s},
        "residency": {"max_versions": max_versions},
    }  # fmt: skip
    document["applications"][0]["args"] |= {
        "default_family": FAMILY,
        "families": {FAMILY: family},
        "security": {"allow_pickle_loaders": ["mlflow"], "mlflow": {"formats": ["skops", "cloudpickle"]}},
    }
    with instance.running(directory, document) as (started, http):
        server = ManyModels(started, http, mlflow)
        await_that(lambda: server.ask().status_code == 200, timeout_s=START_TIMEOUT_S)
        yield server
