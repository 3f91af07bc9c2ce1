"""How Pods of a RayCluster come out: KubeRay's rules, as far as our manifests rest on them."""

import copy
from typing import Any

import pytest

from tests.kuberay.rendering import OVERLAYS, one, overlay, render
from tests.rehearsal.kuberay_pods import ClusterNames, Document, NodeType, head_pod, ray_start_command, worker_pods
from tests.rehearsal.operator_twin import why_submit
from tests.rehearsal.quantities import milli_units, whole_units
from tests.rehearsal.ray_cluster import masked_hash

NAMES = ClusterNames("forecasts-00001", "edge")
HEAD_SERVICE = "forecasts-00001-head-svc.edge.svc.cluster.local"


def template(name: str, **container: Any) -> Document:
    return {"spec": {"containers": [{"name": name, "image": "serve-app:1", **container}]}}


def cluster(**changes: Any) -> Document:
    made = {
        "rayVersion": "2.60.0",
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": template("ray-head")},
        "workerGroupSpecs": [{"groupName": "cpu", "replicas": 2, "template": template("ray-worker")}],
    }
    return made | changes


def environment(pod: Document) -> dict[str, str]:
    return {v["name"]: v.get("value", "") for v in pod["spec"]["containers"][0]["env"]}


@pytest.mark.parametrize(
    ("quantity", "whole", "milli"),
    [("500m", 1, 500), ("2", 2, 2000), (1, 1, 1000), ("1.5", 2, 1500), ("1Ki", 1024, 1024000), ("0", 0, 0)],
)
def test_quantities_are_rounded_up(quantity: object, whole: int, milli: int) -> None:
    assert (whole_units(quantity), milli_units(quantity)) == (whole, milli)


@pytest.mark.parametrize("quantity", ["", "2 Gi", "many", None])
def test_what_is_no_quantity_is_refused(quantity: object) -> None:
    with pytest.raises(ValueError, match="expected a quantity"):
        whole_units(quantity)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"limits": {"cpu": "1500m", "memory": "2Gi"}}, "ray start --head --memory=2147483648 --num-cpus=2"),
        ({"requests": {"cpu": "500m", "memory": "2Gi"}}, "ray start --head --num-cpus=1"),
        ({"limits": {"nvidia.com/gpu": 1}}, "ray start --head --num-gpus=1"),
        ({}, "ray start --head "),
    ],
)
def test_resources_become_options(resources: Document, expected: str) -> None:
    assert ray_start_command(NodeType.HEAD, {}, resources) == expected


def test_options_of_the_manifest_win_and_booleans_have_no_value() -> None:
    params = {"num-cpus": "0", "block": "true", "no-monitor": "false", "include-log-monitor": "false"}
    command = ray_start_command(NodeType.WORKER, params, {"limits": {"cpu": "4"}})
    assert command == "ray start --block --include-log-monitor=false --num-cpus=0"


