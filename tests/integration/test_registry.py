"""The MLflow family on a real server and a real registry: S3's and S4's clients, promotion, webhooks, outages."""

import json
import os
import re
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration import registry
from tests.integration.instance import await_that
from tests.integration.iris import never_goes_back, one_version_each
from tests.integration.registry import (
    COLUMNS,
    FLOWERS,
    FRAUD,
    FRAUD_MODEL,
    HOOKED,
    INTERVAL_S,
    IRIS,
    IRIS_MODEL,
    ROW,
    RegistryServer,
    first_answer_s,
    holders,
    now_s,
    register,
    register_copies,
    train,
)
from tests.mlflow_server import free_port

pytestmark = pytest.mark.ray

PATIENCE_S = 20.0
"""What a version may take on a busy machine. The aim is 2 s; `python -m tests.benchmarks.registry` measures it."""
N_KILLS = 10


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script as its reader would: in bash, with nothing but its own variables beside the usual ones."""
    return subprocess.run(
        ["bash", "-uo", "pipefail", "-c", textwrap.dedent(script)],
        env={**os.environ, "NO_PROXY": "127.0.0.1,localhost", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# A start without the registry and without copies


def test_without_registry_and_copies_the_family_is_503_and_health_says_why(registry_server: RegistryServer) -> None:
    refused, health = registry_server.unserved
    assert refused.status_code == 503, refused.text
    assert int(refused.headers["retry-after"]) >= 1
    assert "registry" in refused.json()["detail"]
    told = health.json()["mlflow"]
    assert (told["status"], told["model_uri"], told["verified_at"]) == ("error", None, None)
    assert registry_server.mlflow.uri in told["last_error"]
    tried_again_s = datetime.fromisoformat(told["next_try_at"]).timestamp()
    answered_s = datetime.strptime(health.headers["date"], "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC).timestamp()
    assert -1 <= tried_again_s - answered_s <= 66


def test_when_the_registry_comes_the_family_recovers_by_itself(registry_server: RegistryServer) -> None:
    await_that(lambda: registry_server.source(FLOWERS)["status"] == "ok", timeout_s=PATIENCE_S)
    source = registry_server.source(FLOWERS)
    assert (source["name"], source["selector"]) == (FLOWERS, "champion")
    assert source["server_version"]
    assert source["verified_at"].endswith("Z")
    assert source["next_try_at"] is None
    assert "last_error" not in source
    assert registry_server.predict(FLOWERS).json()["predictions"] == [0]


# Promotion


def test_a_moved_alias_is_followed_there_and_back_and_no_request_fails(registry_server: RegistryServer) -> None:
    server = registry_server
    new = register(server.mlflow, FLOWERS, answer=1)
    old = server.current(FLOWERS)
    taken_s = []
    with server.traffic(FLOWERS) as traffic:
        for version, answer in ((new, 1), (old, 0)):
            moved_s = now_s()
            server.mlflow.set_alias(FLOWERS, version)
            server.await_version(FLOWERS, version)
            assert server.predict(FLOWERS).json()["predictions"] == [answer]
            taken_s.append((version, moved_s))
    assert traffic.failed() == []
    assert never_goes_back(traffic.answers)
    assert one_version_each(traffic.answers)
    for version, moved_s in taken_s:
        found_s = first_answer_s(traffic.answers, version, moved_s)
        assert found_s <= INTERVAL_S + PATIENCE_S, f"version {version} answered first after {found_s:.2f} s"


def test_a_version_that_cannot_be_loaded_changes_nothing(registry_server: RegistryServer) -> None:
    server = registry_server
    before = server.current(FLOWERS)
    bad = server.mlflow.register_files(FLOWERS, {"MLmodel": b"flavors: {sklearn: {pickled_model: no.skops}}\n"})
    with server.traffic(FLOWERS) as traffic:
        server.mlflow.set_alias(FLOWERS, bad)
        await_that(lambda: bool(server.http.get("/health").json()["families"][FLOWERS]["last_error"]), timeout_s=30)
        assert server.current(FLOWERS) == before
        newest = server.audit(FLOWERS)[0]
        assert (newest["to_version"], newest["outcome"]) == (bad, "failed")
        server.mlflow.set_alias(FLOWERS, before)
        await_that(lambda: server.http.get("/health").json()["families"][FLOWERS]["last_error"] is None, timeout_s=30)
    assert traffic.failed() == []
    assert {answer.version for answer in traffic.answers} == {before}


def test_a_signed_webhook_brings_the_version_at_once(registry_server: RegistryServer) -> None:
    """The family looks at its source once an hour, so nothing else can have done it."""
    server = registry_server
    new = register(server.mlflow, HOOKED, answer=1)
    with server.webhook(), server.traffic(HOOKED) as traffic:
        moved_s = now_s()
        server.mlflow.set_alias(HOOKED, new)
        server.await_version(HOOKED, new)
    assert traffic.failed() == []
    found_s = first_answer_s(traffic.answers, new, moved_s)
    assert found_s <= PATIENCE_S, f"the first answer came after {found_s:.2f} s"


def test_a_webhook_that_nobody_signed_is_refused(registry_server: RegistryServer) -> None:
    body = {"entity": "model_version_alias", "action": "created", "timestamp": "now", "data": {"name": HOOKED}}
    headers = {"X-MLflow-Delivery-Id": "1", "X-MLflow-Timestamp": "1", "X-MLflow-Signature": "v1,AAAA"}
    assert registry_server.http.post("/hooks/mlflow", json=body, headers=headers).status_code == 401


# S3


S3_RELOAD_AND_VERIFY = """
    # Trigger reload
    echo "Reloading model..."
    RELOAD_RESULT=$(curl -s -X POST ${BASE_URL}/admin/reload \\
      -H "X-Admin-Token: ${ADMIN_TOKEN}")

    echo "Reload result: ${RELOAD_RESULT}"

    # Check health
    echo "Checking health..."
    HEALTH_RESULT=$(curl -s ${BASE_URL}/health/)

    echo "Health result: ${HEALTH_RESULT}"

    # Parse ready status
    READY=$(echo ${HEALTH_RESULT} | jq -r '.ready')
    if [ "${READY}" = "true" ]; then
      echo "✅ Model is ready"
    else
      echo "❌ Model is not ready"
      exit 1
    fi
