"""Scenarios on a true cluster; their numbers are those of the rehearsal, which runs the same without a scheduler."""

import json
from pathlib import Path

import pytest

from tests.builders import forecaster_bundle, rows, write_forecaster
from tests.e2e_k3s.installation import SERVICE, Installation, await_that, images

pytestmark = pytest.mark.e2e_k3s

TAKEN_WITHIN_S = 90.0


def served(k3s: Installation) -> str:
    answered = k3s.http.post("/predict/forecaster", json={"instances": rows(1).tolist()})
    return str(answered.headers.get("X-Model-Version"))


def promote(k3s: Installation, folder: Path, version: str, *, seed: int = 0) -> None:
    k3s.put_bundle(write_forecaster(folder, version, seed=seed, current=False))
    await_that(lambda: served(k3s) == version, timeout_s=TAKEN_WITHIN_S, what=f"{version} is served")


def test_s1_the_rayservice_gets_ready_and_every_application_runs(k3s: Installation) -> None:
    assert k3s.applications() == {"serve-app": "RUNNING"}
    conditions = {c["type"]: c["status"] for c in k3s.get("rayservice", SERVICE)["status"]["conditions"]}
    assert conditions["Ready"] == "True"


def test_s2_a_promoted_model_answers_its_golden_samples(k3s: Installation, tmp_path: Path) -> None:
    promote(k3s, tmp_path, "v1")
    golden = json.loads(forecaster_bundle("v1").files["golden.json"])
    answered = k3s.http.post("/predict/forecaster", json={"instances": golden["inputs"]}).json()["predictions"]
    for found, expected in zip(answered, golden["outputs"], strict=True):
        assert list(found.values()) == pytest.approx(expected, rel=1e-9)


def test_s3_a_promotion_changes_the_version_once(k3s: Installation, tmp_path: Path) -> None:
    promote(k3s, tmp_path, "v2", seed=1)
    assert served(k3s) == "v2"
    assert k3s.in_sidecar("readlink /models/current").strip() == "v2"


def test_s4_a_bad_bundle_is_put_aside(k3s: Installation, tmp_path: Path) -> None:
    before = served(k3s)
    bundle = write_forecaster(tmp_path, "bad", current=False)
    model = next(bundle.rglob("model.joblib"))
    model.write_bytes(model.read_bytes()[:-10])
    k3s.put_bundle(bundle)
    await_that(
        lambda: "rejected-" in k3s.in_sidecar("ls /models/staging"), timeout_s=TAKEN_WITHIN_S, what="it is put aside"
    )
    assert served(k3s) == before


def test_s8_a_restarted_operator_changes_nothing(k3s: Installation) -> None:
    head, before = k3s.head(), served(k3s)
    operator = ("--namespace", "kuberay-system", "rollout")
    assert k3s.kubectl.run(*operator, "restart", "deployment/kuberay-operator").returncode == 0
    waited = k3s.kubectl.run(
        *operator, "status", "deployment/kuberay-operator", "--timeout=180s", timeout_s=200, request_timeout_s=190
    )
    assert waited.returncode == 0, waited.stderr
    await_that(lambda: k3s.applications() == {"serve-app": "RUNNING"}, timeout_s=120, what="the application runs")
    assert (k3s.head(), served(k3s)) == (head, before)


def test_s10_a_lost_head_comes_back_with_the_version_it_had(k3s: Installation) -> None:
    before, head = served(k3s), k3s.head()
    assert k3s.run("delete", "pod", head, "--wait=false").returncode == 0
    await_that(lambda: k3s.head() not in ("", head), timeout_s=180, what="there is a new head")
    await_that(lambda: k3s.applications() == {"serve-app": "RUNNING"}, timeout_s=600, what="the application runs")
    in_head = ("exec", k3s.head(), "--container", "ray-head", "--", "readlink", "/models/current")
    assert k3s.run(*in_head).stdout.strip() == before


def test_s13_rays_own_ports_are_closed_to_other_namespaces(k3s: Installation) -> None:
    address = k3s.get("pod", k3s.head())["status"]["podIP"]
    script = f"for p in 8265 10001 6379; do nc -z -w 3 {address} $p && echo open $p; done; true"
    done = k3s.kubectl.run(
        *("--namespace", "default", "run", f"probe-{k3s.namespace[-8:]}", "--rm", "--attach", "--restart=Never"),
        *("--image", images()[-1], "--image-pull-policy=IfNotPresent", "--command", "--"),
        *("sh", "-c", script), timeout_s=120, request_timeout_s=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "open" not in done.stdout
