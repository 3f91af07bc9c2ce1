"""The manifests of `kuberay/`: each overlay renders, fits the schemas, passes every lint, says what configs/ say."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.cli.kuberay import serve_config_patch
from serve_app.cli.profile import THROUGHPUT
from tests.kuberay import kustomize_double, lints, objects, schemas, serve_configs
from tests.kuberay.conftest import Rendered
from tests.kuberay.objects import Document
from tests.kuberay.rendering import (
    KUBERAY,
    OVERLAYS,
    REPOSITORY,
    has_kubectl,
    in_order,
    one,
    with_components,
    with_kubectl,
)

CONFIGS = REPOSITORY / "configs"
RENDERED = [*(f"overlays/{name}" for name in OVERLAYS), "recipes/two-services"]
COMPONENTS = ("redis", "embedded-gcs", "prometheus-operator")
needs_crds = pytest.mark.skipif(schemas.crd_directory() is None, reason=schemas.MISSING_CRDS)
needs_kubectl = pytest.mark.skipif(
    not has_kubectl(), reason="no kubectl on PATH: install it to compare `kubectl kustomize` with the double of it"
)


@needs_kubectl
@pytest.mark.parametrize("directory", RENDERED)
def test_kubectl_renders_what_the_double_renders(directory: str, rendered: Rendered) -> None:
    assert in_order(with_kubectl(KUBERAY / directory)) == rendered(directory)


@pytest.mark.parametrize("directory", RENDERED)
def test_every_lint_passes(directory: str, rendered: Rendered) -> None:
    assert lints.problems(rendered(directory)) == []


@pytest.mark.parametrize("directory", RENDERED)
def test_objects_fit_their_schemas(directory: str, rendered: Rendered) -> None:
    others = [document for document in rendered(directory) if document["kind"] != "RayService"]
    assert {document["metadata"]["name"]: schemas.problems(document) for document in others} == {
        document["metadata"]["name"]: [] for document in others
    }
    templates = list(objects.templates(rendered(directory)))
    assert [problem for _, template in templates for problem in schemas.pod_problems(template)] == []
    assert templates


@needs_crds
@pytest.mark.parametrize("directory", RENDERED)
def test_services_fit_the_crd(directory: str, rendered: Rendered) -> None:
    found = objects.services(rendered(directory))
    assert found
    assert [problem for service in found for problem in schemas.problems(service)] == []


@needs_crds
@pytest.mark.parametrize(
    ("path", "change", "expected"),
    [
        ("", {"rayClusterSpec": {}}, "'rayClusterSpec' was unexpected"),
        ("", {"rayClusterConfig": None}, "'rayClusterConfig' is a required property"),
        (
            "upgradeStrategy",
            {"clusterUpgradeOptions": {"stepSizePercent": 5, "intervalSeconds": 5}},
            "gatewayClassName",
        ),
        ("rayClusterConfig.gcsFaultToleranceOptions", {"backend": "etcd"}, "'etcd' is not one of"),
        ("rayClusterConfig.headGroupSpec.template.spec", {"runtimeClass": "nvidia"}, "'runtimeClass' was unexpected"),
    ],
)
def test_the_crd_refuses(path: str, change: Document, expected: str, rendered: Rendered) -> None:
    service = kustomize_double.unshared(one(rendered("overlays/edge"), "RayService"))
    place = service["spec"]
    for key in filter(None, path.split(".")):
        place = place.setdefault(key, {})
    place.update(change)
    assert expected in "\n".join(schemas.problems(service))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_serve_config_is_that_of_configs(overlay: str, rendered: Rendered) -> None:
    """`make manifests` writes it."""
    config = CONFIGS / f"{overlay}.yaml"
    assert (KUBERAY / "overlays" / overlay / "serve-config.yaml").read_text() == serve_config_patch(config)
    service = one(rendered(f"overlays/{overlay}"), "RayService")
    assert objects.serve_config(service) == yaml.safe_load(config.read_text())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_and_this_package_take_the_serve_config(overlay: str, rendered: Rendered) -> None:
    config = objects.serve_config(one(rendered(f"overlays/{overlay}"), "RayService"))
    assert serve_configs.problems(config) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda config: config.update(proxy_locaton="HeadOnly"), "proxy_locaton: unknown key (did you mean"),
        (lambda config: config["http_options"].update(hosts="x"), "http_options.hosts: unknown key"),
        (lambda config: config["applications"][0].update(arguments={}), "applications[0].arguments: unknown key"),
        (
            lambda config: config["applications"][0]["deployments"][0].update(usr_config={}),
            "applications[0].deployments[0].usr_config: unknown key (did you mean",
        ),
        (lambda config: config["applications"][0].update(import_path="serve_app.app:built"), "expected a function"),
        (lambda config: config["applications"][0].update(import_path="serve_app.ap:build_app"), "No module named"),
        (lambda config: config["applications"][0]["args"].update(famlies={}), "args: famlies: unknown key"),
        (lambda config: config["applications"][0]["deployments"][0].update(name="forecaster"), "expected one of"),
        (
            lambda config: config["applications"][0]["deployments"][0].update(user_config={"version": "v1"}),
            "forecaster-cpu: user_config: version: unknown key",
        ),
        (lambda config: config.update(applications=[{"name": "a"}]), "import_path"),
    ],
)
def test_a_wrong_serve_config_is_told(change: Any, expected: str) -> None:
    config = yaml.safe_load((CONFIGS / "edge.yaml").read_text())
    change(config)
    assert expected in "\n".join(serve_configs.problems(config))


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(proxy_locaton="HeadOnly"),
        lambda config: config["http_options"].update(hosts="x"),
        lambda config: config["applications"][0].update(arguments={}),
        lambda config: config["applications"][0]["deployments"][0].update(usr_config={}),
        lambda config: config["applications"][0]["deployments"][0].update(ray_actor_options={"num_cpu": 1}),
    ],
)
def test_ray_alone_says_nothing_of_a_wrong_key(change: Any) -> None:
    """When this fails, Ray has become strict and `unknown_keys` may go."""
    config = yaml.safe_load((CONFIGS / "edge.yaml").read_text())
    change(config)
    ServeDeploySchema.model_validate(config)
    (problem,) = serve_configs.problems(config)
    assert "unknown key" in problem


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_have_the_throughput_profile_and_no_path_of_an_instance(overlay: str, rendered: Rendered) -> None:
    for group in objects.all_groups(rendered(f"overlays/{overlay}")):
        found = objects.environment(group.ray)
        assert THROUGHPUT.items() <= found.items()
        of_ray = {name for name in found if name.startswith("RAY_")}
        assert of_ray - THROUGHPUT.keys() == {"RAY_USAGE_STATS_ENABLED"}


def test_images_bear_the_version_of_the_package(rendered: Rendered) -> None:
    declared = re.search(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    images = {
        container["image"]
        for overlay in OVERLAYS
        for _, template in objects.templates(rendered(f"overlays/{overlay}"))
        for container in objects.containers(template)
    }
    version = declared[1]
    ours = {f"serve-app:{version}", f"serve-app:{version}-cuda", f"serve-app-sidecar:{version}"}
    assert {image for image in images if image.startswith("serve-app")} == ours


def test_the_gpu_group_is_the_cpu_group_but_for_its_hardware(rendered: Rendered) -> None:
    service = kustomize_double.unshared(one(rendered("overlays/cluster-gpu"), "RayService"))
    cpu, gpu = (group.spec for group in objects.groups(service)[1:])
    assert gpu["template"]["spec"].pop("runtimeClassName") == "nvidia"
    assert [toleration["key"] for toleration in gpu["template"]["spec"].pop("tolerations")] == ["nvidia.com/gpu"]
    limits = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1
    del cpu["template"]["spec"]["topologySpreadConstraints"]
    for group in (cpu, gpu):
        for field in ("groupName", "replicas", "minReplicas", "maxReplicas"):
            del group[field]
        for field in ("image", "resources"):
            del group["template"]["spec"]["containers"][0][field]
    assert gpu == cpu


@pytest.mark.parametrize(
    ("overlay", "component"),
    [
        *((overlay, component) for overlay in ("edge", "cluster") for component in COMPONENTS),
        ("cluster-gpu", "prometheus-operator"),  # it has the component redis already
    ],
)
def test_components_fit_an_overlay(tmp_path: Path, overlay: str, component: str) -> None:
    documents = kustomize_double.build(with_components(tmp_path, overlay, component))
    assert lints.problems(documents) == []
    checked = [document for document in documents if document["kind"] != "RayService" or schemas.crd_directory()]
    assert [problem for document in checked for problem in schemas.problems(document)] == []


@needs_kubectl
def test_kubectl_takes_a_component(tmp_path: Path) -> None:
    directory = with_components(tmp_path, "edge", "redis")
    assert in_order(with_kubectl(directory)) == in_order(kustomize_double.build(directory))


def test_other_files_fit_their_schemas() -> None:
    (settings,) = yaml.safe_load_all((KUBERAY / "recipes" / "k3s" / "traefik-gateway.yaml").read_text())
    assert schemas.problems(settings) == []


def test_the_double_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamePrefix: my-\n"
    )
    with pytest.raises(kustomize_double.UnknownToTheDoubleError, match="namePrefix"):
        kustomize_double.build(tmp_path)
