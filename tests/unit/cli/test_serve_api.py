import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from serve_app.cli.ports import choose_free
from serve_app.cli.profile import Profile
from serve_app.cli.serve_api import ServeApi, ServeApiError, parse_status
from serve_app.cli.state_dir import RunRecord

TWO_OF_THREE = {
    "applications": {
        "app": {
            "status": "DEPLOYING",
            "message": "",
            "deployments": {
                "Gateway": {
                    "status": "UPDATING",
                    "message": "waiting",
                    "target_num_replicas": 3,
                    "replicas": [{"state": "RUNNING"}, {"state": "RUNNING"}, {"state": "STARTING"}],
                }
            },
        }
    }
}


@dataclass
class Dashboard:
    """An HTTP server that plays Ray's dashboard: it notes each request and gives one answer."""

    port: int
    code: int = 200
    answer: Any = field(default_factory=lambda: {"applications": {}})
    requests: list[tuple[str, str, str | None, Any]] = field(default_factory=list)


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            played.requests.append((self.command, self.path, self.headers.get("Authorization"), body))
            self.send_response(played.code)
            self.end_headers()
            self.wfile.write(json.dumps(played.answer).encode())

        do_GET = do_PUT = reply  # noqa: N815  names that http.server looks for

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    played = Dashboard(port=server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield played
    server.shutdown()
    thread.join()
    server.server_close()


def record_for(tmp_path: Path, port: int) -> RunRecord:
    record = RunRecord(
        runtime_dir=tmp_path,
        profile=Profile.SAFE,
        host="127.0.0.1",
        port=1,
        gcs_port=1,
        dashboard_port=port,
        started_at_s=0.0,
    )
    record.ray_token_file.write_text("the-token")
    return record


def test_a_config_is_put_with_the_token_of_the_instance(dashboard: Dashboard, tmp_path: Path) -> None:
    with ServeApi(record_for(tmp_path, dashboard.port)) as api:
        api.deploy({"applications": []})
    assert dashboard.requests == [("PUT", "/api/serve/applications/", "Bearer the-token", {"applications": []})]


def test_the_status_counts_replicas_by_state(dashboard: Dashboard, tmp_path: Path) -> None:
    dashboard.answer = TWO_OF_THREE
    with ServeApi(record_for(tmp_path, dashboard.port)) as api:
        status = api.status()
    assert status.replicas == (2, 3)
    assert status.deployments[0].replicas == {"RUNNING": 2, "STARTING": 1}
    assert status.last_message == "Gateway: waiting"
    assert status.failed == []


def test_a_failed_application_is_named() -> None:
    status = parse_status({"applications": {"app": {"status": "DEPLOY_FAILED", "message": "no module named x"}}})
    assert status.failed == ["app"]
    assert status.last_message == "app: no module named x"


def test_a_refusal_carries_what_serve_said(dashboard: Dashboard, tmp_path: Path) -> None:
    dashboard.code, dashboard.answer = 400, "port must be a number"
    with (
        ServeApi(record_for(tmp_path, dashboard.port)) as api,
        pytest.raises(ServeApiError, match=r"400.*must be a number"),
    ):
        api.deploy({})


def test_an_absent_server_is_an_error_of_ours(tmp_path: Path) -> None:
    (port,) = choose_free(1)
    with ServeApi(record_for(tmp_path, port)) as api, pytest.raises(ServeApiError, match="does not answer"):
        api.status()
