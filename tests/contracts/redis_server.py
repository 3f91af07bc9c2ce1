"""A Redis server of a test's own, on a port of this machine, with its data in a directory that goes away with it."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import redis

_START_S = 20.0


class NoRedisError(Exception):
    """No server can be started here; the message says why."""


class RedisServer:
    """`root` holds its data. It writes every command to the disk before it answers, as the tests of kills need it."""

    def __init__(self, root: Path, program: Path) -> None:
        self.root = root
        self.port = _free_port()
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._names = count(1)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def new_family(self) -> str:
        """Return a name that no other test uses."""
        return f"family-{next(self._names)}"

    def client(self) -> redis.Redis:
        """Return a client that looks at what is there."""
        return redis.Redis.from_url(self.url)

    def start(self) -> None:
        """Start it and wait until it has read its data and answers.

        Raises:
            NoRedisError: It ended, or does not answer.
        """
        options = ["--port", self.port, "--bind", "127.0.0.1", "--dir", self.root, "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "yes"]
        with (self.root / "log").open("ab") as log:
            # The name decides what the program is; Debian's redis-tools has it as redis-check-rdb only.
            command = ["redis-server", *map(str, options)]
            self._process = subprocess.Popen(
                command, executable=self._program, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        give_up_s = time.monotonic() + _START_S
        with self.client() as client:
            while not _answers(client):
                if self._process.poll() is not None or time.monotonic() > give_up_s:
                    self.kill()
                    raise NoRedisError(f"redis-server does not start: {(self.root / 'log').read_text()[-500:]}")
                time.sleep(0.02)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Run a server for as long as the context lasts.

    Raises:
        NoRedisError: None is installed, or it does not start.
    """
    program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    if program is None:
        raise NoRedisError("no Redis is installed (Debian: apt-get install redis-tools, or redis-server)")
    root = Path(tempfile.mkdtemp(prefix="serve-app-redis-"))
    server = RedisServer(root, Path(program))
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(root)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:  # not there yet, or reading its data
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
