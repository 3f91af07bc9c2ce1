"""Rules of KubeRay, Ray and this system that no schema knows, checked on the documents of one rendering.

Each lint is a function that yields sentences; `LINTS` has them by name. `test_lints.py` shows each of them on documents
that break it.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from serve_app.cli.profile import THROUGHPUT
from tests.kuberay import objects, pod_lints
from tests.kuberay.objects import Document
from tests.kuberay.rendering import REPOSITORY

Lint = Callable[[list[Document]], Iterator[str]]
MAX_NAME: Final = 47
_DNS_1035: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_UPGRADES: Final = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
_DEPRECATED: Final = ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold")
CLOSED_PORTS: Final = (8265, 10001, 6379)
_OPERATOR_PORTS: Final = (8265, 8000)
_ADMIN_PATHS: Final = ("/admin/models", "/reload", "/models/reload", "/hooks/mlflow", "/metrics")


def name_fits(documents: list[Document]) -> Iterator[str]:
    """KubeRay makes names of Services and clusters from it."""
    for service in objects.services(documents):
        name = service["metadata"]["name"]
        if len(name) > MAX_NAME or not _DNS_1035.fullmatch(name):
            yield f"name: expected a DNS label of at most {MAX_NAME} characters, found {name!r}"
        head_service = service["spec"]["rayClusterConfig"]["headGroupSpec"].get("headService", {})
        if head_service.get("metadata", {}).get("name"):
            yield "headService.metadata.name: expected none, KubeRay sets it"


def replicas_in_order(documents: list[Document]) -> Iterator[str]:
    """`minReplicas <= replicas <= maxReplicas`."""
    for group in objects.all_groups(documents):
        if not group.is_head:
            least, most = group.spec.get("minReplicas", 0), group.spec.get("maxReplicas", 2**31 - 1)
            now = group.spec.get("replicas", least)
            if not least <= now <= most:
                yield f"{group.where}: expected minReplicas <= replicas <= maxReplicas, found {least}, {now}, {most}"


def ray_version_is_ours(documents: list[Document]) -> Iterator[str]:
    """KubeRay chooses probes and authentication by it; the image has the pinned one."""
    pinned = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    for service in objects.services(documents):
        if (found := service["spec"]["rayClusterConfig"].get("rayVersion")) != pinned[1]:
            yield f"rayVersion: expected {pinned[1]} as in constraints.txt, found {found}"


def token_authentication(documents: list[Document]) -> Iterator[str]:
    """Whoever reaches Ray's API can run code."""
    for service in objects.services(documents):
        cluster = service["spec"]["rayClusterConfig"]
        options = cluster.get("authOptions") or {}
        if options.get("mode") != "token":
            yield f"authOptions.mode: expected token, found {options.get('mode')}"
        elif not options.get("secretName"):
            yield "authOptions.secretName: expected a name; KubeRay's own Secret has another with each upgrade"
        if options and objects.version(str(cluster.get("rayVersion", "0"))) < (2, 52):
            yield f"authOptions: expected rayVersion 2.52 or newer, found {cluster.get('rayVersion')}"


def upgrade_is_possible(documents: list[Document]) -> Iterator[str]:
    """The CRD takes any text for the type; the operator does not."""
    for service in objects.services(documents):
        spec, cluster = service["spec"], service["spec"]["rayClusterConfig"]
        kind = (spec.get("upgradeStrategy") or {}).get("type", "NewCluster")
        if kind not in _UPGRADES:
            yield f"upgradeStrategy.type: expected one of {', '.join(_UPGRADES)}, found {kind}"
        if kind == "NewClusterWithIncrementalUpgrade" and not cluster.get("enableInTreeAutoscaling"):
            yield "upgradeStrategy.type: an incremental upgrade needs enableInTreeAutoscaling"
        if kind == "NewClusterWithIncrementalUpgrade" and spec.get("suspend"):
            yield "suspend: expected false with incremental upgrades, a rollback forgets it"
        if "upgradeStrategy" in cluster:
            yield "rayClusterConfig.upgradeStrategy: expected none under a RayService"
        for field in _DEPRECATED:
            if field in spec:
                yield f"{field}: expected none, KubeRay no longer reads it"


def head_state_has_one_backend(documents: list[Document]) -> Iterator[str]:
    """Redis and RocksDB exclude each other, each has fields of its own."""
    for service in objects.services(documents):
        cluster = service["spec"]["rayClusterConfig"]
        options = cluster.get("gcsFaultToleranceOptions")
        if options is None:
            continue
        redis_fields = {"redisAddress", "redisPassword", "redisUsername", "externalStorageNamespace"} & set(options)
        if options.get("backend", "redis") == "rocksdb":
            if redis_fields:
                yield f"gcsFaultToleranceOptions: expected no {', '.join(sorted(redis_fields))} with rocksdb"
            if objects.version(str(cluster.get("rayVersion", "0"))) < (2, 57):
                yield f"gcsFaultToleranceOptions: rocksdb needs rayVersion 2.57, found {cluster.get('rayVersion')}"
        elif "storage" in options:
            yield "gcsFaultToleranceOptions.storage: expected none with redis"
        elif "redisAddress" not in options:
            yield "gcsFaultToleranceOptions.redisAddress: expected one with redis"


