"""`docs/kuberay.md`, `kuberay/README.md` and `kuberay/secrets.example.yaml` name what the manifests have."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.domain.access import Scope, parse_tokens
from serve_app.ingress.explain import OF_FAMILY as EXPLAIN
from serve_app.ingress.feedback import FEEDBACK
from serve_app.ingress.forecasts import CURRENT, OBSERVATIONS
from serve_app.ingress.invocations import PATH as INVOCATIONS
from tests.kuberay import kustomize_double, lints, objects
from tests.kuberay.conftest import Rendered
from tests.kuberay.objects import Document
from tests.kuberay.rendering import KUBERAY, OVERLAYS, REPOSITORY, one
from tests.pages import block, blocks, page
from tests.unit.ingress.serving import Server

PAGE = "kuberay.md"
CHART = "kuberay/kuberay-operator"
README = (KUBERAY / "README.md").read_text()


def references(value: Any) -> Iterator[tuple[str, str]]:
    """Yield name and key of every Secret and ConfigMap that a document names; `*` where it takes all keys."""
    if isinstance(value, list):
        for part in value:
            yield from references(part)
    if isinstance(value, dict):
        for field, part in value.items():
            if field in ("secretKeyRef", "configMapKeyRef"):
                yield part["name"], part["key"]
            elif field == "secretName":
                yield part, "*"
            else:
                yield from references(part)


def examples() -> dict[str, Document]:
    documents = yaml.safe_load_all((KUBERAY / "secrets.example.yaml").read_text())
    return {document["metadata"]["name"]: document for document in documents}


def test_the_example_has_every_secret_that_is_named(rendered: Rendered) -> None:
    named = {pair for overlay in OVERLAYS for pair in references(rendered(f"overlays/{overlay}"))}
    assert {name for name, _ in named} == examples().keys()
    for name, key in sorted(named):
        assert key == "*" or key in examples()[name]["data"], (name, key)


def test_the_token_file_is_where_the_configs_look_for_it(rendered: Rendered) -> None:
    assert list(examples()["serve-app-tokens"]["data"]) == ["tokens"]
    for overlay in OVERLAYS:
        service = one(rendered(f"overlays/{overlay}"), "RayService")
        (application,) = objects.serve_config(service)["applications"]
        mounts = {mount["name"]: mount["mountPath"] for mount in objects.groups(service)[0].ray["volumeMounts"]}
        assert application["args"]["security"]["token_file"] == f"{mounts['tokens']}/tokens"
        assert application["args"]["state_dir"] == mounts["state"]


def test_no_example_could_be_taken_for_a_secret() -> None:
    """Kubernetes refuses what is not base64, so nobody runs with a token that everybody can read."""
    for document in examples().values():
        if document["kind"] == "Secret":
            assert all(value.startswith("<") and value.endswith(">") for value in document["data"].values())


def test_the_page_makes_every_secret() -> None:
    made = set(re.findall(r"create (?:secret generic|configmap) (\S+)", page(PAGE)))
    assert made == examples().keys()


def test_the_tokens_of_the_page_are_such() -> None:
    (line,) = re.findall(r"printf '(operator .*?)' \"\$\(digest", block(PAGE, "sh", "digest()"))
    written = line.replace("\\n", "\n") % (f"sha256:{'0' * 64}", f"sha256:{'1' * 64}")
    operator, promoter = parse_tokens(written.encode()).tokens
    assert operator.allows(Scope.ROLLOUT)
    assert promoter.allows(Scope.RELOAD)
    assert not promoter.allows(Scope.ROLLOUT)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH: install it to run the page's commands")
def test_the_commands_of_the_page_make_tokens_that_fit(tmp_path: Path) -> None:
    """Run as they are, but for kubectl, in whose place a program writes down what it was told."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kubectl").write_text('#!/bin/sh\necho "$@" >> "$TOLD"\n')
    (programs / "kubectl").chmod(0o700)
    told = tmp_path / "told"
    environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "TOLD": str(told)}
    subprocess.run(["sh", "-e", "-c", block(PAGE, "sh", "digest()")], cwd=tmp_path, env=environment, check=True)
    tokens = parse_tokens((tmp_path / "tokens").read_bytes())
    for name in ("operator", "promoter"):
        found = tokens.find((tmp_path / f"{name}-token").read_text().strip())
        assert found is not None
        assert found.name == name
    assert f"--from-literal=token={(tmp_path / 'promoter-token').read_text().strip()}\n" in told.read_text()


@pytest.mark.parametrize("text", [page(PAGE), README], ids=["page", "readme"])
def test_paths_that_are_named_exist(text: str) -> None:
    named = set(
        re.findall(r"(?<![\w/.:-])((?:kuberay|overlays|components|recipes|configs|tests|training)/[\w./-]+)", text)
    )
    assert len(named) > 5
    missing = [path for path in named - {CHART} if not ((REPOSITORY / path).exists() or (KUBERAY / path).exists())]
    assert missing == []


def test_the_kustomization_of_the_page_takes_parts_that_exist() -> None:
    settings = yaml.safe_load(block(PAGE, "yaml", "Kustomization"))
    for part in [*settings["resources"], *settings["components"]]:
        assert (KUBERAY.parent / Path(part).relative_to("..") / "kustomization.yaml").exists()


def test_every_overlay_component_and_recipe_is_in_the_readme() -> None:
    for folder in ("overlays", "components", "recipes"):
        for directory in (KUBERAY / folder).iterdir():
            assert f"`{folder}/{directory.name}`" in README


def test_the_rules_of_the_operator_are_those_of_the_page(rendered: Rendered) -> None:
    (namespace,) = set(re.findall(r"--namespace (kuberay-\S+)", "".join(blocks(PAGE, "sh"))))
    policy = kustomize_double.unshared(one(rendered("overlays/edge"), "NetworkPolicy"))
    peers = [peer for rule in policy["spec"]["ingress"] for peer in rule["from"]]
    assert {"matchLabels": {"kubernetes.io/metadata.name": namespace}} in [p.get("namespaceSelector") for p in peers]


@pytest.mark.parametrize(("directory", "kind"), [("overlays/edge", "Ingress"), ("recipes/two-services", "HTTPRoute")])
async def test_ways_in_are_routes_of_the_server(directory: str, kind: str, rendered: Rendered) -> None:
    known = {*Server().api.rest.openapi()["paths"], EXPLAIN, FEEDBACK, CURRENT, OBSERVATIONS, INVOCATIONS}
    for path, match, _, _ in lints.routed(one(rendered(directory), kind)):
        under = {route for route in known if route == path or route.startswith(f"{path}/")}
        assert under, path
        assert match == ("Exact" if under == {path} else "Prefix"), path
