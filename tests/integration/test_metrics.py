"""What dashboard and alerts name stands on the /metrics of a real server, and a real Prometheus takes it."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.cli.ports import choose_free
from tests.integration.conftest import IRIS_ROW, Server
from tests.integration.instance import await_that
from tests.kuberay.expressions import ITS_OWN, OBSERVABILITY, labels_of, metrics_of, panel_queries, rules
from tests.kuberay.told_metrics import catalogue

pytestmark = pytest.mark.ray

LABELS, WINDOWS, RETRAIN = "families.*.labels", "families.*.windows", "families.*.retrain"
ELSEWHERE = {
    "ml_model_accuracy": "a bundle whose metrics have `accuracy`",
    "serve_app_demands_total": "a source of the kind mlflow_registry",
    "serve_app_label_delay_seconds_bucket": LABELS,
    "serve_app_event_backlog": "events.webhooks",
    "serve_app_labels_total": LABELS,
    "serve_app_loss_count": LABELS,
    "serve_app_loss_sum": LABELS,
    "serve_app_observations_total": WINDOWS,
    "serve_app_remembered_bytes": LABELS,
    "serve_app_remembered_predictions_total": LABELS,
    "serve_app_retraining_new_records": RETRAIN,
    "serve_app_retrainings_total": RETRAIN,
    "serve_app_shadow_comparisons_total": "a rollout that begins with a shadow",
    "serve_app_shadow_copies_total": "a rollout that begins with a shadow",
    "serve_app_window_archive_lost_records": WINDOWS,
    "serve_app_window_entities": WINDOWS,
    "serve_app_window_journal_bytes": WINDOWS,
    "serve_app_window_memory_bytes": WINDOWS,
    "serve_app_window_newest_timestamp_seconds": WINDOWS,
    "serve_app_window_store_open": WINDOWS,
}
"""What this server does not tell, and what of the configuration makes a server tell it; unit tests make them all."""


def expressions() -> list[str]:
    return [expression for expression, _ in panel_queries()] + [rule["expr"] for rule in rules()]


def test_every_metric_of_dashboard_and_alerts_is_told_by_a_running_server(server: Server) -> None:
    assert server.predict("iris", [IRIS_ROW]).status_code == 200
    assert server.http.post("/admin/reload", headers={"Authorization": "Bearer wrong"}).is_client_error
    reloaded = server.http.post("/models/reload", params={"family": "iris", "force": True}, headers=server.admin)
    assert reloaded.status_code == 200, reloaded.text
    told = {**catalogue(server.http.get("/metrics").text), **ITS_OWN}
    named = set().union(*map(metrics_of, expressions()))
    assert named - set(told) - set(ELSEWHERE) == set()
    assert set(ELSEWHERE) <= named
    for expression in expressions():
        if not metrics_of(expression) & set(ELSEWHERE):
            labels_of(expression, told)


def test_the_gauges_of_a_quiet_server_say_that_all_is_well(server: Server) -> None:
    page = server.http.get("/metrics").text

    def values(name: str) -> set[str]:
        return {line.rsplit(" ", 1)[1] for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} "))}

    for name in ("family_ready", "control_plane_up", "store_up", "lease_held", "source_up"):
        assert values(f"serve_app_{name}") == {"1.0"}, name
    assert values("serve_app_replicas_behind") == {"0.0"}
    assert len(values("serve_app_generation")) == 1
    (limit,) = values("serve_app_memory_limit_bytes")
    assert all(0 < float(used) < float(limit) for used in values("serve_app_memory_used_bytes"))


@pytest.mark.chaos
def test_a_real_prometheus_scrapes_it_and_answers_every_query(server: Server, tmp_path: Path) -> None:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is missing; Debian's package prometheus has it (apt-get install prometheus)")
    shutil.copy(OBSERVABILITY / "alerts.yaml", tmp_path)
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [server.instance.address.removeprefix("http://")]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = choose_free(1)
    address = f"127.0.0.1:{port}"
    command = [program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", trust_env=False, timeout=10) as http:

            def result(query: str) -> list[Any]:
                try:
                    body = http.get("/query", params={"query": query}).json()
                except (httpx.HTTPError, ValueError):
                    return []
                assert body["status"] == "success", (query, body)
                found: list[Any] = body["data"]["result"]
                return found

            await_that(lambda: bool(result("rate(serve_app_generation[30s])")), timeout_s=60)
            assert [one["value"][1] for one in result('up{job="serve-app"}')] == ["1"]
            for expression in expressions():
                result(expression)
            groups = http.get("/rules").json()["data"]["groups"]
            states = {rule["name"]: (rule["health"], rule["state"]) for group in groups for rule in group["rules"]}
            assert set(states) == {rule["alert"] for rule in rules()}
            assert {health for health, _ in states.values()} <= {"ok", "unknown"}
            assert states["ServeAppDown"][1] == "inactive"
    finally:
        process.terminate()
        process.wait(timeout=30)