def proxies_are_everywhere(documents: list[Document]) -> Iterator[str]:
    """With HeadOnly no worker is ever ready."""
    for service in objects.services(documents):
        if (found := objects.serve_config(service).get("proxy_location", "EveryNode")) != "EveryNode":
            yield f"proxy_location: expected EveryNode, found {found}"


def head_serves_where_it_is_alone(documents: list[Document]) -> Iterator[str]:
    """Without workers the head has to serve; with them it leaves that to them."""
    for service in objects.services(documents):
        has_workers = len(objects.groups(service)) > 1
        excluded = bool(service["spec"].get("excludeHeadPodFromServeSvc"))
        cpus = objects.groups(service)[0].units("cpu", "num-cpus")
        if excluded != has_workers:
            yield f"excludeHeadPodFromServeSvc: expected {str(has_workers).lower()} here, found {str(excluded).lower()}"
        if bool(cpus) == has_workers:
            wanted = "0 beside workers" if has_workers else "above 0 without workers"
            yield f"head: expected num-cpus {wanted}, found {cpus}"


def environment_is_there_before_ray(documents: list[Document]) -> Iterator[str]:
    """Ray reads these when it starts: they belong into every container of Ray, the same, and into no runtime_env."""
    for service in objects.services(documents):
        first = objects.environment(objects.groups(service)[0].ray)
        for group in objects.groups(service):
            found = objects.environment(group.ray)
            for name, value in THROUGHPUT.items():
                if found.get(name) != value:
                    yield f"{group.where}: env {name}: expected {value}, found {found.get(name)}"
            if found != first:
                yield f"{group.where}: env: expected the same as on the head, differs: {_difference(first, found)}"
        text = service["spec"].get("serveConfigV2") or ""
        for name in THROUGHPUT:
            if name in text:
                yield f"serveConfigV2: {name}: expected it in the Pods only, a runtime_env comes too late"


def replicas_find_room(documents: list[Document]) -> Iterator[str]:
    """What the application wants of CPUs and GPUs fits the groups, and every worker gets a replica and so a proxy."""
    for service in objects.services(documents):
        wanted = list(_wanted(objects.serve_config(service)))
        groups = objects.groups(service)
        nodes = [group for group in groups for _ in range(group.replicas)]
        for resource, parameter, index in (("cpu", "num-cpus", 0), ("nvidia.com/gpu", "num-gpus", 1)):
            room = [node.units(resource, parameter) for node in nodes]
            asked = [amounts[index] for amounts in wanted]
            if sum(asked) > sum(room) or max(asked, default=0) > max(room, default=0):
                yield f"{parameter}: expected room for {sum(asked):g} (largest {max(asked):g}), found {room}"
        workers = sum(group.replicas for group in groups if not group.is_head)
        if len(wanted) < workers:
            yield f"expected a replica for each of {workers} workers, found {len(wanted)}; one without is never ready"


def budget_lets_nodes_drain(documents: list[Document]) -> Iterator[str]:
    """A budget that allows no loss blocks every drain; percentages need a scale subresource, which RayCluster lacks."""
    for document in documents:
        if document["kind"] != "PodDisruptionBudget":
            continue
        name, spec = document["metadata"]["name"], document["spec"]
        selector = spec["selector"]["matchLabels"]
        chosen = sum(group.replicas for group in objects.all_groups(documents) if _is_selected(group, selector))
        if not isinstance(spec.get("minAvailable"), int):
            yield f"{name}: expected a whole number for minAvailable, found {spec.get('minAvailable')}"
        elif not 0 < spec["minAvailable"] < chosen:
            yield f"{name}: expected minAvailable below the {chosen} Pods it selects, found {spec['minAvailable']}"


def ports_of_ray_are_closed(documents: list[Document]) -> Iterator[str]:
    """A NetworkPolicy opens 8265, 10001 and 6379 of the Pods of each group to them alone, and 8265 to the operator."""
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    for group in objects.all_groups(documents):
        own = objects.labels(group.template)
        meant = [policy for policy in policies if policy["podSelector"]["matchLabels"].items() <= own.items()]
        if not any({"Ingress", "Egress"} <= set(policy["policyTypes"]) for policy in meant):
            yield f"{group.where}: expected a NetworkPolicy for ingress and egress, found none"
        for policy in meant:
            for rule in policy.get("ingress", ()):
                yield from (f"{group.where}: NetworkPolicy: {problem}" for problem in _opened(rule, own))


