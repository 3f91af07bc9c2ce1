"""A server that answers as a registry in trouble does: what a real one cannot be made to say on demand."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, bytes]


@dataclass
class StubRegistry:
    """Answers every request with `answer`; None closes the connection, and while `holds` is set nothing is said.

    Where the path of a request holds a key of `answers`, it gets that answer instead.
    """

    answer: Answer | None = (200, b"{}")
    answers: dict[str, Answer | None] = field(default_factory=dict)
    holds: bool = False
    n_requests: int = 0
    uri: str = ""
    let_go: threading.Event = field(default_factory=threading.Event)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        self.n_requests += 1
        if self.holds:
            self.let_go.wait(60)
        answer = next((answer for part, answer in self.answers.items() if part in request.path), self.answer)
        if self.holds or answer is None:
            request.close_connection = True
            return
        status, body = answer
        request.send_response(status)
        request.send_header("Retry-After", "100")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@contextmanager
def stub_registry() -> Iterator[StubRegistry]:
    """Serve it on a free port of this machine for as long as the context lasts."""
    stub = StubRegistry()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            stub.handle(self)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        stub.uri = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield stub
        finally:
            stub.let_go.set()
            server.shutdown()
            thread.join()
