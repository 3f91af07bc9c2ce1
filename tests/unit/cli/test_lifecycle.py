import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.cli.state_dir import StateDir

LOCAL = Path(__file__).parents[3] / "configs" / "local.yaml"


@pytest.fixture
def cli() -> CliRunner:
    return CliRunner()


def test_a_taken_port_is_told_with_its_holder_and_nothing_starts(cli: CliRunner, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = cli.invoke(app, ["up", "--config", str(LOCAL), "--state-dir", str(tmp_path), "--port", str(port)])
    assert result.exit_code == 1
    assert f"port {port} on 127.0.0.1 is taken by" in result.output
    assert f"(pid {os.getpid()})" in result.output
    assert StateDir.at(tmp_path).read_record() is None


def test_a_wrong_config_is_told_before_anything_is_made(cli: CliRunner, tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text(LOCAL.read_text().replace("default_family: forecaster", "default_family: [forecaster"))
    result = cli.invoke(app, ["up", "--config", str(config), "--state-dir", str(tmp_path / "state")])
    assert result.exit_code == 1
    assert "wrong.yaml" in result.output
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("state_dir", ["", "never-made"])
def test_down_without_a_server_is_no_error(cli: CliRunner, tmp_path: Path, state_dir: str) -> None:
    result = cli.invoke(app, ["down", "--state-dir", str(tmp_path / state_dir)])
    assert result.exit_code == 0
    assert "nothing runs" in result.output


@pytest.mark.parametrize("command", [["status"], ["env"], ["deploy", str(LOCAL)]])
def test_commands_that_need_a_server_say_how_to_start_one(cli: CliRunner, tmp_path: Path, command: list[str]) -> None:
    result = cli.invoke(app, [*command, "--state-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "serve-app up" in result.output


def test_a_second_command_at_the_same_time_is_refused(cli: CliRunner, tmp_path: Path) -> None:
    state = StateDir.at(tmp_path)
    state.prepare()
    with state.lock():
        result = cli.invoke(app, ["down", "--state-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "at work" in result.output
