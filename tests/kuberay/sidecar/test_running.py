"""The sidecar as a process: how often it looks, how it ends, whom it tells, what it costs."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import psutil
import pytest

from serve_app.ingress.security import RELOAD_TOKEN_HEADER
from tests.kuberay.sidecar.bundles import MODEL, make_live, stage
from tests.kuberay.sidecar.shells import TIMEOUT_S, Shell, lines, log_of, need, with_first

TOKEN: Final = 'a "secret" \\ token'
MOST_RSS_BYTES: Final = 5 * 1024 * 1024
MOST_CPU_SHARE: Final = 0.03
WATCHED_S: Final = 3.0


def awaited(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < until, f"waited {TIMEOUT_S} s for {what}"
        time.sleep(0.02)


@dataclass
class Server:
    """Answers POST /reload with the statuses it is given, the last one again and again."""

    statuses: list[int] = field(default_factory=lambda: [200])
    asked: list[tuple[str, str | None, bytes]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            told.asked.append((self.path, self.headers.get(RELOAD_TOKEN_HEADER), body))
            self.send_response(told.statuses.pop(0) if len(told.statuses) > 1 else told.statuses[0])
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        told.url = f"http://127.0.0.1:{http.server_address[1]}/reload"
        yield told
        http.shutdown()
        thread.join()


@pytest.fixture(params=["curl", "wget"])
def caller(request: pytest.FixtureRequest, shell: Shell, tmp_path: Path) -> Shell:
    """The shell with one way to make a request, and without the other."""
    need(request.param)
    tools = tmp_path / "tools"
    tools.mkdir()
    names = (
        "awk cat cmp cp date df dirname find flock grep head id ln mkdir mv od readlink rm sed sha256sum sleep sort "
        f"stat sync tail timeout tr wc {request.param}"
    )
    for name in names.split():
        found = shutil.which(name, path=shell.path)
        assert found is not None, name
        (tools / name).symlink_to(found)
    return Shell(shell.name, (shutil.which(shell.command[0]) or "", *shell.command[1:]), str(tools))


def test_server_is_told_with_the_token_in_its_header(caller: Shell, root: Path, server: Server) -> None:
    stage(root)
    done = caller.once(root, RELOAD_URL=server.url, RELOAD_TOKEN=TOKEN)
    assert done.returncode == 0
    assert server.asked == [("/reload", TOKEN, b"")]
    assert next(lines(done.stdout, "reload"))["status"] == "200"
    assert "secret" not in done.stdout + done.stderr
    assert not [path for path in root.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def test_server_is_told_without_a_token(caller: Shell, root: Path, server: Server) -> None:
    stage(root)
    assert caller.once(root, RELOAD_URL=server.url).returncode == 0
    assert server.asked == [("/reload", None, b"")]


@pytest.mark.parametrize(
    ("statuses", "outcome", "tries"),
    [
        ([503, 502, 200], "done", 3),
        ([202], "done", 1),
        ([409], "kept", 1),
        ([403], "refused", 1),
        ([500], "refused", 1),
    ],
)
def test_what_may_pass_is_tried_again(
    caller: Shell, root: Path, server: Server, statuses: list[int], outcome: str, tries: int
) -> None:
    server.statuses[:] = statuses
    stage(root)
    done = caller.once(root, RELOAD_URL=server.url)
    (line,) = lines(done.stdout, "reload")
    assert (line["outcome"], line["status"], len(server.asked)) == (outcome, str(statuses[-1]), tries)
    assert done.returncode == 0, "the bundle is live, whatever the server says"


def test_absent_server_does_not_stop_a_promotion(caller: Shell, root: Path) -> None:
    stage(root)
    done = caller.once(root, RELOAD_URL="http://127.0.0.1:1/reload", RELOAD_TRIES="2")
    assert done.returncode == 0
    (line,) = lines(done.stdout, "reload")
    assert (line["outcome"], line["status"], line["try"]) == ("unreached", "000", "2")
    assert (root / "current").readlink() == Path("v1")
    assert not (root / "v1" / ".promoting").exists()


def test_killed_before_the_reload_asks_again(shell: Shell, root: Path, server: Server) -> None:
    make_live(root, "v1")
    (root / "v1" / ".promoting").touch()
    assert shell.once(root, RELOAD_URL=server.url).returncode == 0
    assert len(server.asked) == 1


def test_token_is_on_no_command_line_of_curl(shell: Shell, root: Path, server: Server, tmp_path: Path) -> None:
    need("curl")
    shims = tmp_path / "shims"
    shims.mkdir()
    seen = tmp_path / "seen"
    real = shutil.which("curl")
    (shims / "curl").write_text(f'#!/bin/sh\n{{ echo "$@"; env; }} >"{seen}"\nexec {real} "$@"\n')
    (shims / "curl").chmod(0o755)
    stage(root)
    assert with_first(shell, shims).once(root, RELOAD_URL=server.url, RELOAD_TOKEN=TOKEN).returncode == 0
    assert server.asked[0][1] == TOKEN
    assert "secret" not in seen.read_text()


@pytest.fixture
def running(shell: Shell, root: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts sidecars, and ends those that still run."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        started.append(shell.start(root, *arguments, **settings))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(TIMEOUT_S)


Running = Callable[..., subprocess.Popen[bytes]]


def is_done(root: Path, version: str) -> bool:
    is_live = os.path.lexists(root / "current") and (root / "current").readlink() == Path(version)
    return is_live and not (root / version / ".promoting").exists()


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End a process and its children when the block is left."""
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()
            process.wait(TIMEOUT_S)