"""
S3_PIPELINE = """
    curl -X POST ${BASE_URL}/admin/reload \\
      -H "X-Admin-Token: ${ADMIN_TOKEN}" \\
      -f || exit 1
    sleep 5
    READY=$(curl -s ${BASE_URL}/health/ | jq -r '.ready')
    if [ "$READY" != "true" ]; then
      echo "Model not ready after reload"
      exit 1
    fi
    curl -s ${BASE_URL}/health/ | \\
    jq -e '.ready == true'
"""
S3_PYTHON_CLIENT = '''
import requests

def reload_model(base_url: str, admin_token: str) -> dict:
    """Reload the inference model."""
    response = requests.post(
        f"{base_url}/admin/reload",
        headers={"X-Admin-Token": admin_token}
    )
    response.raise_for_status()
    return response.json()

# Usage
result = reload_model("http://localhost:8000", "secret-token-123")
print(f"Status: {result['status']}")
print(f"Version: {result['version']}")
'''


def test_s3_python_client_reloads_what_the_stage_names(iris_server: RegistryServer) -> None:
    new = register(iris_server.mlflow, IRIS_MODEL, answer=1, stage="Production")
    program = S3_PYTHON_CLIENT.replace("http://localhost:8000", iris_server.address)
    program = program.replace("secret-token-123", iris_server.token)
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    for status, version in (("reloaded", new), ("noop", "None")):
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == f"Status: {status}\nVersion: {version}\n", done.stdout + done.stderr


def test_s3_reload_health_and_prediction(iris_server: RegistryServer) -> None:
    server = iris_server
    new = register(server.mlflow, IRIS_MODEL, answer=2, stage="Production")
    headers = server.admin | {"X-Correlation-ID": "abc-123-xyz"}
    reloaded = server.http.post("/admin/reload", headers=headers)
    assert (reloaded.status_code, reloaded.json()) == (
        200,
        {"status": "reloaded", "detail": "Model reloaded successfully", "version": new, "stage": "Production"},
    )
    again = server.http.post("/admin/reload", headers=server.admin)
    assert (again.status_code, again.json()) == (
        200,
        {"status": "noop", "detail": "Model descriptor unchanged", "version": None, "stage": None},
    )
    for token in ({}, {"X-Admin-Token": "wrong"}):
        forbidden = server.http.post("/admin/reload", headers=token)
        assert (forbidden.status_code, forbidden.json()) == (403, {"detail": "Forbidden"})
    uri = f"models:/{IRIS_MODEL}/{new}"  # gateways hear of sources a second later
    await_that(lambda: server.http.get("/health/").json()["mlflow"]["model_uri"] == uri, timeout_s=10)
    health = server.http.get("/health/").json()
    assert health["ready"] is True
    assert health["details"]["metrics"] == {"accuracy": 0.92, "f1_score": 0.9}
    assert {name: health["mlflow"][name] for name in ("status", "model_uri")} == {
        "status": "ok",
        "model_uri": f"models:/{IRIS_MODEL}/{new}",
    }
    assert re.fullmatch(r"[0-9]+\.[0-9.]+", health["mlflow"]["server_version"])
    assert health["mlflow"]["verified_at"].endswith("Z")
    predicted = server.http.post("/predict/", json={"features": [ROW]})
    assert (predicted.status_code, predicted.json()["predictions"]) == (200, [2])
    line = log_line(server, "Manual model reload applied", "abc-123-xyz")
    told = {name: line[name] for name in ("level", "model_uri", "version", "stage", "correlation_id")}
    assert told == {
        "level": "info",
        "model_uri": f"models:/{IRIS_MODEL}/{new}",
        "version": new,
        "stage": "Production",
        "correlation_id": "abc-123-xyz",
    }
    datetime.fromisoformat(line["timestamp"])


def log_line(server: RegistryServer, message: str, correlation_id: str) -> dict[str, Any]:
    """Wait for a line of the server's JSON log and return it."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        for file in server.instance.state.logs.glob("worker-*.err"):
            lines = [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]
            found.extend(x for x in lines if x["message"] == message and x.get("correlation_id") == correlation_id)
        return bool(found)

    await_that(is_there, timeout_s=10)
    return found[0]


