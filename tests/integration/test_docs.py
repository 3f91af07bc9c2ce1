"""The commands of `docs/mlflow.md`, run against a real server and a real registry as the page has them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.integration.instance import REPOSITORY
from tests.integration.registry import IRIS, RegistryServer
from tests.pages import block, blocks

pytestmark = pytest.mark.ray

PAGE = "mlflow.md"
EXAMPLE = "https://models.example.com"


def run(server: RegistryServer, command: Sequence[str], directory: Path, **environment: str) -> int:
    """Run a command with the page's variables and return its exit status; what it printed is shown if a test fails."""
    done = subprocess.run(
        command,
        cwd=directory,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "NO_PROXY": "127.0.0.1",
            "SERVER": server.address,
            "ADMIN_API_TOKEN": server.token,
            "MLFLOW_TRACKING_URI": server.mlflow.uri,
            "MODEL_VERSION": server.current(IRIS),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    print(*command, done.stdout, done.stderr, sep="\n")  # noqa: T201
    return done.returncode


def run_bash(server: RegistryServer, script: str, directory: Path, **environment: str) -> int:
    """Run a script as GitHub Actions runs one that asks for bash."""
    options = ["--noprofile", "--norc", "-euo", "pipefail", "-c", script]
    return run(server, ["bash", *options], directory, **environment)


@pytest.mark.parametrize("script", blocks(PAGE, "sh"))
def test_shell_commands_succeed(iris_server: RegistryServer, tmp_path: Path, script: str) -> None:
    assert run_bash(iris_server, script, tmp_path) == 0


def test_the_webhook_is_created_and_its_deliveries_are_taken(iris_server: RegistryServer, tmp_path: Path) -> None:
    shutil.copy(iris_server.instance.state.path / "webhook-secret", tmp_path)
    client = iris_server.mlflow.client
    before = {webhook.webhook_id for webhook in client.list_webhooks()}
    assert run(iris_server, [sys.executable, "-c", block(PAGE, "python", "create_webhook")], tmp_path) == 0
    (created,) = {webhook.webhook_id for webhook in client.list_webhooks()} - before
    tried = client.test_webhook(created)
    client.delete_webhook(created)
    assert tried.success, tried
    assert tried.response_status == 200  # the model of its example is no one's here


def workflow_steps() -> list[str]:
    (job,) = yaml.safe_load(block(PAGE, "yaml", "runs-on"))["jobs"].values()
    assert job["defaults"] == {"run": {"shell": "bash"}}
    assert job["env"]["SERVER"] == EXAMPLE
    return [step["run"] for step in job["steps"]]


def test_the_workflow_succeeds_step_by_step(iris_server: RegistryServer, tmp_path: Path) -> None:
    assert [run_bash(iris_server, step, tmp_path) for step in workflow_steps()] == [0, 0, 0]


def test_the_workflow_fails_with_a_wrong_token_or_version(iris_server: RegistryServer, tmp_path: Path) -> None:
    reload, verify, _ = workflow_steps()
    assert run_bash(iris_server, reload, tmp_path, ADMIN_API_TOKEN="wrong") != 0
    assert run_bash(iris_server, verify, tmp_path, MODEL_VERSION="999") != 0


def pipeline_scripts() -> list[str]:
    code = block(PAGE, "groovy", "pipeline {")
    assert f"SERVER = '{EXAMPLE}'" in code
    # In three single quotes Groovy reads a backslash before a line end as nothing, and the shell would too.
    return [script.replace("\\\n", "") for script in re.findall(r"sh '''(.*?)'''", code, re.DOTALL)]


def test_the_pipeline_succeeds_and_fails_with_a_wrong_token(iris_server: RegistryServer, tmp_path: Path) -> None:
    scripts = pipeline_scripts()
    assert [run(iris_server, ["sh", "-xe", "-c", script], tmp_path) for script in scripts] == [0, 0]
    assert run(iris_server, ["sh", "-xe", "-c", scripts[0]], tmp_path, ADMIN_API_TOKEN="wrong") != 0


def test_the_line_for_cron_reloads(iris_server: RegistryServer, tmp_path: Path) -> None:
    *settings, line = block(PAGE, "crontab", "admin/reload").splitlines()
    assert [setting.split("=")[0] for setting in settings] == ["SERVER", "TOKEN_FILE"]
    command = line.split(maxsplit=5)[5]
    assert "%" not in command  # cron would read it as the end of a line
    (tmp_path / "token").write_text(iris_server.token + "\n")
    labels = {"method": "POST", "path": "/admin/reload", "status": "200"}
    before = iris_server.metric("ml_request_count", **labels) or 0
    assert run(iris_server, ["sh", "-c", command], tmp_path, TOKEN_FILE="token", ADMIN_API_TOKEN="") == 0
    assert iris_server.metric("ml_request_count", **labels) == before + 1
