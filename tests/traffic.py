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
from urllib.parse import urlsplit

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0


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
    def __init__(self, url: str, body: bytes, connections: int, rate: float) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.request = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        self.connections, self.rate = connections, rate
        self.answers: list[Answer] = []
        self.stopping = False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        await asyncio.gather(*(self.connection(i) for i in range(self.connections)))

    def stop(self) -> None:
        self.stopping = True

    async def connection(self, i: int) -> None:
        reader = writer = None
        period_s = self.connections / self.rate if self.rate else 0.0
        due_s = time.monotonic() + period_s * i / self.connections
        while not self.stopping:
            if self.rate:
                await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
            else:
                due_s = time.monotonic()
            status, version, generation = 0, "", -1
            try:
                if writer is None or reader is None:
                    reader, writer = await asyncio.open_connection(self.host, self.port)
                writer.write(self.request)
                status, version, generation, keeps_open = await self.answer(reader)
                if not keeps_open:
                    writer.close()
                    reader = writer = None
            except (OSError, asyncio.IncompleteReadError):
                if writer is not None:
                    writer.close()
                reader = writer = None
            now_s = time.monotonic()
            self.answers.append(Answer(now_s, now_s - due_s, status, version, generation, i))
            if len(self.answers) == 1:
                sys.stdout.write("flowing\n")
                sys.stdout.flush()
            due_s += period_s
        if writer is not None:
            writer.close()

    @staticmethod
    async def answer(reader: asyncio.StreamReader) -> tuple[int, str, int, bool]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while n_bytes := int((await reader.readline()).split(b";")[0], 16):
                await reader.readexactly(n_bytes + len(b"\r\n"))
            await reader.readuntil(b"\r\n")
        else:
            await reader.readexactly(int(headers.get("content-length", "0")))
        version, generation = headers.get("x-model-version", ""), int(headers.get("x-generation", "-1"))
        return int(first.split(" ")[1]), version, generation, headers.get("connection", "").lower() != "close"


def main() -> None:
    url, body, record, connections, rate = sys.argv[1:]
    driver = _Driver(url, Path(body).read_bytes(), int(connections), float(rate))
    asyncio.run(driver.run())
    Path(record).write_text(json.dumps([dataclasses.astuple(answer) for answer in driver.answers]))


if __name__ == "__main__":
    main()