def test_s3_reload_of_a_broken_model_is_500_and_the_old_one_stays(iris_server: RegistryServer) -> None:
    server = iris_server
    before = server.current(IRIS)
    server.mlflow.register_files(IRIS_MODEL, {"MLmodel": b"flavors: {}\n"}, stage="Production")
    failed = server.http.post("/admin/reload", headers=server.admin)
    assert failed.status_code == 500, failed.text
    assert failed.json()["detail"].startswith("Reload failed: ")
    assert server.current(IRIS) == before
    assert server.http.get("/health/").json()["ready"] is True
    server.mlflow.set_stage(IRIS_MODEL, before, "Production")
    assert server.http.post("/admin/reload", headers=server.admin).json()["status"] == "noop"


def test_s3_shell_commands_succeed(iris_server: RegistryServer) -> None:
    given = {"BASE_URL": iris_server.address, "ADMIN_TOKEN": iris_server.token}
    for script in (S3_RELOAD_AND_VERIFY, S3_PIPELINE):
        done = shell("sleep() { :; }\n" + textwrap.dedent(script), **given)
        assert done.returncode == 0, done.stdout + done.stderr
    refused = shell(S3_PIPELINE, **given | {"ADMIN_TOKEN": "wrong"})
    assert refused.returncode == 1


