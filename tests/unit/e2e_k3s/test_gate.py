"""What the suite of a true cluster asks for before it runs, tried with a program that answers in kubectl's place."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e_k3s.gate import ANY_KUBERNETES, CONTEXT, MissingError, open_gate

KUBECTL = """#!{python} -SE
import json, pathlib, sys
words = sys.argv[1:]
answers = json.loads(pathlib.Path({answers!r}).read_text())
pathlib.Path({asked!r}).open("a").write(json.dumps(words) + "\\n")
said = " ".join(word for word in words if not word.startswith("--request-timeout"))
for known, told in answers.items():
    if known in said:
        print(told if isinstance(told, str) else json.dumps(told))
        sys.exit(0)
print("not found: " + said, file=sys.stderr)
sys.exit(1)
"""
IMAGES = ["serve-app:0.1.0"]
NODE = {
    "status": {
        "nodeInfo": {"kubeletVersion": "v1.35.1+k3s1"},
        "allocatable": {"cpu": "4", "memory": "8Gi"},
        "images": [{"names": ["docker.io/library/serve-app:0.1.0"]}],
    }
}
CRD = {
    "status": {"conditions": [{"type": "Established", "status": "True"}]},
    "spec": {"versions": [{"name": "v1", "served": True}]},
}
OPERATOR = {"items": [{"status": {"availableReplicas": 1}}]}
WHOLE: dict[str, Any] = {
    "--raw /readyz": "ok",
    "get nodes": {"items": [NODE]},
    "get crd": CRD,
    "get deployments": OPERATOR,
    "get-contexts": "default\nk3d-test\n",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def answering(place: Path, answers: Mapping[str, Any]) -> None:
    (place / "answers.json").write_text(json.dumps(answers))
    script = KUBECTL.format(
        python=sys.executable, answers=str(place / "answers.json"), asked=str(place / "asked.jsonl")
    )
    (place / "kubectl").write_text(script)
    (place / "kubectl").chmod(0o755)


def refused(environment: Mapping[str, str]) -> MissingError:
    with pytest.raises(MissingError) as caught:
        open_gate({**os.environ, CONTEXT: "", **environment}, IMAGES)
    return caught.value


def changed_node(**changes: Any) -> dict[str, Any]:
    return WHOLE | {"get nodes": {"items": [{"status": NODE["status"] | changes}]}}


def test_without_kubectl_it_says_so(place: Path) -> None:
    assert "kubectl is not installed" in refused({CONTEXT: "k3d-test"}).what


def test_a_whole_cluster_opens_the_gate_and_is_asked_in_its_context_alone(place: Path) -> None:
    answering(place, WHOLE)
    assert open_gate({CONTEXT: "mine"}, IMAGES).context == "mine"
    asked = [json.loads(line) for line in (place / "asked.jsonl").read_text().splitlines()]
    assert asked
    assert all(words[:2] == ["--context", "mine"] for words in asked)


def test_the_only_context_of_k3d_is_taken_where_none_is_named(place: Path) -> None:
    answering(place, WHOLE)
    assert open_gate({}, IMAGES).context == "k3d-test"


@pytest.mark.parametrize("contexts", ["default\nproduction\n", "k3d-a\nk3s-b\n", ""])
def test_no_context_is_ever_guessed(place: Path, contexts: str) -> None:
    answering(place, WHOLE | {"get-contexts": contexts})
    missing = refused({})
    assert "no cluster is named" in missing.what
    assert CONTEXT in missing.remedy
    asked = [json.loads(line) for line in (place / "asked.jsonl").read_text().splitlines()]
    assert [words[0] for words in asked] == ["config"], "nothing is asked of a cluster that nobody named"


def test_a_server_that_does_not_answer_is_told_apart(place: Path) -> None:
    answering(place, {key: value for key, value in WHOLE.items() if key != "--raw /readyz"})
    assert "does not answer" in refused({CONTEXT: "mine"}).what


def test_another_kubernetes_is_refused_unless_it_is_meant(place: Path) -> None:
    answering(place, changed_node(nodeInfo={"kubeletVersion": "v1.35.0"}))
    missing = refused({CONTEXT: "mine"})
    assert "no node runs k3s (found: v1.35.0)" in missing.what
    assert ANY_KUBERNETES in missing.remedy
    assert open_gate({CONTEXT: "mine", ANY_KUBERNETES: "1"}, IMAGES).context == "mine"


def test_a_missing_crd_and_an_operator_that_is_down_are_told_apart(place: Path) -> None:
    answering(place, {key: value for key, value in WHOLE.items() if key != "get crd"})
    assert "CRD" in refused({CONTEXT: "mine"}).what
    answering(place, WHOLE | {"get deployments": {"items": [{"status": {}}]}})
    missing = refused({CONTEXT: "mine"})
    assert "no operator" in missing.what
    assert "helm install" in missing.remedy


def test_a_missing_image_is_named(place: Path) -> None:
    answering(place, changed_node(images=[{"names": ["docker.io/library/other:1"]}]))
    missing = refused({CONTEXT: "mine"})
    assert "serve-app:0.1.0" in missing.what
    assert "ctr images import" in missing.remedy
    assert open_gate({CONTEXT: "mine"}, ["other:1"]).context == "mine"


@pytest.mark.parametrize("allocatable", [{"cpu": "1500m", "memory": "8Gi"}, {"cpu": "4", "memory": "3000Mi"}])
def test_nodes_that_are_too_small_are_refused(place: Path, allocatable: dict[str, str]) -> None:
    answering(place, changed_node(allocatable=allocatable))
    assert "to give" in refused({CONTEXT: "mine"}).what
