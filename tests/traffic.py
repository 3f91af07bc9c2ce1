"""Continuous traffic in a process of its own, with a record of every single answer.

    with Traffic.started("http://127.0.0.1:8000/predict/iris", body, connections=16, rate=None) as traffic:
        …                               # change something
    answers = traffic.answers           # after the block: one `Answer` a request, in the order they came

With `rate` the driver is open-loop: requests are due at fixed times, and a latency counts from the time a request was
due, so a stall of the server is seen in full. Without it every connection sends as fast as it is answered.
"""

import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0
GIVE_UP_S = 30.0
"""How long the driver waits for answers once it is told to stop; a request without one counts as cut."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was answered (monotonic clock of this machine), how long it took, and what came back.

    `status` 0 means that the connection was cut before an answer came.
    """

    at_s: float
    latency_s: float
    status: int
    version: str
    generation: int
    connection: int


@dataclass(slots=True)
class Traffic:
    """A running driver, and its record once it has been stopped."""

    process: subprocess.Popen[str]
    record: Path
    answers: list[Answer] = field(default_factory=list)

    @classmethod
    @contextmanager
    def started(cls, url: str, body: bytes, *, connections: int, rate: float | None = None) -> Iterator["Traffic"]:
        """Run traffic for as long as the block runs; it has had its first answer when the block begins."""
        with tempfile.TemporaryDirectory() as folder:
            record, payload = Path(folder, "answers.json"), Path(folder, "body")
            payload.write_bytes(body)
            command = [sys.executable, "-m", "tests.traffic", url, str(payload), str(record), str(connections)]
            command.append(str(rate or 0))
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            traffic = cls(process, record)
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "flowing\n", "the traffic driver got no answer"
                yield traffic
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=STOP_TIMEOUT_S)
                if process.stdout is not None:
                    process.stdout.close()
            traffic.answers = [Answer(*row) for row in json.loads(record.read_text())]

    def failed(self) -> list[Answer]:
        """Return every request that was not answered with 200."""
        return [answer for answer in self.answers if answer.status != 200]

    def between(self, start_s: float, end_s: float) -> list[Answer]:
        """Return the answers that came within a window of the monotonic clock."""
        return [answer for answer in self.answers if start_s <= answer.at_s < end_s]


def quantile(answers: Sequence[Answer], share: float) -> float:
    """Return the latency (seconds) below which `share` of the answers lie."""
    latencies = sorted(answer.latency_s for answer in answers)
    return latencies[min(int(share * len(latencies)), len(latencies) - 1)]