def test_the_head_starts_as_kuberay_starts_it() -> None:
    pod = head_pod(cluster(), NAMES)
    container = pod["spec"]["containers"][0]
    assert container["command"] == ["/bin/bash", "-c", "--"]
    assert container["args"] == [
        "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start --head --block --dashboard-agent-listen-port=52365 "
        "--dashboard-host=0.0.0.0 --metrics-export-port=8080 --num-cpus=0"
    ]
    assert environment(pod)["RAY_ADDRESS"] == "127.0.0.1:6379"
    assert environment(pod)["RAY_CLUSTER_NAME"] == "forecasts-00001"
    assert pod["metadata"]["labels"]["ray.io/serve"] == "false", "the operator turns it on"
    assert {"name": "shared-mem", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_workers_wait_for_the_head_and_join_it_by_name() -> None:
    pods = worker_pods(cluster(), NAMES)
    assert [pod["metadata"]["name"] for pod in pods] == ["forecasts-00001-cpu-0", "forecasts-00001-cpu-1"]
    assert f"--address={HEAD_SERVICE}:6379" in pods[0]["spec"]["containers"][0]["args"][0]
    assert environment(pods[0])["FQ_RAY_IP"] == HEAD_SERVICE
    (waiting,) = pods[0]["spec"]["initContainers"]
    assert f"ray health-check --address {HEAD_SERVICE}:6379" in waiting["args"][0]
    assert pods[0]["metadata"]["labels"]["ray.io/serve"] == "true"


def test_a_command_of_the_manifest_runs_before_ray() -> None:
    group = {"template": template("ray-head", command=["echo"], args=["first"])}
    pod = head_pod(cluster(headGroupSpec=group), NAMES)
    assert pod["spec"]["containers"][0]["args"][0].startswith("echo first && ulimit -n")


def test_variables_of_the_manifest_win_over_those_of_kuberay() -> None:
    group = {"template": template("ray-head", env=[{"name": "RAY_SERVE_KV_TIMEOUT_S", "value": "9"}])}
    assert environment(head_pod(cluster(headGroupSpec=group), NAMES))["RAY_SERVE_KV_TIMEOUT_S"] == "9"


def test_probes_of_the_manifest_stay_and_others_are_added() -> None:
    own = {"httpGet": {"path": "/-/healthz", "port": 8000}, "failureThreshold": 3}
    group = {"groupName": "cpu", "replicas": 1, "template": template("ray-worker", readinessProbe=own)}
    (pod,) = worker_pods(cluster(workerGroupSpecs=[group]), NAMES)
    container = pod["spec"]["containers"][0]
    assert container["readinessProbe"] == own
    assert container["livenessProbe"]["httpGet"] == {"path": "/api/healthz", "port": 52365}


def test_without_a_probe_of_its_own_a_worker_is_unready_after_one_miss() -> None:
    (pod, _) = worker_pods(cluster(), NAMES)
    probe = pod["spec"]["containers"][0]["readinessProbe"]
    assert probe["failureThreshold"] == 1
    assert "wget" in probe["exec"]["command"][-1]


def test_a_version_of_ray_without_the_health_check_is_refused() -> None:
    with pytest.raises(ValueError, match="rayVersion"):
        head_pod(cluster(rayVersion="2.52.0"), NAMES)


def test_the_token_of_the_secret_reaches_head_workers_and_those_who_wait() -> None:
    spec = cluster(authOptions={"mode": "token", "secretName": "ray-token"})
    reference = {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": "ray-token", "key": "auth_token"}}}
    worker = worker_pods(spec, NAMES)[0]
    containers = [head_pod(spec, NAMES)["spec"]["containers"][0], worker["spec"]["containers"][0]]
    for container in [*containers, worker["spec"]["initContainers"][0]]:
        assert reference in container["env"]


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        ({"redisAddress": "redis:6379"}, {"RAY_REDIS_ADDRESS": "redis:6379"}),
        ({"backend": "rocksdb"}, {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": "/data/gcs"}),
    ],
)
def test_fault_tolerance_reaches_the_head_and_workers_wait_longer(options: Document, variables: dict[str, str]) -> None:
    spec = cluster(gcsFaultToleranceOptions=options)
    assert variables.items() <= environment(head_pod(spec, NAMES)).items()
    assert environment(worker_pods(spec, NAMES)[0])["RAY_gcs_rpc_server_reconnect_timeout_s"] == "600"


def test_the_manifest_is_not_changed() -> None:
    spec = cluster()
    before = copy.deepcopy(spec)
    head_pod(spec, NAMES)
    worker_pods(spec, NAMES)
    assert spec == before


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_makes_pods(name: str) -> None:
    spec = one(render(overlay(name)), "RayService")["spec"]["rayClusterConfig"]
    pods = [head_pod(spec, NAMES), *worker_pods(spec, NAMES)]
    assert all("ray start" in pod["spec"]["containers"][0]["args"][0] for pod in pods)
    assert all("--memory=" in pod["spec"]["containers"][0]["args"][0] for pod in pods), "Ray would count the node's"


def test_scaling_builds_no_cluster_and_a_new_image_does() -> None:
    before, scaled, tolerating, upgraded = (cluster() for _ in range(4))
    scaled["workerGroupSpecs"][0] = {**scaled["workerGroupSpecs"][0], "replicas": 5, "maxReplicas": 9}
    tolerating["headGroupSpec"]["template"]["spec"]["tolerations"] = [{"key": "edge"}]
    upgraded["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = "serve-app:2"
    assert masked_hash(scaled) == masked_hash(tolerating) == masked_hash(before)
    assert masked_hash(upgraded) != masked_hash(before)


@pytest.mark.parametrize(
    ("cached", "statuses", "reason"),
    [
        ("", {"app": "RUNNING"}, "nothing is cached for the cluster"),
        ("a: 1", {}, "no Serve application"),
        ("a:  1", {"app": "RUNNING"}, "the config differs from the cached one"),
        ("a: 1", {"app": "DEPLOY_FAILED"}, None),
    ],
)
def test_the_operator_sends_a_config_for_three_reasons_only(
    cached: str, statuses: dict[str, str], reason: str | None
) -> None:
    assert why_submit(cached, "a: 1", statuses) == reason
