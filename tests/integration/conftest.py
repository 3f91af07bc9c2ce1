"""Real servers, each for all tests that need one: Ray, HAProxy, families, started by `serve-app up`.

One runs at a time: idle ones would take half a core from the tests that follow. So the tests of one come one after the
other, whatever their files are called, and it ends before the next is started.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.builders import write_forecaster
from tests.integration import registry, trained_fleet
from tests.integration.instance import Instance, running, shipped_config
from tests.mlflow_server import MlflowServer
from training import train_iris_forest

IRIS_ROW = [5.1, 3.5, 1.4, 0.2]
SHARED = ("server", "registry_server", "trained_fleet")
"""The fixtures of servers that several files share."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tell each test which server runs meanwhile, and so have pytest group them; a file may have one of its own."""
    shared = (name for name in SHARED if name in metafunc.fixturenames and not hasattr(metafunc.module, name))
    which = next(shared, metafunc.module.__name__)
    metafunc.parametrize("running_server", [which], indirect=True, scope="package", ids=[pytest.HIDDEN_PARAM])


@pytest.fixture(scope="package", autouse=True)
def running_server(request: pytest.FixtureRequest) -> str:
    """The name of the server that may run now. What depends on it ends when another name comes."""
    return str(request.param)


@dataclass(frozen=True)
class Server:
    """The running server, and short ways to talk to it."""

    instance: Instance
    http: httpx.Client

    @property
    def models(self) -> Path:
        return self.instance.state.path / "models"

    @property
    def admin(self) -> dict[str, str]:
        token = (self.instance.state.path / "admin-token").read_text().strip()
        return {"Authorization": f"Bearer {token}"}

    def predict(self, family: str, instances: Any, **headers: str) -> httpx.Response:
        return self.http.post(f"/predict/{family}", json={"instances": instances}, headers=headers)

    def deploy(self, *deployments: dict[str, Any]) -> None:
        """Deploy the server's config with these settings of single deployments; without any, as it was at first."""
        document = yaml.safe_load(self.instance.config.read_text())
        document["applications"][0]["deployments"] = list(deployments)
        changed = self.instance.config.with_name("changed.yaml")
        changed.write_text(yaml.safe_dump(document))
        deployed = self.instance.run("deploy", str(changed))
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr


@pytest.fixture(scope="package")
def server(running_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    models = directory / "state" / "models"
    train_iris_forest.main(out=models / "iris", joblib_path=None, model_version="v1")
    write_forecaster(models / "forecaster", "v1")
    document = shipped_config("bench.yaml")
    args = document["applications"][0]["args"]
    args["gateway"] = {"num_cpus": 0.1}  # small shares: on two cores there is room for several of each
    iris = args["families"]["iris"]
    iris["pools"] = [{"num_cpus": 0.1}]
    iris["trial"] = {"timeout_s": 10, "memory_bytes": 256 << 20}
    iris["reload"] = {"interval_s": 1.0}
    iris["record"] = {"sample": 100, "max_requests": 2000}
    with running(directory, document) as (instance, http):
        yield Server(instance, http)


@pytest.fixture(scope="package")
def registry_server(
    running_server: str, tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer
) -> Iterator[registry.RegistryServer]:
    """A server that follows the registry of the session: S3's iris by its environment, three families by the file."""
    with registry.running(tmp_path_factory.mktemp("registry"), mlflow_server) as followed:
        yield followed


@pytest.fixture(scope="package")
def iris_server(registry_server: registry.RegistryServer) -> registry.RegistryServer:
    """The server with S3's model in production, trained by its program and asked for by hand."""
    told = registry.train(registry_server, "train_iris", "--trees", "10", "--stage", "Production")
    champion, staged = registry.holders(registry_server, registry.IRIS_MODEL)
    assert f"{registry.IRIS_MODEL}: promoted version {champion} to alias champion and stage Production" in told
    assert staged == champion
    reloaded = registry_server.http.post("/admin/reload", headers=registry_server.admin)
    assert reloaded.json()["version"] == champion, reloaded.text
    return registry_server


@pytest.fixture(scope="package", name="trained_fleet")
def _trained_fleet(
    running_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[trained_fleet.TrainedFleet]:
    """A server of a fleet with a small model, which trains itself anew."""
    with trained_fleet.running(tmp_path_factory.mktemp("fleet")) as trained:
        yield trained