def ingress_is_for_requests(documents: list[Document]) -> Iterator[str]:
    """Clients reach Serve's Service and its port, and no route that changes models or shows internals."""
    for document in documents:
        for path, kind, service, port in routed(document):
            if not service.endswith("-serve-svc") or port != 8000:
                yield f"{document['kind']} {path}: expected a -serve-svc on 8000, found {service} on {port}"
            yield from (
                f"{document['kind']} {path}: expected no way to {admin}"
                for admin in _ADMIN_PATHS
                if admin == path or (kind == "Prefix" and _lies_under(admin, path))
            )


def no_secrets(documents: list[Document]) -> Iterator[str]:
    """Secrets are made where they are used; the manifests only name them."""
    for document in documents:
        if document["kind"] == "Secret":
            yield f"Secret {document['metadata']['name']}: expected none among the manifests"
    for where, template in objects.templates(documents):
        for container in objects.containers(template):
            for name, value in objects.environment(container).items():
                if value is not None and re.search(r"TOKEN|PASSWORD|SECRET|STORE_URL|REDIS_URL", name):
                    yield f"{where}: env {name}: expected valueFrom a Secret, found a value"


def _difference(first: dict[str, str | None], second: dict[str, str | None]) -> str:
    return ", ".join(sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name)))


def _wanted(config: Document) -> Iterator[tuple[float, float]]:
    """Yield CPUs and GPUs of every replica that the applications of this package ask for."""
    from serve_app.config import AppConfig  # here, for most lints need no configuration

    for application in config.get("applications", ()):
        settings = AppConfig.parse(application.get("args") or {})
        yield settings.reconciler.num_cpus, 0.0
        yield from [(settings.gateway.num_cpus, 0.0)] * settings.gateway.num_replicas
        for family in settings.families.values():
            for pool in family.pools:
                yield from [(pool.num_cpus, pool.num_gpus)] * pool.num_replicas
            if family.windows is not None:
                yield family.windows.num_cpus, 0.0


def _is_selected(group: objects.Group, selector: dict[str, str]) -> bool:
    found = {**objects.labels(group.template), "ray.io/node-type": "head" if group.is_head else "worker"}
    return selector.items() <= found.items()


def _opened(rule: dict[str, Any], own: dict[str, str]) -> Iterator[str]:
    """Say which closed ports a rule of ingress opens to others than the Pods themselves."""
    ports = {port["port"] for port in rule.get("ports", ())} or set(CLOSED_PORTS)
    for peer in rule.get("from") or [{}]:
        names = peer.get("podSelector", {}).get("matchLabels", {})
        if "namespaceSelector" not in peer and names.get(objects.OWN_NAME) == own.get(objects.OWN_NAME):
            continue
        allowed = set(_OPERATOR_PORTS) if names.get(objects.OWN_NAME) == "kuberay-operator" else set()
        for port in sorted(ports & set(CLOSED_PORTS) - allowed):
            yield f"expected {port} closed to others, found it open to {peer or 'everybody'}"


def routed(document: Document) -> Iterator[tuple[str, str, str, int]]:
    """Yield path, `Prefix` or `Exact`, Service and port of what an Ingress or an HTTPRoute lets in."""
    if document["kind"] == "Ingress":
        for rule in document["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                yield path["path"], path["pathType"], backend["name"], backend["port"].get("number", 0)
    if document["kind"] == "HTTPRoute":
        for rule in document["spec"]["rules"]:
            for match in rule.get("matches") or [{"path": {"type": "PathPrefix", "value": "/"}}]:
                kind = match["path"]["type"].removeprefix("Path")
                for backend in rule["backendRefs"]:
                    yield match["path"]["value"], kind, backend["name"], backend["port"]


def _lies_under(path: str, prefix: str) -> bool:
    return path.startswith(prefix.rstrip("/") + "/")


LINTS: Final[dict[str, Lint]] = {
    lint.__name__: lint
    for lint in (
        name_fits, replicas_in_order, ray_version_is_ours, token_authentication, upgrade_is_possible,
        head_state_has_one_backend, proxies_are_everywhere, head_serves_where_it_is_alone,
        environment_is_there_before_ray, replicas_find_room, budget_lets_nodes_drain, ports_of_ray_are_closed,
        ingress_is_for_requests, no_secrets, *pod_lints.POD_LINTS,
    )
}  # fmt: skip


def problems(documents: list[Document]) -> list[str]:
    """Run every lint: `<name of the lint>: <what is wrong>`."""
    return [f"{name}: {problem}" for name, lint in LINTS.items() for problem in lint(documents)]
