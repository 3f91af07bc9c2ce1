"""The overlay of a small node, run: probes, predictions, promotions by the sidecar, drift, and the loss of the head."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.builders import rows
from tests.kuberay.expressions import metrics_of, panel_queries, rules
from tests.kuberay.rendering import KUBERAY
from tests.kuberay.told_metrics import catalogue
from tests.rehearsal.harness import Rehearsal, give_to_pods, stage
from tests.rehearsal.memory import GIB, memory_of
from tests.rehearsal.operator_twin import await_that
from tests.rehearsal.probes import ProbeKind
from tests.traffic import Answer

pytestmark = pytest.mark.rehearsal

TAKEN_WITHIN_S = 60.0
"""Longest wait for a promoted version on a busy machine; how long it takes is measured elsewhere."""
IDLE_BYTES = 2 * GIB
NEW_IMAGE = "serve-app:0.1.1"
RAYS_OWN = {"ray_serve_deployment_replica_healthy", "ray_node_mem_used"}
NOT_ON_EDGE = (
    *("serve_app_rollout_", "serve_app_shadow_", "serve_app_label", "serve_app_loss_", "serve_app_remembered_"),
    *("serve_app_window_", "serve_app_observations_", "serve_app_retraining", "serve_app_event_", "serve_app_demands_"),
    *("ml_model_accuracy", "up"),
)
"""What is told of things that this overlay has not, and what Prometheus tells itself."""


def served(edge: Rehearsal) -> str:
    """Return the version that answers, "" where nobody does."""
    try:
        return str(edge.predict(rows(1).tolist()).headers.get("X-Model-Version", ""))
    except httpx.TransportError:
        return ""


def await_version(edge: Rehearsal, version: str) -> None:
    edge.await_that(lambda: served(edge) == version, timeout_s=TAKEN_WITHIN_S)


def models(edge: Rehearsal) -> Path:
    return edge.models(edge.cluster.head.node)


def changes(answers: list[Answer]) -> list[tuple[str, str]]:
    """Return the changes of version in the order of generations, as the gateways told them."""
    told = sorted({(answer.generation, answer.version) for answer in answers if answer.status == 200})
    return [(before, after) for (_, before), (_, after) in pairwise(told) if before != after]


def test_every_application_runs_and_the_operator_sent_the_config_once(edge: Rehearsal) -> None:
    assert edge.operator.statuses == {"serve-app": "RUNNING"}
    assert [put.reason for put in edge.operator.puts] == ["nothing is cached for the cluster"]
    assert edge.operator.puts[0].config == yaml.safe_load(edge.world.spec["serveConfigV2"])


def test_the_probes_of_the_manifest_succeed_at_their_periods(edge: Rehearsal) -> None:
    head = edge.cluster.head
    by_kind = {kind: [r for r in head.results if r.kind is kind and r.container == "ray-head"] for kind in ProbeKind}
    edge.await_that(lambda: any(r.kind is ProbeKind.LIVENESS for r in head.results), timeout_s=60)
    assert head.restarts == {}
    readiness = by_kind[ProbeKind.READINESS]
    first_success = next(i for i, result in enumerate(readiness) if result.succeeded)
    assert [result for result in readiness[first_success:] if not result.succeeded] == []
    (container,) = head.document["spec"]["containers"]
    periods = [b.at_s - a.at_s for a, b in pairwise(readiness)]
    assert sum(periods) / len(periods) == pytest.approx(container["readinessProbe"]["periodSeconds"], abs=1.0)


def test_the_model_answers_its_golden_samples(edge: Rehearsal) -> None:
    golden = json.loads((models(edge) / "current" / "golden.json").read_text())
    answered = edge.predict(golden["inputs"])
    assert answered.status_code == 200, answered.text
    outputs = [list(row.values()) for row in answered.json()["predictions"]]
    for found, expected in zip(outputs, golden["outputs"], strict=True):
        assert found == pytest.approx(expected, rel=1e-9)


def test_nothing_has_drifted(edge: Rehearsal) -> None:
    told = edge.drift()
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_edge_profile_idles_in_two_gib(edge: Rehearsal) -> None:
    used = memory_of(edge.cluster.head)
    total = sum(container.pss_bytes for container in used)
    assert total <= IDLE_BYTES, [container.table() for container in used]
    requests = edge.world.spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]
    assert used[0].pss_bytes <= used[0].request_bytes, requests


def test_a_promotion_under_load_fails_no_request_and_changes_the_version_once(edge: Rehearsal) -> None:
    before = served(edge)
    with edge.traffic(rows(2).tolist(), connections=4, rate=40) as traffic:
        stage(models(edge), "promoted-1", seed=1)
        await_version(edge, "promoted-1")
        seen_s = time.monotonic()
        edge.await_that(lambda: time.monotonic() > seen_s + 2, timeout_s=10)
    assert traffic.failed() == []
    assert changes(traffic.answers) == [(before, "promoted-1")]
    assert (models(edge) / "current").readlink() == Path("promoted-1")
    assert not (models(edge) / "staging" / "READY").exists()


def broken_digest(staging: Path) -> None:
    manifest = json.loads((staging / "manifest.json").read_text())
    path = next(iter(manifest["sha256"]))
    manifest["sha256"][path] = "0" * 64
    (staging / "manifest.json").write_text(json.dumps(manifest))


def truncated_file(staging: Path) -> None:
    model = next((staging / "models").rglob("model.joblib"))
    model.write_bytes(model.read_bytes()[:-10])


def missing_file(staging: Path) -> None:
    next((staging / "models").rglob("model.joblib")).unlink()


def no_manifest(staging: Path) -> None:
    (staging / "manifest.json").unlink()


@pytest.mark.parametrize("spoil", [broken_digest, truncated_file, missing_file, no_manifest])
def test_a_bad_bundle_is_put_aside_and_the_old_version_serves(edge: Rehearsal, spoil: Any) -> None:
    before, link = served(edge), (models(edge) / "current").readlink()
    staging = stage(models(edge), f"bad-{spoil.__name__}", ready=False)
    spoil(staging)
    known = set(models(edge).glob("staging/rejected-*"))
    (staging / "READY").touch()
    give_to_pods(staging)
    edge.await_that(lambda: bool(set(models(edge).glob("staging/rejected-*")) - known), timeout_s=TAKEN_WITHIN_S)
    assert served(edge) == before
    assert (models(edge) / "current").readlink() == link


def test_a_bundle_without_its_mark_is_not_looked_at(edge: Rehearsal) -> None:
    before = served(edge)
    staging = stage(models(edge), "unmarked", ready=False)
    # A whole bundle after it goes through the same directory only once the first is marked.
    promoter = edge.sidecars()[0].containers["promoter"]
    assert promoter.is_running
    assert (staging / "manifest.json").exists()
    assert served(edge) == before
    (staging / "READY").touch()
    give_to_pods(staging)
    await_version(edge, "unmarked")


def test_a_bundle_that_does_not_fit_is_refused_by_the_server_and_the_old_version_serves(edge: Rehearsal) -> None:
    before = served(edge)
    stage(models(edge), "other-kind", models_type="classification")
    edge.await_that(lambda: (models(edge) / "other-kind").is_dir(), timeout_s=TAKEN_WITHIN_S)
    with edge.traffic(rows(1).tolist(), connections=2, rate=20) as traffic:
        reloaded = edge.http.post("/admin/reload", headers=edge.admin)
    assert reloaded.status_code in (409, 422, 500), reloaded.text
    assert traffic.failed() == []
    assert served(edge) == before
    stage(models(edge), "fits-again", seed=2)
    await_version(edge, "fits-again")


def scraped(edge: Rehearsal, monitor: dict[str, Any]) -> set[str]:
    """Return the names of the samples that a PodMonitor gets from the head."""
    (container,) = edge.cluster.head.document["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    names: set[str] = set()
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        url = f"http://{edge.cluster.head.address}:{ports[endpoint['port']]}{endpoint.get('path', '/metrics')}"
        told = httpx.get(url, trust_env=False, timeout=30)
        assert told.status_code == 200, told.text
        names |= set(catalogue(told.text))
    return names


def await_told(edge: Rehearsal, monitor: dict[str, Any], wanted: set[str]) -> None:
    def missing() -> list[str]:
        return sorted(wanted - scraped(edge, monitor))

    await_that(lambda: not missing(), timeout_s=30, otherwise=lambda: f"missing: {missing()}")


def test_the_monitors_find_what_dashboard_and_alerts_ask_for(edge: Rehearsal) -> None:
    file = KUBERAY / "components" / "prometheus-operator" / "pod-monitors.yaml"
    ours, rays = list(yaml.safe_load_all(file.read_text()))
    expressions = [*(expression for expression, _ in panel_queries()), *(rule["expr"] for rule in rules())]
    asked = {name for expression in expressions for name in metrics_of(expression) if not name.startswith(NOT_ON_EDGE)}
    assert edge.predict(rows(1).tolist()).status_code == 200
    assert edge.http.post("/admin/reload").status_code == 403  # a refusal is counted
    await_told(edge, ours, asked)
    await_told(edge, rays, RAYS_OWN)


def test_a_restarted_operator_sends_the_same_config_and_changes_nothing(edge: Rehearsal) -> None:
    replicas, before = edge.replicas(), served(edge)
    with edge.traffic(rows(1).tolist(), connections=4, rate=40) as traffic:
        edge.restart_operator()
        edge.await_that(lambda: bool(edge.operator.puts), timeout_s=60)
        edge.await_that(lambda: edge.operator.statuses.get("serve-app") == "RUNNING", timeout_s=60)
    assert [put.reason for put in edge.operator.puts] == ["nothing is cached for the cluster"]
    assert traffic.failed() == []
    assert edge.replicas() == replicas
    assert served(edge) == before


def test_what_somebody_else_deployed_is_found_as_drift_and_healed_by_the_next_change(edge: Rehearsal) -> None:
    changed = yaml.safe_load(edge.world.spec["serveConfigV2"])
    changed["applications"][0]["deployments"] = [
        {"name": "forecaster-cpu", "user_config": {"manifest_version": "promoted-1"}}
    ]
    with edge.serve_api() as api:
        assert api.put("/api/serve/applications/", json=changed, timeout=60).is_success
    await_version(edge, "promoted-1")
    n_puts = len(edge.operator.puts)
    found = edge.drift("--settle-s", "0")
    assert found.returncode == 1, found.stdout + found.stderr
    assert "manifest_version" in found.stdout
    assert len(edge.operator.puts) == n_puts, "the operator never looks at what runs"
    edge.world.spec["serveConfigV2"] += "\n# applied again\n"
    edge.await_that(lambda: len(edge.operator.puts) > n_puts, timeout_s=60)
    await_version(edge, "fits-again")
    healed = edge.drift()
    assert healed.returncode == 0, healed.stdout + healed.stderr


def test_a_lost_head_comes_back_with_the_version_it_had(edge: Rehearsal) -> None:
    n_puts, before = len(edge.operator.puts), served(edge)
    edge.cluster.head.containers["ray-head"].kill()
    edge.await_that(lambda: edge.cluster.head.restarts.get("ray-head") == 1, timeout_s=30)
    edge.await_that(lambda: len(edge.operator.puts) > n_puts, timeout_s=180)
    assert edge.operator.puts[-1].reason == "no Serve application"
    edge.await_that(lambda: served(edge) == before, timeout_s=180)


def test_a_suspended_service_is_gone_and_resumes_with_the_new_image_and_the_version_it_had(edge: Rehearsal) -> None:
    first, link = edge.cluster, (models(edge) / "current").readlink()
    gone_back = edge.http.post("/admin/rollback", params={"to": "unmarked"}, headers=edge.admin)
    assert gone_back.status_code == 200, gone_back.text
    assert link != Path("unmarked"), "what answers is told by the state on its volume alone"
    edge.world.spec["suspend"] = True
    edge.await_that(lambda: edge.world.clusters == {}, timeout_s=60)
    edge.await_that(lambda: served(edge) == "", timeout_s=30)
    head = edge.world.spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["image"] = NEW_IMAGE
    edge.world.spec["suspend"] = False
    edge.await_that(lambda: served(edge) == "unmarked", timeout_s=180)
    assert edge.cluster.name != first.name
    assert edge.cluster.head.document["spec"]["containers"][0]["image"] == NEW_IMAGE
