"""`serve-app drift` against a real server: nothing differs, then what others changed behind its back is found."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import Server

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def deployed(server: Server) -> Iterator[Server]:
    """The server as its config file asks for it, before and after."""
    server.deploy()
    yield server
    server.deploy()


def drift(server: Server, *options: str, settle_s: float = 30.0) -> tuple[int, dict[str, Any]]:
    told = server.instance.run("drift", "--json", "--settle-s", str(settle_s), *options)
    return told.returncode, json.loads(told.stdout) if told.stdout else {"error": told.stderr}


def paths(told: dict[str, Any]) -> set[str]:
    return {one["path"] for one in told["differences"]}


def test_what_somebody_deploys_behind_the_files_back_is_drift_until_it_is_taken_back(
    deployed: Server, tmp_path: Path
) -> None:
    config = str(deployed.instance.config)
    assert drift(deployed, "--config", config) == (0, {"drift": False, "differences": [], "unknown": {}})

    version = deployed.http.get("/models/current", params={"family": "iris"}).json()["version"]
    deployed.deploy({"name": "iris-cpu", "user_config": {"manifest_version": version}})
    code, told = drift(deployed, "--config", config, settle_s=0)
    assert code == 1, told
    assert "applications.serve-app.deployments.iris-cpu" in paths(told)
    deployed.deploy()
    assert drift(deployed, "--config", config)[0] == 0

    document = yaml.safe_load(deployed.instance.config.read_text())
    application = document["applications"][0]
    application["args"]["limits"] = {"request_timeout_s": 7.0}
    application["deployments"] = [
        {"name": "iris-cpu", "num_replicas": 3, "user_config": {"manifest_version": "v-asked-for"}}
    ]
    asked = tmp_path / "asked.yaml"
    asked.write_text(yaml.safe_dump(document))
    code, told = drift(deployed, "--config", str(asked), settle_s=0)
    assert (code, told["unknown"]) == (1, {})
    assert paths(told) == {
        "applications.serve-app.args.limits.request_timeout_s",
        "applications.serve-app.deployments.iris-cpu",
        "applications.serve-app.deployments.iris-cpu.target_num_replicas",
        "families.iris.answers",
        "families.iris.pools.cpu.holds",
        "families.iris.pools.cpu.user_config.manifest_version",
    }
    named = [one["replica"] for one in told["differences"] if one["path"].endswith(".holds")]
    (replica,) = deployed.http.get("/health").json()["families"]["iris"]["replicas"]
    assert named == [replica["replica"]]


def test_a_rayservice_on_the_standard_input_is_compared(deployed: Server, tmp_path: Path) -> None:
    record = deployed.instance.record
    document = yaml.safe_load(deployed.instance.config.read_text())
    application = document["applications"][0]
    application["args"]["state_dir"] = str(deployed.instance.state.path)
    document["http_options"] = {"host": "127.0.0.1", "port": deployed.instance.port}
    rayservice = {
        "kind": "RayService",
        "metadata": {"name": "serve-app", "generation": 2},
        "spec": {"serveConfigV2": yaml.safe_dump(document)},
        "status": {"observedGeneration": 2},
    }
    file = tmp_path / "rayservice.yaml"
    file.write_text(yaml.safe_dump(rayservice))
    places = ["--serve-api", record.dashboard_address, "--ray-token-file", str(record.ray_token_file)]
    places += ["--address", record.address, "--rayservice", str(file)]
    assert drift(deployed, *places) == (0, {"drift": False, "differences": [], "unknown": {}})
    places[places.index("--ray-token-file") + 1] = str(deployed.instance.state.admin_token_file)
    code, told = drift(deployed, *places, settle_s=0)
    assert (code, set(told["unknown"])) == (2, {"serve"})
