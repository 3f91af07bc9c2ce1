"""A small HTTP server in a thread that takes what webhooks send; it fails, hangs, goes away and comes back."""

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Delivered:
    """One request as it came."""

    path: str
    headers: Message
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """Answers with `status`, `answer_headers` and `answer_body`; it hangs while `may_answer` is not set."""

    def __init__(self) -> None:
        self.got: list[Delivered] = []
        self.status = 200
        self.answer_headers: dict[str, str] = {}
        self.answer_body = b"ok"
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def open(self) -> None:
        """Listen, at the port of before where there was one."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(Delivered(self.path, self.headers, body))
                receiver.may_answer.wait(timeout=30)
                self.send_response(receiver.status)
                for name, value in receiver.answer_headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(receiver.answer_body)))
                with contextlib.suppress(ConnectionError):  # whoever asked has given up
                    self.end_headers()
                    self.wfile.write(receiver.answer_body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        """Go away: connections are refused."""
        if self._server is not None:
            self.may_answer.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def http_receiver() -> Iterator[Receiver]:
    """Give one that listens."""
    receiver = Receiver()
    receiver.open()
    try:
        yield receiver
    finally:
        receiver.close()