class _Driver:
    """Sends over all connections and keeps what came back. Lives on one event loop."""

    def __init__(self, url: str, body: bytes, connections: int, rate: float) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.request = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        self.period_s = connections / rate if rate else 0.0
        self.answers: list[Answer] = []
        self.stopping = False
        self._open = connections
        self._connections: list[_Connection] = []
        self._all_closed = asyncio.Event()

    async def run(self, connections: int) -> None:
        """Send until SIGTERM comes, and return when every request under way has its answer."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop)
        first_s = time.monotonic()
        self._connections = [
            _Connection(self, i, first_s + self.period_s * i / connections) for i in range(connections)
        ]
        await self._all_closed.wait()

    def stop(self) -> None:
        """Send nothing more, and wait a while for what is under way."""
        self.stopping = True
        asyncio.get_running_loop().call_later(GIVE_UP_S, self._give_up)

    def _give_up(self) -> None:
        for connection in self._connections:
            connection.give_up()

    def note(self, answer: Answer) -> None:
        """Keep an answer."""
        self.answers.append(answer)
        if len(self.answers) == 1:
            sys.stdout.write("flowing\n")
            sys.stdout.flush()

    def closed(self) -> None:
        """Hear that a connection sends nothing more."""
        self._open -= 1
        if not self._open:
            self._all_closed.set()


class _Wire(asyncio.Protocol):
    """One TCP connection; a protocol and no stream, since the driver must leave the processors to what it measures."""

    def __init__(self, connection: "_Connection") -> None:
        self._connection = connection
        self._received = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        if (found := read_answer(self._received)) is not None:
            self._received = b""
            self._connection.answered(*found)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost(self)


class _Connection:
    """Sends one request after the other; opens a new wire when the last one was cut or closed."""

    def __init__(self, driver: _Driver, i: int, due_s: float) -> None:
        self._driver, self._i, self._due_s = driver, i, due_s
        self._loop = asyncio.get_running_loop()
        self._wire: _Wire | None = None
        self._is_waiting = False
        self._opening: asyncio.Task[None] | None = None
        self._next()

    def answered(self, status: int, version: str, generation: int, keeps_open: bool) -> None:
        """Take the answer to the request under way."""
        if not keeps_open:
            self._drop_wire()
        self._end(status, version, generation)

    def give_up(self) -> None:
        """Stop waiting for an answer."""
        if self._is_waiting:
            self._drop_wire()
            self._end(0, "", -1)

    def lost(self, wire: _Wire) -> None:
        """Hear that a wire is gone; with it the answer that was awaited on it."""
        if wire is self._wire:
            self._wire = None
            if self._is_waiting:
                self._end(0, "", -1)

    def _next(self) -> None:
        if self._driver.stopping:
            self._drop_wire()
            self._driver.closed()
        elif self._driver.period_s:
            self._loop.call_later(max(self._due_s - time.monotonic(), 0.0), self._send)
        else:
            self._due_s = time.monotonic()
            self._send()

    def _send(self) -> None:
        self._is_waiting = True
        if self._wire is None or self._wire.transport is None:
            self._opening = self._loop.create_task(self._open())
        else:
            self._wire.transport.write(self._driver.request)

    async def _open(self) -> None:
        wire = _Wire(self)
        try:
            await self._loop.create_connection(lambda: wire, self._driver.host, self._driver.port)
        except OSError:
            self._end(0, "", -1)
        else:
            self._wire = wire
            assert wire.transport is not None, "asyncio calls connection_made before it returns"
            wire.transport.write(self._driver.request)

    def _end(self, status: int, version: str, generation: int) -> None:
        self._is_waiting = False
        now_s = time.monotonic()
        self._driver.note(Answer(now_s, now_s - self._due_s, status, version, generation, self._i))
        self._due_s += self._driver.period_s
        self._loop.call_soon(self._next)  # not at once: refused connections would recurse

    def _drop_wire(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None and wire.transport is not None:
            wire.transport.abort()


def read_answer(received: bytes) -> tuple[int, str, int, bool] | None:
    """Read a whole HTTP/1.1 answer: status, version, generation, and whether the connection stays; None: not yet."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head, rest = received[:end] + b"\r\n", received[end + 4 :]
    names = head.lower()
    if _value(head, names, b"transfer-encoding").lower() == b"chunked":
        if not rest.endswith(b"0\r\n\r\n"):
            return None
    elif len(rest) < int(_value(head, names, b"content-length") or 0):
        return None
    version, generation = _value(head, names, b"x-model-version"), _value(head, names, b"x-generation")
    keeps_open = _value(head, names, b"connection").lower() != b"close"
    return int(head[9:12]), version.decode(), int(generation or -1), keeps_open


def _value(head: bytes, names: bytes, name: bytes) -> bytes:
    """Return the value of a header; `names` is `head` in lower case."""
    start = names.find(b"\r\n" + name + b": ")
    if start < 0:
        return b""
    start += len(name) + 4
    return head[start : head.index(b"\r\n", start)]


def main() -> None:
    """Run the driver; what it is told stands in the arguments."""
    url, body, record, connections, rate = sys.argv[1:]

    async def drive() -> list[Answer]:
        driver = _Driver(url, Path(body).read_bytes(), int(connections), float(rate))
        await driver.run(int(connections))
        return driver.answers

    answers = uvloop.run(drive())
    Path(record).write_text(json.dumps([dataclasses.astuple(answer) for answer in answers]))


if __name__ == "__main__":
    main()
