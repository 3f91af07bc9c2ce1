import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.benchmarks.measurements import load_from_wrk
from tests.benchmarks.wrk import LoadError, Request, last_json_line, put_under_load

PRINTED = """Running 2s test @ http://127.0.0.1:8000/predict
  1 threads and 32 connections
Requests/sec:    971.82

{"requests": 1950, "duration_us": 2006545, "bytes": 290550, "errors": {"connect": 0, "read": 1, "write": 0, \
"status": 4, "timeout": 0}, "latency_us": {"p50": 32013, "p75": 33100, "p90": 35521, "p99": 41873, "max": 50211}}
"""


def test_the_last_line_of_wrk_becomes_a_load_in_seconds_and_milliseconds() -> None:
    load = load_from_wrk(last_json_line(PRINTED))

    assert load.requests == 1950
    assert load.duration_s == pytest.approx(2.006545)
    assert (load.p50_ms, load.p99_ms, load.max_ms) == (32.013, 41.873, 50.211)
    assert load.error_count == 5


def test_only_good_answers_count_as_throughput() -> None:
    load = load_from_wrk(last_json_line(PRINTED))

    assert load.good_per_s == pytest.approx(1946 / 2.006545)


def test_output_without_a_result_is_refused_with_what_was_printed() -> None:
    with pytest.raises(LoadError, match="unable to connect"):
        last_json_line("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_a_body_makes_the_request_a_post(tmp_path: Path) -> None:
    assert Request("http://127.0.0.1/live").arguments == ["GET"]
    assert Request("http://127.0.0.1/p", tmp_path / "body").arguments == ["POST", str(tmp_path / "body")]


class OnlyThisBody(BaseHTTPRequestHandler):
    """Answers 200 to a JSON POST of `[1]`, 400 to everything else."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(400)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200 if body == b"[1]" and self.headers["Content-Type"] == "application/json" else 400)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), OnlyThisBody) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed; only the benchmark needs it")
def test_wrk_posts_the_body_and_counts_refusals(address: str, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text("[1]")

    good = put_under_load(Request(address, body), connections=2, seconds=1)
    bad = put_under_load(Request(address), connections=2, seconds=1)

    assert good.requests > 0
    assert good.error_count == 0
    assert 0 < good.p50_ms <= good.p99_ms <= good.max_ms
    assert bad.errors["status"] == bad.requests > 0
    assert bad.good_per_s == 0
