"""Pools that ask for a GPU where there is none, and replicas that have no room for two versions, on a real server."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.adapters.bundle_writer import set_current, write_bundle
from tests.bad_bundles import Kind, write_iris
from tests.builders import rows, write_forecaster
from tests.integration.conftest import IRIS_ROW, Server
from tests.integration.instance import await_that, running
from tests.traffic import Traffic
from tests.unit.adapters.loaders.tft import forecasters

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA: nothing to fall back from"),
]
SETTLE_TIMEOUT_S = 60.0
ROOM = 1.5
"""Budget of a replica, in models."""


def configuration(models: Path) -> dict[str, Any]:
    """Return a config of three families: `tft` on a CPU and a GPU, `pair` and `iris` with room for one version."""
    small = {"num_cpus": 0.1}

    def family(name: str, models_type: str, **settings: Any) -> dict[str, Any]:
        return {
            "models_type": models_type, "source": {"root": f"models/{name}"}, "reload": {"mode": "endpoint"},
            "pools": [small],
        } | settings  # fmt: skip

    def room_for_one(name: str) -> dict[str, Any]:
        n_bytes = sum(path.stat().st_size for path in (models / name / "v1").rglob("*") if path.is_file())
        return {"policy": "resource_preserving", "max_bytes": int(n_bytes * ROOM)}

    gpu = {"name": "gpu", "num_gpus": 0.5, "device": "cuda", "precision": "bf16", **small}
    args = {
        "default_family": "pair",
        "gateway": small,
        "families": {
            "tft": family("tft", "tft", loader="torch", pools=[small, gpu]),
            "pair": family("pair", "regression", residency=room_for_one("pair"), pools=[{"num_replicas": 2, **small}]),
            "iris": family("iris", "classification", residency=room_for_one("iris")),
        },
        "security": {"allow_pickle_loaders": ["sklearn_targets"]},
    }
    application = {"name": "serve-app", "route_prefix": "/", "import_path": "serve_app.app:build_app", "args": args}
    return {"proxy_location": "EveryNode", "applications": [application]}


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("devices")
    models = directory / "state" / "models"
    tft = forecasters.bundle()
    write_bundle(models / "tft", tft.manifest, tft.files)
    set_current(models / "tft", tft.manifest.model_version)
    write_iris(models / "iris", "v1", Kind.SLOW)
    set_current(models / "iris", "v1")
    for i in (1, 2, 3):
        write_forecaster(models / "pair", f"v{i}", seed=i, current=i == 1, family="pair")
    with running(directory, configuration(models)) as (instance, http):
        yield Server(instance, http)


def reload(server: Server, family: str, version: str) -> dict[str, Any]:
    params = {"family": family, "model_path": f"models/{family}/{version}"}
    told: dict[str, Any] = server.http.post("/admin/reload-model", params=params, headers=server.admin).json()
    return told


def replicas(server: Server, family: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.http.get("/health").json()["families"][family]["replicas"]
    return found


def await_alone(server: Server, version: str) -> None:
    """Wait until both replicas of the pair hold this version and no other."""
    held = [[version], [version]]
    await_that(lambda: [one["loaded"] for one in replicas(server, "pair")] == held, timeout_s=SETTLE_TIMEOUT_S)


def test_pool_without_cuda_runs_on_the_cpu_and_says_so_everywhere(own_server: Server) -> None:
    note = "expected cuda, found no CUDA here: runs on cpu; bf16 is for cuda, a cpu computes in float32"
    await_that(lambda: len(replicas(own_server, "tft")) == 2, timeout_s=SETTLE_TIMEOUT_S)
    told = {one["pool"]: (one["device"], one["device_note"], len(one["loaded"])) for one in replicas(own_server, "tft")}
    assert told == {"cpu": ("cpu", None, 1), "gpu": ("cpu", note, 1)}
    info = own_server.http.get("/admin/model-info?family=tft", headers=own_server.admin).json()
    assert {one["pool"]: one["device_note"] for one in info["devices"]} == {"cpu": None, "gpu": note}
    metrics = own_server.http.get("/metrics").text.splitlines()
    told_by_pool = {
        pool: line.rpartition(" ")[2]
        for line in metrics
        for pool in ("cpu", "gpu")
        if line.startswith("serve_app_device_fallback{") and f'family="tft",pool="{pool}"' in line
    }
    assert told_by_pool == {"cpu": "0.0", "gpu": "1.0"}


def test_two_replicas_with_room_for_one_version_change_it_without_a_failed_request(own_server: Server) -> None:
    body = json.dumps({"instances": rows(1).tolist()}).encode()
    url = f"{own_server.instance.address}/predict/pair"
    with Traffic.started(url, body, connections=4, rate=200) as traffic:
        for version in ("v2", "v3", "v1"):
            told = reload(own_server, "pair", version)
            assert told["success"] is True, told
            await_alone(own_server, version)
    assert traffic.failed() == []
    assert {answer.version for answer in traffic.answers} == {"v1", "v2", "v3"}


def test_single_replica_answers_503_with_retry_after_while_it_loads_in_the_place_of_the_old(own_server: Server) -> None:
    write_iris(own_server.models / "iris", "slow", Kind.SLOW)
    answers: list[tuple[int, str | None]] = []
    with ThreadPoolExecutor(1) as background:
        reloading = background.submit(reload, own_server, "iris", "slow")
        while not reloading.done():
            answer = own_server.predict("iris", [IRIS_ROW])
            answers.append((answer.status_code, answer.headers.get("retry-after")))
    assert reloading.result()["success"] is True, reloading.result()
    assert {status for status, _ in answers} == {200, 503}
    assert {after for status, after in answers if status == 503} == {"1"}
    assert own_server.predict("iris", [IRIS_ROW]).headers["x-model-version"] == "slow"
    (replica,) = replicas(own_server, "iris")
    assert list(replica["no_room"].values()) == ["v1 was let go of to make room for slow"]
