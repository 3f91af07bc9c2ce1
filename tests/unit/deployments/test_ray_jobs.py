import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config import AppConfig
from serve_app.deployments.ray_jobs import _last_words, entrypoint, environment
from tests.integration.instance import REPOSITORY


def config(state_dir: Path, **retrain: Any) -> AppConfig:
    document = yaml.safe_load((REPOSITORY / "configs" / "tft.yaml").read_text())
    args = document["applications"][0]["args"]
    args["state_dir"] = str(state_dir)
    args["families"]["tft"]["retrain"] = {"after_records": 1} | retrain
    return AppConfig.parse(args)


def run(command: str, **variables: str) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_default_command_trains_on_the_archive_with_the_windows_shape(tmp_path: Path) -> None:
    command = entrypoint(config(tmp_path / "a b", options=["--epochs", "3"]), "tft")
    assert command.startswith(f"cd {REPOSITORY} && ulimit -d {4 << 20}; ")
    assert command.endswith(
        "exec nice -n 19 bash training/retrain_and_reload.sh --observations "
        f"'{tmp_path}/a b/archive/tft' --step-seconds 300 --encoder-length 288 --threads 1 --epochs 3"
    )
    assert (REPOSITORY / "training" / "retrain_and_reload.sh").stat().st_mode & 0o100


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a class of idle tasks")
def test_a_job_uses_idle_time_only_and_its_memory_is_bounded(tmp_path: Path) -> None:
    program = (
        "import json, os, resource; print(json.dumps([os.sched_getscheduler(0), os.nice(0), os.getcwd(), "
        "resource.getrlimit(resource.RLIMIT_DATA)[0]]))"
    )
    command = entrypoint(
        config(tmp_path, command=[sys.executable, "-c", program], working_dir=str(tmp_path), memory_bytes=1 << 30),
        "tft",
    )
    assert json.loads(run(command)) == [os.SCHED_IDLE, 19, str(tmp_path), 1 << 30]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has chrt")
def test_where_chrt_is_missing_a_job_is_nice(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nice").symlink_to("/usr/bin/nice")
    program = "import json, os; print(json.dumps([os.sched_getscheduler(0), os.nice(0)]))"
    command = entrypoint(config(tmp_path, command=[sys.executable, "-c", program]), "tft")
    assert json.loads(run(command, PATH=str(tools)))[1] == 19


def test_a_job_is_told_files_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "admin-token").write_text("secret")
    told = environment(config(tmp_path), "tft", url="http://127.0.0.1:8000")
    assert told["MODELS"] == str(tmp_path / "models" / "tft")
    assert told["TOKEN_FILE"] == str(tmp_path / "admin-token")
    assert (told["FAMILY"], told["DAEMON_URL"], told["PYTHON"]) == ("tft", "http://127.0.0.1:8000", sys.executable)
    assert "secret" not in "".join(told.values())


@pytest.mark.parametrize(
    ("logs", "message", "said"),
    [
        ("[1/3] Training\nerror: no data\nerror: the training ended with status 1\n", "exit 4", "no data"),
        ("one\n\ntwo\n", "exit 1", "two"),
        ("", "Job supervisor died", "Job supervisor died"),
        ("", None, None),
    ],
)
def test_the_first_error_of_a_job_is_told_else_its_last_words(logs: str, message: str | None, said: str | None) -> None:
    assert _last_words(logs, message) == said