def test_s3_metrics_stand_under_their_names(iris_server: RegistryServer) -> None:
    route = {"method": "POST", "path": "/admin/reload"}
    for status, token in (("403", {}), ("200", iris_server.admin)):
        before = iris_server.metric("ml_request_count", **route, status=status) or 0
        assert str(iris_server.http.post("/admin/reload", headers=token).status_code) == status
        assert iris_server.metric("ml_request_count", **route, status=status) == before + 1
    n_calls = iris_server.metric("ml_request_count", **route)
    assert iris_server.metric("ml_request_latency_seconds_bucket", **route, le="+Inf") == n_calls
    metrics = iris_server.http.get("/health/").json()["details"]["metrics"]
    assert iris_server.metric("ml_model_accuracy", family=IRIS) == metrics["accuracy"]


# S4


def test_s4_fraud_detector_from_training_to_metrics(registry_server: RegistryServer) -> None:
    server = registry_server
    told = train(
        server, "train_fraud", "--rows", "4000", "--trees", "10", "--threshold", "0.1", "--stage", "Production"
    )
    assert f"{FRAUD_MODEL}: promoted version 1 to alias champion and stage Production" in told
    assert holders(server, FRAUD_MODEL) == ("1", "1")
    given = {"SERVER": server.address, "TOKEN": server.token}
    reloaded = shell('curl -s -X POST "$SERVER/models/reload?family=fraud" -H "X-Admin-Token: $TOKEN"', **given)
    # The poll that comes every two seconds may have been there first.
    assert json.loads(reloaded.stdout) in (
        {"status": "reloaded", "model_version": "1"},
        {"status": "unchanged", "model_version": "1"},
    ), reloaded.stdout
    current = json.loads(shell('curl -s "$SERVER/models/current?family=fraud" | jq .', **given).stdout)
    assert {name: current[name] for name in ("name", "version", "stage")} == {
        "name": FRAUD_MODEL,
        "version": "1",
        "stage": "Production",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", current["loaded_at"])
    row = [0.0] * len(current["signature"]["inputs"])
    (probabilities,) = server.predict(FRAUD, row).json()["predictions"]
    assert sum(probabilities.values() if isinstance(probabilities, dict) else probabilities) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["model_version", "model_update_errors", "cache_hits"])
def test_s4_searches_of_metrics_find_something(registry_server: RegistryServer, name: str) -> None:
    registry_server.predict(FLOWERS)
    found = shell(f'curl -s "$SERVER/metrics" | grep {name}', SERVER=registry_server.address)
    lines = [line for line in found.stdout.splitlines() if not line.startswith("#")]
    assert lines, f"/metrics has no {name}"


# MLflow's own protocol


def test_the_scoring_protocol_answers_through_the_front_door(registry_server: RegistryServer) -> None:
    family = {"family": FLOWERS}
    (expected,) = registry_server.predict(FLOWERS).json()["predictions"]
    body = {"dataframe_split": {"columns": COLUMNS, "data": [ROW, ROW]}}
    assert registry_server.http.post("/invocations", params=family, json=body).json() == {"predictions": [expected] * 2}
    refused = registry_server.http.post("/invocations", params=family, json={"rows": []})
    assert (refused.status_code, set(refused.json())) == (400, {"error_code", "message"})
    assert registry_server.http.get("/ping", params=family).content == b"\n"
    assert registry_server.http.get("/version").text == installed_version("mlflow")


