"""The commands and programs of `docs/forecasting.md`, run against a real server as the page has them."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serve_app.config import AppConfig
from tests.integration.fleet import ENCODER
from tests.integration.instance import REPOSITORY
from tests.integration.trained_fleet import FIRST, SMALL, SMALL_WINDOWS, TrainedFleet, history
from tests.pages import block, blocks

pytestmark = pytest.mark.ray

PAGE = "forecasting.md"
STAND_IN = Path(__file__).parent / "streamlit_stand_in"
RETRAIN = "training/retrain_and_reload.sh"
BASH = ("bash", "--noprofile", "--norc", "-euo", "pipefail", "-c")


@pytest.fixture
def at_hand(trained_fleet: TrainedFleet) -> TrainedFleet:
    """Return the server, with what the page's reader has in his directory."""
    trained_fleet.settle()
    (trained_fleet.directory / "history.ndjson").write_text(history(seed=2))
    return trained_fleet


def run(server: TrainedFleet, script: str) -> subprocess.CompletedProcess[str]:
    if script.startswith(RETRAIN):  # the page's model is too large for a test
        script = f"{script.strip()} {shlex.join((*SMALL, *SMALL_WINDOWS))}"
    return server.run([*BASH, script], NORDIQ_API_KEY=server.token)


def python(server: TrainedFleet, code: str, *, key: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the page with nothing but address and key changed."""
    settings = {"DAEMON_URL": server.instance.address, "API_KEY": key}
    if "API_KEY = " in code:
        code = code.replace('"http://localhost:8000"', repr(settings["DAEMON_URL"]))
        code = code.replace('"your-api-key-here"', repr(key))
    else:
        code = "".join(f"{name} = {value!r}\n" for name, value in settings.items()) + code
    return server.run([sys.executable, "-c", code], PYTHONPATH=str(STAND_IN))


@pytest.mark.parametrize("script", blocks(PAGE, "sh"))
def test_shell_commands_succeed(at_hand: TrainedFleet, script: str) -> None:
    done = run(at_hand, script)
    assert done.returncode == 0
    assert '"error"' not in done.stdout


def test_training_facts_and_model_info_are_those_of_the_model_that_answers(at_hand: TrainedFleet) -> None:
    version = at_hand.version
    for query in ("", "?family=tft"):
        listed = at_hand.http.get(f"/admin/models{query}", headers=at_hand.admin).json()
        (current,) = [model for model in listed["models"] if model["is_current"]]
        assert (listed["count"], listed["current_model"]) == (len(listed["models"]), current["path"])
        assert current["name"] == version
        assert set(current["training"]) >= {"epochs", "training_time", "servers_trained"}
        info = at_hand.http.get(f"/admin/model-info{query}", headers=at_hand.admin).json()
        assert (info["loaded"], info["mode"], info["model_name"]) == (True, "tft", version)
        assert info["config"] == {"max_prediction_length": 8, "max_encoder_length": ENCODER}
        assert info["servers"]["total"] in (6, 12, 18)  # with what other tests have fed
        assert info["servers"]["known"] >= 5  # a training keeps one of ten to itself
        assert info["model_timestamp"] in version


def test_a_model_that_cannot_be_loaded_is_rolled_back(at_hand: TrainedFleet) -> None:
    server, version = at_hand, at_hand.version
    broken = server.root / "tft_model_20990101_000000"
    source = server.root / FIRST
    broken.mkdir()
    for path in source.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((broken / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps(manifest | {"model_version": broken.name}))
    (broken / "model.safetensors").write_bytes(b"no weights")
    listed = server.http.get("/admin/models", headers=server.admin).json()["models"]
    path = next(model["path"] for model in listed if model["name"] == broken.name)
    answer = server.http.post("/admin/reload-model", params={"model_path": path}, headers=server.admin)
    assert answer.status_code == 500, answer.text
    assert answer.json() == {
        "success": False,
        "error": "Failed to load new model, rolled back to previous",
        "current_model": f"models/tft/{version}",
    }
    assert server.version == version


def test_the_python_client_lists_and_reloads(at_hand: TrainedFleet) -> None:
    done = python(at_hand, block(PAGE, "python", "# List available models"), key=at_hand.token)
    assert done.returncode == 0
    assert f"  - {at_hand.version} (CURRENT)" in done.stdout
    assert done.stdout.splitlines()[-1] == f"Model reloaded: models/tft/{at_hand.version}"


def test_the_dashboard_reloads_and_shows_the_model(at_hand: TrainedFleet) -> None:
    code = block(PAGE, "python", "import streamlit")
    done = python(at_hand, code, key=at_hand.token)
    assert done.returncode == 0
    version = at_hand.version
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        ["button", "Reload Latest Model"],
        ["spinner", "Reloading model..."],
        ["success", f"Model reloaded: models/tft/{version}"],
        ["info", f"Current Model: {version}"],
        ["info", f"Timestamp: {version.removeprefix('tft_model_')}"],
    ]


def test_the_configuration_of_the_page_is_one(at_hand: TrainedFleet) -> None:
    document = yaml.safe_load((REPOSITORY / "configs" / "tft.yaml").read_text())
    args = document["applications"][0]["args"]
    shown = yaml.safe_load(block(PAGE, "yaml", "after_records"))["tft"]
    args["families"]["tft"]["windows"] |= shown["windows"]
    args["families"]["tft"]["retrain"] = shown["retrain"]
    assert AppConfig.parse(args).families["tft"].retrain is not None


def test_the_line_for_cron_runs_the_script(at_hand: TrainedFleet) -> None:
    setting, line = block(PAGE, "crontab", "retrain_and_reload").splitlines()
    assert setting == "APP=/opt/serve-app"
    command = line.split(maxsplit=5)[5]
    assert "%" not in command  # cron would read it as the end of a line
    options = shlex.join((*SMALL, *SMALL_WINDOWS))
    command = command.replace(" >>", f" {options} >>")
    done = at_hand.run(["sh", "-c", command], APP=str(at_hand.directory))
    assert done.returncode == 0, (at_hand.directory / "retrain.log").read_text()
    assert "is active" in (at_hand.directory / "retrain.log").read_text()
