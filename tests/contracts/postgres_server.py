"""A PostgreSQL server of a test's own, reached by a Unix socket in a directory that goes away with it."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import create_engine, text


class NoPostgresError(Exception):
    """No server can be started here; the message says why."""


@dataclass(frozen=True)
class PostgresServer:
    """`root` holds data and socket. The server refuses to run as root, so root starts it as somebody else."""

    root: Path
    bin: Path
    user: str | None
    _names: Iterator[int] = field(default_factory=lambda: count(1))

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"state_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url_of(name)

    def url_of(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql+psycopg://tester@/{database}?host={quote(str(self.root))}"

    def execute(self, statement: str) -> None:
        """Run one statement outside any transaction."""
        engine = create_engine(self.url_of("postgres"), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text(statement))
        finally:
            engine.dispose()

    def start(self) -> None:
        """Start it and wait until it answers."""
        # What is tested is the client, so the server may forget: no fsync, no network.
        options = f"-k {self.root} -c listen_addresses='' -c fsync=off -c max_connections=60"
        self._run("pg_ctl", "start", "--wait", "--silent", f"--log={self.root / 'log'}", f"--options={options}")

    def stop(self) -> None:
        """Cut every connection and stop it."""
        self._run("pg_ctl", "stop", "--wait", "--silent", "--mode=fast")

    def make_data(self) -> None:
        """Lay out the files of an empty server."""
        self._run("initdb", "--username=tester", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        output = self.root / "output"  # not a pipe: that would stay open as long as the server runs
        with output.open("w") as stream:
            ended = subprocess.run(
                [self.bin / program, f"--pgdata={self.root / 'data'}", *arguments],
                user=self.user,
                group=self.user and pwd.getpwnam(self.user).pw_gid,
                extra_groups=[] if self.user else None,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=60,
                check=False,
            )
        if ended.returncode != 0:
            raise NoPostgresError(f"{program} failed: {output.read_text()[-500:]}")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server for as long as the context lasts.

    Raises:
        NoPostgresError: None is installed, or it cannot be started by this user.
    """
    root = Path(tempfile.mkdtemp(prefix="serve-app-pg-"))  # short: a socket's path may have 107 characters
    try:
        server = PostgresServer(root, _programs(), _unprivileged_user())
        if server.user:
            shutil.chown(root, server.user)
        server.make_data()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(root)


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.stat().st_mtime)
    if found:
        return found[-1].parent
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    raise NoPostgresError("no PostgreSQL is installed (Debian: apt-get install postgresql)")


def _unprivileged_user() -> str | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in names:
            return name
    raise NoPostgresError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")