@pytest.mark.chaos  # a server of MLflow's takes half a minute to start
def test_invocations_answer_as_a_server_of_mlflow_does(registry_server: RegistryServer, tmp_path: Path) -> None:
    server = registry_server
    uri = f"models:/{FLOWERS}/{server.current(FLOWERS)}"
    port = free_port()
    bodies: list[tuple[str, str]] = [
        ("application/json", json.dumps({"dataframe_split": {"columns": COLUMNS, "data": [ROW, ROW]}})),
        ("application/json", json.dumps({"dataframe_records": [dict(zip(COLUMNS, ROW, strict=True))]})),
        ("application/json", json.dumps({"inputs": {name: [value] for name, value in zip(COLUMNS, ROW, strict=True)}})),
        ("application/json", json.dumps({"instances": [dict(zip(COLUMNS, ROW, strict=True))]})),
        ("text/csv", ",".join(COLUMNS) + "\n" + ",".join(map(str, ROW)) + "\n"),
        ("application/json", json.dumps({"dataframe_records": [{"sepal_length": 5.1}]})),
        ("application/json", '{"rows": []}'),
        ("application/json", "{"),
        ("text/plain", "1,2,3,4"),
    ]
    with (tmp_path / "log").open("wb") as log:
        theirs = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local"),
                *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            ],
            # MLflow starts uvicorn by its bare name.
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "MLFLOW_TRACKING_URI": server.mlflow.uri,
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as http:
                await_answer(http, theirs, tmp_path / "log")
                for path in ("/ping", "/version"):
                    ours, other = server.http.get(path, params={"family": FLOWERS}), http.get(path)
                    assert (ours.status_code, ours.content) == (other.status_code, other.content), path
                for content_type, body in bodies:
                    headers = {"Content-Type": content_type}
                    ours = server.http.post("/invocations", params={"family": FLOWERS}, content=body, headers=headers)
                    other = http.post("/invocations", content=body, headers=headers)
                    assert ours.status_code == other.status_code, (body, ours.text, other.text)
                    if other.status_code == 200:
                        assert ours.json() == other.json(), body
        finally:
            end_group(theirs)


def await_answer(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server of MLflow's answers; skip where it cannot start."""

    def is_up() -> bool:
        if process.poll() is not None:
            pytest.skip(f"mlflow models serve does not start here: {log.read_text()[-500:]}")
        try:
            return http.get("/ping").status_code == 200
        except httpx.TransportError:
            return False

    await_that(is_up, timeout_s=180)  # half a minute on a machine with nothing else to do


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait()


# Outages


@pytest.mark.chaos
def test_ten_kills_of_the_registry_fail_no_request_and_take_up_each_version_once(
    registry_server: RegistryServer,
) -> None:
    server = registry_server
    versions = register_copies(server.mlflow, FLOWERS, N_KILLS)
    n_before = len(server.audit(FLOWERS))
    traffic = registry.moved_under_kills(server, versions)
    assert traffic.failed() == []
    assert never_goes_back(traffic.answers)
    changes = server.audit(FLOWERS)[:-n_before]
    taken_up = {answer.version for answer in traffic.answers} & set(versions)
    assert sorted(change["to_version"] for change in changes) == sorted(taken_up)
    assert {change["outcome"] for change in changes} == {"reloaded"}
    await_that(lambda: server.source(FLOWERS)["status"] == "ok", timeout_s=registry.TAKEN_UP_TIMEOUT_S)


@pytest.mark.chaos
@pytest.mark.parametrize("is_store_lost", [False, True], ids=["with its store", "without its store"])
def test_a_start_without_the_registry_serves_the_copies_and_follows_again_later(
    registry_server: RegistryServer, is_store_lost: bool
) -> None:
    server = registry_server
    before = server.current(FLOWERS)
    new = register(server.mlflow, FLOWERS, answer=1)
    assert server.instance.run("down").returncode == 0
    server.mlflow.set_alias(FLOWERS, new)
    server.mlflow.kill()
    if is_store_lost:
        for file in server.instance.state.path.glob("state.db*"):
            file.unlink()
    started = server.instance.up()
    assert started.returncode == 0, started.stdout + started.stderr
    await_that(lambda: server.predict(FLOWERS).status_code == 200, timeout_s=30)
    assert server.current(FLOWERS) == before
    await_that(lambda: server.source(FLOWERS)["status"] == "error", timeout_s=30)
    source = server.source(FLOWERS)
    assert server.mlflow.uri in source["last_error"]
    assert source["next_try_at"] is not None
    server.mlflow.start()
    server.await_version(FLOWERS, new)
    assert server.predict(FLOWERS).json()["predictions"] == [1]
