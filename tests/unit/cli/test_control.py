import asyncio
import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner, Result

from serve_app.cli import app
from serve_app.cli.ports import choose_free
from tests.unit.ingress.administered import READ, RELOAD, Administered
from tests.unit.ingress.serving import FAMILY


@dataclass
class Operator:
    """Runs commands against a server that is reached over a real socket; its control plane is a fake one."""

    served: Administered
    url: str
    token_file: Path

    def run(self, *command: str) -> Result:
        return CliRunner().invoke(app, [*command, "--url", self.url, "--token-file", str(self.token_file)])


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    made: queue.SimpleQueue[tuple[Administered, uvicorn.Server]] = queue.SimpleQueue()

    async def serve(listening: socket.socket) -> None:
        served = Administered()
        server = uvicorn.Server(uvicorn.Config(served.api, lifespan="off", ws="none", log_config=None))
        made.put((served, server))
        await server.serve(sockets=[listening])

    # Listening already: connections wait for the server instead of the test for it.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=asyncio.run, args=(serve(listening),))
        thread.start()
        served, server = made.get()
        token_file = tmp_path / "token"
        token_file.write_text(RELOAD)
        yield Operator(served, f"http://127.0.0.1:{listening.getsockname()[1]}", token_file)
        server.should_exit = True
        thread.join()


def test_reload_takes_up_what_is_new_and_says_from_where_to_where(operator: Operator) -> None:
    operator.served.plane.publish("v2")
    result = operator.run("reload")
    assert result.exit_code == 0, result.output
    assert f"{FAMILY}: v1 → v2, generation" in result.output


def test_reload_without_news_changes_nothing_and_is_no_error(operator: Operator) -> None:
    result = operator.run("reload", "--family", FAMILY)
    assert result.exit_code == 0, result.output
    assert f"{FAMILY}: v1 answers already, nothing changed" in result.output


def test_reload_of_one_version_takes_that_one(operator: Operator) -> None:
    for version in ("v2", "v3"):
        operator.served.plane.publish(version)
    result = operator.run("reload", "--version", "v2")
    assert result.exit_code == 0, result.output
    assert f"{FAMILY}: v1 → v2" in result.output


@pytest.mark.parametrize("options", [(), ("--version", "v2")])
def test_failed_reload_says_what_stays_and_why(operator: Operator, options: tuple[str, ...]) -> None:
    operator.served.plane.publish("v2")
    operator.served.plane.broken["v2"] = "weights are missing"
    result = operator.run("reload", *options)
    assert result.exit_code == 1
    assert "v2 was not taken up, v1 stays: weights are missing" in result.output


def test_unknown_version_is_told_with_those_that_are_known(operator: Operator) -> None:
    result = operator.run("reload", "--version", "v7")
    assert result.exit_code == 1
    assert "404" in result.output
    assert "v1" in result.output


def test_rollback_goes_back_to_the_last_good_version(operator: Operator) -> None:
    operator.served.plane.publish("v2")
    operator.run("reload")
    result = operator.run("rollback")
    assert result.exit_code == 0, result.output
    assert f"{FAMILY}: v2 → v1" in result.output


def test_rollback_goes_to_the_version_that_is_named(operator: Operator) -> None:
    for version in ("v2", "v3"):
        operator.served.plane.publish(version)
        operator.run("reload")
    assert "v3 → v1" in operator.run("rollback", "--to", "v1").output
    assert "v1 answers already" in operator.run("rollback", "--to", "v1").output


def test_rollback_without_an_earlier_version_is_refused_in_one_sentence(operator: Operator) -> None:
    result = operator.run("rollback")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("error the server answers 404: ")
    assert "Traceback" not in result.output


def test_audit_shows_who_changed_what(operator: Operator) -> None:
    assert "nothing was changed yet" in operator.run("audit").output
    operator.served.plane.publish("v2")
    operator.run("reload")
    operator.run("rollback")
    lines = operator.run("audit", "--family", FAMILY).output.splitlines()
    assert [line.split()[2:7] for line in lines[1:]] == [
        [FAMILY, "ci", "rollback", "v2", "v1"],
        [FAMILY, "ci", "reload", "v1", "v2"],
    ]


def test_unknown_family_is_told_with_the_nearest(operator: Operator) -> None:
    result = operator.run("rollback", "--family", "forecastr")
    assert result.exit_code == 1
    assert f"did you mean '{FAMILY}'" in result.output


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nobody knows me 0123456789\n", "cannot be used"),
        ("nobody-knows-me-0123456789\n", "the server does not know this token"),
        (f"ann read {READ}\n", "no token with the scope 'reload'"),
        (f"ci reload sha256:{'0' * 64}\n", "no token with the scope 'reload' that is written out"),
    ],
)
def test_token_that_will_not_do_is_told_and_never_shown(operator: Operator, text: str, told: str) -> None:
    operator.token_file.write_text(text)
    result = operator.run("reload")
    assert result.exit_code == 1
    assert told in result.output
    assert text.split()[-1] not in result.output


def test_token_is_found_among_others_in_the_file(operator: Operator) -> None:
    operator.token_file.write_text(f"# tokens\nann read {READ}\n\nci reload {RELOAD}\n")
    assert operator.run("reload").exit_code == 0


def test_missing_token_file_is_told(operator: Operator) -> None:
    operator.token_file.unlink()
    result = operator.run("reload")
    assert result.exit_code == 1
    assert "cannot be read: No such file or directory" in result.output


def test_token_of_the_state_directory_does_not_go_to_another_server(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "admin-token").write_text(RELOAD)
    result = CliRunner().invoke(app, ["reload", "--url", operator.url, "--state-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "the server wants an admin token" in result.output


@pytest.mark.parametrize("command", ["reload", "rollback", "audit"])
def test_server_that_is_not_there_is_one_sentence(command: str, tmp_path: Path) -> None:
    (port,) = choose_free(1)
    result = CliRunner().invoke(app, [command, "--url", f"http://127.0.0.1:{port}"])
    assert result.exit_code == 1
    assert "does not answer" in result.output
    result = CliRunner().invoke(app, [command, "--state-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "serve-app up" in result.output


@pytest.mark.parametrize("url", ["127.0.0.1", "ftp://127.0.0.1", "http://127.0.0.1:port"])
def test_address_that_is_none_is_one_sentence(url: str) -> None:
    result = CliRunner().invoke(app, ["audit", "--url", url])
    assert result.exit_code == 1
    assert result.output.startswith("error ")
    assert "Traceback" not in result.output