def sleeps_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the child that sleeps; a child that is just ending counts for nothing."""
    found = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):
            if child.cmdline()[:1] == ["sleep"]:
                found.append(child)
    return found


def sleep_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    (found,) = sleeps_of(process)
    return found


def is_asleep(process: subprocess.Popen[bytes]) -> bool:
    return bool(sleeps_of(process))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_at_once_and_leaves_nothing(running: Running, root: Path, number: signal.Signals) -> None:
    process = running("--poll-interval", "3000")
    awaited(lambda: is_asleep(process), "the first sleep")
    sleeper = sleep_of(process)
    since = time.monotonic()
    process.send_signal(number)
    assert process.wait(TIMEOUT_S) == 0
    assert time.monotonic() - since < 2
    assert log_of(root).read_text().splitlines()[-1].endswith("event=stopped")
    awaited(lambda: not sleeper.is_running(), "the end of its sleep")


def test_signal_is_heard_while_a_large_file_is_hashed(shell: Shell, root: Path, tmp_path: Path) -> None:
    shims = tmp_path / "slow"
    shims.mkdir()
    (shims / "sha256sum").write_text("#!/bin/sh\nexec sleep 600\n")
    (shims / "sha256sum").chmod(0o755)
    stage(root)
    with ended(with_first(shell, shims).start(root)) as process:
        awaited(lambda: is_asleep(process), "the hash")
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0
    assert (root / "staging" / "READY").exists()
    assert shell.once(root).returncode == 0


def test_bundle_is_found_within_the_interval(running: Running, root: Path) -> None:
    process = running("--poll-interval=0.2")
    awaited(lambda: is_asleep(process), "the first sleep")
    for version in ("v1", "v2"):
        stage(root, version)
        awaited(partial(is_done, root, version), f"the promotion of {version}")


@pytest.mark.parametrize(("manifest", "seconds"), [({"poll_interval_seconds": 7.5}, "7.5"), (None, "11"), ({}, "11")])
def test_interval_is_the_manifests_or_the_default(
    running: Running, root: Path, manifest: dict[str, float] | None, seconds: str
) -> None:
    stage(root, "v1", sidecar=manifest)
    process = running(POLL_DEFAULT="11")
    awaited(lambda: is_asleep(process), "the first sleep")
    sleeper = sleep_of(process)
    assert sleeper.cmdline()[-1] == seconds


def test_interval_is_the_default_without_jq(caller: Shell, root: Path) -> None:
    stage(root, "v1", sidecar={"poll_interval_seconds": 7.5})
    with ended(caller.start(root)) as process:
        awaited(lambda: is_asleep(process), "the first sleep")
        assert sleep_of(process).cmdline()[-1] == "30"
    assert (root / "v1" / MODEL).exists()


def test_orphaned_sleep_holds_up_nobody(running: Running, root: Path) -> None:
    """Killed in its sleep, it leaves the sleep behind; the next one must not wait for that."""
    first = running("--poll-interval", "3000")
    awaited(lambda: is_asleep(first), "the first sleep")
    sleeper = sleep_of(first)
    try:
        first.kill()
        first.wait(TIMEOUT_S)
        stage(root)
        assert running("--once").wait(TIMEOUT_S) == 0
        assert sleeper.is_running()
    finally:
        sleeper.kill()
    assert (root / "current").readlink() == Path("v1")


def test_idle_it_costs_next_to_nothing(running: Running, root: Path) -> None:
    make_live(root, "v1")
    process = running("--poll-interval", "0.5")
    awaited(lambda: is_asleep(process), "the first sleep")
    whole = psutil.Process(process.pid)
    before = whole.cpu_times()
    most = 0
    until = time.monotonic() + WATCHED_S
    while time.monotonic() < until:
        parts = [whole, *whole.children()]
        most = max(most, sum(_rss_bytes(part) for part in parts))
        time.sleep(0.1)
    after = whole.cpu_times()
    used_s = sum(after[:4]) - sum(before[:4])
    assert most < MOST_RSS_BYTES
    assert used_s / WATCHED_S < MOST_CPU_SHARE, "at two looks a second; at 30 s between looks it is a sixtieth"


def _rss_bytes(process: psutil.Process) -> int:
    try:
        rss: int = process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
    return rss


@pytest.mark.parametrize("tool", ["sleep", "flock"])
def test_tool_that_fails_never_makes_it_go_round_and_round(shell: Shell, root: Path, tmp_path: Path, tool: str) -> None:
    shims = tmp_path / "broken"
    shims.mkdir()
    (shims / tool).write_text("#!/bin/sh\nexit 127\n")
    (shims / tool).chmod(0o755)
    broken = with_first(shell, shims)
    stage(root)
    if tool == "sleep":
        with ended(broken.start(root)) as process:
            assert process.wait(TIMEOUT_S) == 1
        return
    assert broken.once(root).returncode == 1
    assert (root / "staging" / "READY").exists()
    assert shell.once(root).returncode == 0
