"""Every lint speaks up where a document breaks its rule, and only then."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.kuberay import change_lints, lints, objects, pod_lints
from tests.kuberay.conftest import Rendered
from tests.kuberay.kustomize_double import unshared
from tests.kuberay.objects import Document

Change = Callable[["Broken"], Any]


class Broken:
    """Documents of an overlay, to be broken in one place."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents: list[Document] = unshared(documents)
        (self.service,) = objects.services(self.documents)
        self.spec: Document = self.service["spec"]
        self.cluster: Document = self.spec["rayClusterConfig"]
        self.head, *workers = objects.groups(self.service)
        self.worker = workers[0] if workers else self.head

    def one(self, kind: str) -> Document:
        """Return the only object of a kind."""
        (found,) = [document for document in self.documents if document["kind"] == kind]
        return found

    def add(self, kind: str, **parts: Any) -> None:
        """Add an object."""
        self.documents.append({"kind": kind, "metadata": {"name": "added"}, **parts})

    def replace(self, old: str, new: str) -> None:
        """Change the text of the Serve config."""
        assert old in self.spec["serveConfigV2"]
        self.spec["serveConfigV2"] = self.spec["serveConfigV2"].replace(old, new)


def drop_env(container: Document, name: str) -> None:
    container["env"] = [variable for variable in container["env"] if variable["name"] != name]


def set_env(container: Document, name: str, value: str) -> None:
    drop_env(container, name)
    container["env"].append({"name": name, "value": value})


def mount(container: Document, name: str) -> Document:
    (found,) = [mount for mount in container["volumeMounts"] if mount["name"] == name]
    assert isinstance(found, dict)
    return found


def open_port(broken: Broken, port: int, **peer: Any) -> None:
    rule = {"from": [peer] if peer else [], "ports": [{"protocol": "TCP", "port": port}]}
    broken.one("NetworkPolicy")["spec"]["ingress"].append(rule)


def route(
    broken: Broken, path: str, kind: str = "Prefix", service: str = "serve-app-serve-svc", port: int = 8000
) -> None:
    backend = {"service": {"name": service, "port": {"number": port}}}
    paths = broken.one("Ingress")["spec"]["rules"][0]["http"]["paths"]
    paths.append({"path": path, "pathType": kind, "backend": backend})


MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
BROKEN: list[tuple[str, str, Change]] = [
    ("name_fits", "at most 47", lambda b: b.service["metadata"].update(name="s" * 48)),
    ("name_fits", "DNS label", lambda b: b.service["metadata"].update(name="Serve_app")),
    (
        "name_fits",
        "headService",
        lambda b: b.cluster["headGroupSpec"].update(headService={"metadata": {"name": "mine"}}),
    ),
    ("replicas_in_order", "found 3, 2, 2", lambda b: b.worker.spec.update(minReplicas=3)),
    ("replicas_in_order", "found 2, 4, 2", lambda b: b.worker.spec.update(replicas=4)),
    ("ray_version_is_ours", "found 2.59.0", lambda b: b.cluster.update(rayVersion="2.59.0")),
    ("token_authentication", "found None", lambda b: b.cluster.pop("authOptions")),
    ("token_authentication", "secretName", lambda b: b.cluster["authOptions"].pop("secretName")),
    ("token_authentication", "2.52 or newer, found 2.9.3", lambda b: b.cluster.update(rayVersion="2.9.3")),
    ("upgrade_is_possible", "found Recreate", lambda b: b.spec["upgradeStrategy"].update(type="Recreate")),
    (
        "upgrade_is_possible",
        "needs enableInTreeAutoscaling",
        lambda b: b.spec["upgradeStrategy"].update(type="NewClusterWithIncrementalUpgrade"),
    ),
    (
        "upgrade_is_possible",
        "a rollback forgets it",
        lambda b: b.spec.update(suspend=True, upgradeStrategy={"type": "NewClusterWithIncrementalUpgrade"}),
    ),
    ("upgrade_is_possible", "under a RayService", lambda b: b.cluster.update(upgradeStrategy={"type": "None"})),
    ("upgrade_is_possible", "no longer reads it", lambda b: b.spec.update(serviceUnhealthySecondThreshold=900)),
    (
        "head_state_has_one_backend",
        "no redisAddress with rocksdb",
        lambda b: b.cluster.update(gcsFaultToleranceOptions={"backend": "rocksdb", "redisAddress": "r:6379"}),
    ),
    (
        "head_state_has_one_backend",
        "storage: expected none",
        lambda b: b.cluster.update(gcsFaultToleranceOptions={"redisAddress": "r:6379", "storage": {"size": "1Gi"}}),
    ),
    (
        "head_state_has_one_backend",
        "redisAddress: expected one",
        lambda b: b.cluster.update(gcsFaultToleranceOptions={"backend": "redis"}),
    ),
    (
        "head_state_has_one_backend",
        "needs rayVersion 2.57",
        lambda b: b.cluster.update(rayVersion="2.56.1", gcsFaultToleranceOptions={"backend": "rocksdb"}),
    ),
    ("proxies_are_everywhere", "found HeadOnly", lambda b: b.replace("EveryNode", "HeadOnly")),
    ("head_serves_where_it_is_alone", "expected true", lambda b: b.spec.update(excludeHeadPodFromServeSvc=False)),
    (
        "head_serves_where_it_is_alone",
        "expected num-cpus 0",
        lambda b: b.head.spec["rayStartParams"].update({"num-cpus": "2"}),
    ),
    ("head_serves_where_it_is_alone", "expected false", lambda b: b.cluster.pop("workerGroupSpecs")),
    (
        "environment_is_there_before_ray",
        "RAY_SERVE_ENABLE_HA_PROXY: expected 1, found None",
        lambda b: drop_env(b.worker.ray, "RAY_SERVE_ENABLE_HA_PROXY"),
    ),
    (
        "environment_is_there_before_ray",
        "differs: RAY_x",
        lambda b: set_env(b.worker.ray, "RAY_x", "1"),
    ),
    (
        "environment_is_there_before_ray",
        "a runtime_env comes too late",
        lambda b: b.replace("args:", "runtime_env: {env_vars: {RAY_SERVE_ENABLE_HA_PROXY: '1'}}\n  args:"),
    ),
    ("replicas_find_room", "found [0, 1, 1]", lambda b: b.worker.spec["rayStartParams"].update({"num-cpus": "1"})),
    ("replicas_find_room", "largest 3", lambda b: b.replace("num_cpus: 0.25", "num_cpus: 3")),
    ("replicas_find_room", "num-gpus", lambda b: b.replace("num_cpus: 0.25", "num_gpus: 1")),
    ("replicas_find_room", "for each of 9 workers", lambda b: b.worker.spec.update(minReplicas=9)),
    (
        "budget_lets_nodes_drain",
        "below the 2 Pods it selects, found 2",
        lambda b: b.one("PodDisruptionBudget")["spec"].update(minAvailable=2),
    ),
    (
        "budget_lets_nodes_drain",
        "whole number",
        lambda b: b.one("PodDisruptionBudget")["spec"].update(minAvailable="50%"),
    ),
    (
        "budget_lets_nodes_drain",
        "below the 0 Pods",
        lambda b: b.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"].update({"ray.io/cluster": "x"}),
    ),
    ("ports_of_ray_are_closed", "found none", lambda b: b.documents.remove(b.one("NetworkPolicy"))),
    (
        "ports_of_ray_are_closed",
        "for ingress and egress",
        lambda b: b.one("NetworkPolicy")["spec"].update(policyTypes=["Ingress"]),
    ),
    ("ports_of_ray_are_closed", "expected 8265 closed", lambda b: open_port(b, 8265, **MONITORING)),
    ("ports_of_ray_are_closed", "open to everybody", lambda b: open_port(b, 10001)),
    ("ports_of_ray_are_closed", "expected 6379 closed", lambda b: open_port(b, 6379, **MONITORING)),
    (
        "ports_of_ray_are_closed",
        "expected 10001 closed",
        lambda b: open_port(b, 10001, podSelector={"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}),
    ),
    ("ingress_is_for_requests", "found serve-app-head-svc", lambda b: route(b, "/x", service="serve-app-head-svc")),
    ("ingress_is_for_requests", "on 8265", lambda b: route(b, "/x", port=8265)),
    ("ingress_is_for_requests", "no way to /admin/models", lambda b: route(b, "/")),
    ("ingress_is_for_requests", "no way to /admin/models", lambda b: route(b, "/admin")),
    ("ingress_is_for_requests", "no way to /reload", lambda b: route(b, "/reload", "Exact")),
    ("ingress_is_for_requests", "no way to /models/reload", lambda b: route(b, "/models")),
    ("no_secrets", "among the manifests", lambda b: b.add("Secret")),
    ("no_secrets", "env RELOAD_TOKEN", lambda b: set_env(b.worker.ray, "RELOAD_TOKEN", "abc")),
    ("ray_comes_first", "found promoter", lambda b: b.worker.ray.update(name="promoter")),
    ("ray_comes_first", "named serve", lambda b: b.worker.ray.update(ports=[])),
    ("probes_are_our_own", "found none", lambda b: b.worker.ray.pop("readinessProbe")),
    ("probes_are_our_own", "found {'exec'", lambda b: b.worker.ray.update(readinessProbe={"exec": {"command": []}})),
    (
        "probes_are_our_own",
        "expected httpGet /api/healthz",
        lambda b: b.head.ray.update(readinessProbe=b.worker.ray["readinessProbe"]),
    ),
    (
        "probes_are_our_own",
        "forgive a miss",
        lambda b: b.worker.ray["readinessProbe"].update(failureThreshold=1),
    ),
    ("probes_are_our_own", "livenessProbe", lambda b: b.head.ray.pop("livenessProbe")),
    (
        "sidecars_are_native",
        "expected promoter among initContainers",
        lambda b: b.head.template["spec"]["containers"].append({**b.head.ray, "name": "promoter", "volumeMounts": []}),
    ),
    (
        "sidecars_are_native",
        "restartPolicy Always",
        lambda b: b.head.template["spec"].update(initContainers=[{**b.head.ray, "name": "first"}]),
    ),
    ("models_are_mounted_whole", "the whole of models", lambda b: mount(b.worker.ray, "models").update(subPath="v1")),
    (
        "models_are_mounted_whole",
        "the whole of models",
        lambda b: mount(b.worker.ray, "models").update(mountPath="/models/current"),
    ),
    ("models_are_mounted_whole", "models readOnly", lambda b: mount(b.worker.ray, "models").pop("readOnly")),
    (
        "models_are_mounted_whole",
        "models writable",
        lambda b: mount(b.one("DaemonSet")["spec"]["template"]["spec"]["containers"][0], "models").update(
            readOnly=True
        ),
    ),
    (
        "models_are_mounted_whole",
        "in Ray's container",
        lambda b: b.worker.ray["volumeMounts"].remove(mount(b.worker.ray, "models")),
    ),
    ("temporary_files_have_a_place", "volume at /tmp", lambda b: mount(b.head.ray, "tmp").update(mountPath="/scratch")),
    ("volumes_are_there", "a volume lost", lambda b: b.head.ray["volumeMounts"].append({"name": "lost"})),
    (
        "volumes_are_there",
        "a claim lost",
        lambda b: b.head.template["spec"]["volumes"][1].update(persistentVolumeClaim={"claimName": "lost"}),
    ),
    ("images_are_fixed", "found serve-app:latest", lambda b: b.worker.ray.update(image="serve-app:latest")),
    ("images_are_fixed", "found serve-app", lambda b: b.worker.ray.update(image="serve-app")),
    ("images_are_fixed", "found host:5000/serve-app", lambda b: b.worker.ray.update(image="host:5000/serve-app")),
    ("images_are_fixed", "IfNotPresent", lambda b: b.worker.ray.update(imagePullPolicy="Always")),
    ("resources_are_stated", "limits.memory", lambda b: b.worker.ray["resources"].pop("limits")),
    ("resources_are_stated", "requests.cpu", lambda b: b.worker.ray["resources"]["requests"].pop("cpu")),
    (
        "resources_are_stated",
        "3073Mi above 3Gi",
        lambda b: b.worker.ray["resources"]["requests"].update(memory="3073Mi"),
    ),
    (
        "resources_are_stated",
        "1 above 900m",
        lambda b: b.worker.ray["resources"]["limits"].update(cpu="900m"),
    ),
    (
        "privileges_are_restricted",
        "seccompProfile",
        lambda b: b.worker.template["spec"]["securityContext"].pop("seccompProfile"),
    ),
    (
        "privileges_are_restricted",
        "runAsNonRoot",
        lambda b: b.worker.template["spec"]["securityContext"].update(runAsUser=0),
    ),
    ("privileges_are_restricted", "hostNetwork", lambda b: b.worker.template["spec"].update(hostNetwork=True)),
    ("privileges_are_restricted", "allowPrivilegeEscalation", lambda b: b.worker.ray.pop("securityContext")),
    (
        "privileges_are_restricted",
        "capabilities",
        lambda b: b.worker.ray["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
    ),
    ("privileges_are_restricted", "privileged", lambda b: b.worker.ray["securityContext"].update(privileged=True)),
    (
        "privileges_are_restricted",
        "no directory of the node",
        lambda b: b.worker.template["spec"]["volumes"][1].update(hostPath={"path": "/"}),
    ),
    ("pods_have_no_account", "automount", lambda b: b.worker.template["spec"].pop("automountServiceAccountToken")),
    ("pods_have_no_account", "enableServiceLinks", lambda b: b.worker.template["spec"].pop("enableServiceLinks")),
    (
        "namespace_allows_the_pods",
        "expected privileged here, found restricted",
        lambda b: b.one("Namespace")["metadata"]["labels"].update({"pod-security.kubernetes.io/enforce": "restricted"}),
    ),
]


@pytest.mark.parametrize(("name", "said", "change"), BROKEN)
def test_a_broken_rule_is_told(name: str, said: str, change: Change, rendered: Rendered) -> None:
    broken = Broken(rendered("overlays/cluster"))
    change(broken)
    assert said in "\n".join(lints.LINTS[name](broken.documents))


def test_every_lint_was_seen_to_speak_up() -> None:
    assert {name for name, _, _ in BROKEN} == lints.LINTS.keys()
    assert {lint.__name__ for lint in pod_lints.POD_LINTS} < lints.LINTS.keys()


def config_and_image(broken: Broken) -> None:
    broken.replace("interval_s: 10", "interval_s: 20")
    broken.worker.ray.update(image="serve-app:0.2.0")


def config_and_tolerations(broken: Broken) -> None:
    broken.replace("interval_s: 10", "interval_s: 20")
    broken.worker.template["spec"].update(tolerations=[])


CHANGES: list[tuple[str, str, Change]] = [
    (
        "one_thing_at_a_time",
        "found both",
        config_and_image,
    ),
    (
        "suspending_stands_alone",
        "other changes",
        lambda b: b.spec.update(suspend=True, rayClusterDeletionDelaySeconds=10),
    ),
    (
        "fixed_fields_stay",
        "expected redis to stay",
        lambda b: b.cluster["gcsFaultToleranceOptions"].update(backend="rocksdb"),
    ),
    ("bounds_reach_nobody", "maxReplicas: changed here", lambda b: b.worker.spec.update(maxReplicas=3)),
    (
        "groups_are_added_last",
        "to stay first",
        lambda b: b.cluster["workerGroupSpecs"].insert(0, {**b.worker.spec, "groupName": "big"}),
    ),
]


@pytest.mark.parametrize(("name", "said", "change"), CHANGES)
def test_a_change_that_goes_wrong_is_told(name: str, said: str, change: Change, rendered: Rendered) -> None:
    before, after = (Broken(rendered("overlays/cluster-gpu")) for _ in range(2))
    change(after)
    assert said in "\n".join(change_lints.CHANGE_LINTS[name](before.service, after.service))


@pytest.mark.parametrize(
    "change",
    [
        lambda b: None,
        lambda b: b.replace("interval_s: 10", "interval_s: 20"),
        lambda b: b.worker.ray.update(image="serve-app:0.2.0"),
        lambda b: b.spec.update(suspend=True),
        lambda b: b.cluster["workerGroupSpecs"].append({**b.worker.spec, "groupName": "big"}),
        config_and_tolerations,
    ],
)
def test_a_change_that_does_one_thing_passes(change: Change, rendered: Rendered) -> None:
    before, after = (Broken(rendered("overlays/cluster-gpu")) for _ in range(2))
    change(after)
    assert change_lints.problems(before.service, after.service) == []


def test_every_lint_of_changes_was_seen_to_speak_up() -> None:
    assert {name for name, _, _ in CHANGES} == change_lints.CHANGE_LINTS.keys()
