"""The standard protocols through the whole server, and the commands of `docs/protocols.md` as the page has them."""

import os
import subprocess

import pytest

from tests.integration.conftest import IRIS_ROW, Server
from tests.pages import blocks

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("script", blocks("protocols.md", "sh"))
def test_shell_commands_succeed(server: Server, script: str) -> None:
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-euo", "pipefail", "-c", script],
        env={**os.environ, "NO_PROXY": "127.0.0.1", "SERVER": server.instance.address},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_protocols_give_the_same_predictions(server: Server) -> None:
    rows = [IRIS_ROW, [6.7, 3.0, 5.2, 2.3]]
    expected = server.predict("iris", rows)
    version = expected.headers["x-model-version"]
    tensor = {"name": "rows", "shape": [2, 4], "datatype": "FP64", "data": rows}
    inferred = server.http.post(f"/v2/models/iris/versions/{version}/infer", json={"inputs": [tensor]})
    predicted = server.http.post("/v1/models/iris:predict", json={"instances": rows})
    assert inferred.json()["outputs"][0]["data"] == expected.json()["predictions"]
    assert predicted.json()["predictions"] == expected.json()["predictions"]
    assert (inferred.headers["x-route-reason"], predicted.headers["x-route-reason"]) == ("forced", "default")
