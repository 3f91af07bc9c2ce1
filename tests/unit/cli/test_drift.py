"""The command `drift` against answers as Serve and the server give them."""

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from serve_app.cli import app, asked_config
from serve_app.cli.asked_config import AskedConfigError, only_rayservice, serve_config_of
from serve_app.cli.drift import DRIFT, NONE, UNKNOWN, Places, gateways_of, look, replicas_of
from serve_app.ingress.health import health_body
from tests.unit.ingress.serving import FAMILY, Server

PLACES = Places("http://head:8265", "ray-secret", "http://server:8000")
DIGEST = "a" * 64
METRICS = f"""# TYPE serve_app_generation gauge
serve_app_generation{{replica="g1"}} 4.0
# TYPE serve_app_model_info gauge
serve_app_model_info{{digest="{DIGEST}",family="iris",model_version="v1",pool="cpu",replica="g1"}} 1.0
"""


def asked(**of: Any) -> dict[str, Any]:
    return {
        "applications": [
            {
                "name": "serve-app",
                "route_prefix": "/",
                "import_path": "serve_app.app:build_app",
                "args": {"families": {"iris": {"models_type": "classification", "source": {"root": "m"}}}},
                "deployments": [{"name": "iris-cpu", "user_config": {"manifest_version": "current"}}],
                **of,
            }
        ]
    }


def serve_details(given: dict[str, Any], **more: Any) -> dict[str, Any]:
    deployment = {
        "status": "HEALTHY",
        "target_num_replicas": 1,
        "replicas": [{"state": "RUNNING", "replica_id": "r1"}],
    }
    application = {
        "status": "RUNNING",
        "deployed_app_config": given["applications"][0],
        "deployments": {"iris-cpu": deployment},
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "applications": {"serve-app": application, **more},
    }


def health(version: str = "v1") -> dict[str, Any]:
    one = {"replica": "r1", "pool": "cpu", "wanted": "current", "digests": {version: DIGEST}}
    return {"families": {"iris": {"replicas": [one]}}}


def answering(**answers: Any) -> httpx.Client:
    """Make a client of a Serve and a server that answer so; what has no answer does not answer."""

    def answer(request: httpx.Request) -> httpx.Response:
        part = {"/api/serve/applications/": "serve", "/health": "health", "/metrics": "metrics"}[request.url.path]
        if part not in answers:
            raise httpx.ConnectError("refused")
        if part == "serve":
            assert request.headers["authorization"] == "Bearer ray-secret"
        said = answers[part]
        return httpx.Response(200, text=said) if isinstance(said, str) else httpx.Response(200, json=said)

    return httpx.Client(transport=httpx.MockTransport(answer))


def test_what_ray_and_our_defaults_fill_in_is_no_drift() -> None:
    spelled = asked(args={"families": {"iris": {"models_type": "classification", "source": {"root": "m"}}},
                          "default_family": None}, deployments=[])  # fmt: skip
    with answering(serve=serve_details(asked()), health=health(), metrics=METRICS) as http:
        findings = look({"http_options": {"port": 8000}, **spelled}, PLACES, http)
    assert [str(one) for one in findings.differences] == [
        "applications.serve-app.deployments.iris-cpu: "
        'expected nothing, found {"name": "iris-cpu", "user_config": {"manifest_version": "current"}}'
    ]
    with answering(serve=serve_details(asked()), health=health(), metrics=METRICS) as http:
        plain = asked(deployments=[{"name": "iris-cpu"}])
        findings = look({"proxy_location": "EveryNode", **plain}, PLACES, http)
    assert (findings.differences, findings.exit_code) == ([], NONE)


def test_each_part_that_differs_is_told() -> None:
    given = asked(deployments=[{"name": "iris-cpu", "num_replicas": 2}])
    extra: dict[str, Any] = {"other": {"status": "RUNNING", "deployed_app_config": None, "deployments": {}}}
    with answering(serve=serve_details(asked(), **extra), health=health("v0"), metrics=METRICS) as http:
        findings = look({**given, "bogus": 1}, PLACES, http)
    assert findings.exit_code == DRIFT
    assert {one.path for one in findings.differences} == {
        "bogus",  # Ray ignores a key that it does not know, so what was asked for is not so
        "applications.other",
        "applications.serve-app.deployments.iris-cpu.num_replicas",
        "applications.serve-app.deployments.iris-cpu.target_num_replicas",
        "families.iris.pools.cpu.holds",
    }


def test_parts_that_do_not_answer_are_named_and_the_others_are_compared() -> None:
    with answering(serve=serve_details(asked())) as http:
        findings = look(asked(), PLACES, http)
    assert (findings.differences, findings.exit_code) == ([], UNKNOWN)
    assert findings.unknown == {"replicas": "http://server:8000/health does not answer: refused"}
    with answering(health=health("v0"), metrics=METRICS) as http:
        findings = look(asked(), PLACES, http)
    assert set(findings.unknown) == {"serve"}
    assert (len(findings.differences), findings.exit_code) == (1, DRIFT)


@pytest.mark.parametrize("body", [{}, {"families": {"iris": {"replicas": [{"replica": "r1"}]}}}, "no JSON"])
def test_an_answer_of_something_else_is_no_drift(body: Any) -> None:
    with answering(serve=serve_details(asked()), health=body, metrics=METRICS) as http:
        assert look(asked(), PLACES, http).exit_code == UNKNOWN


def test_a_config_that_ray_refuses_cannot_be_compared() -> None:
    with answering(serve=serve_details(asked()), health=health(), metrics=METRICS) as http:
        findings = look({"applications": [{"name": "x"}]}, PLACES, http)
    assert set(findings.unknown) == {"asked"}


def rayservice(name: str = "serve-app", **more: Any) -> dict[str, Any]:
    text = yaml.safe_dump(asked())
    return {"kind": "RayService", "metadata": {"name": name}, "spec": {"serveConfigV2": text}, **more}


def test_the_rayservice_is_found_among_other_documents_and_in_lists() -> None:
    text = yaml.safe_dump_all([{"kind": "Service"}, rayservice()])
    assert serve_config_of(only_rayservice(text, None, place="x")) == asked()
    listed = yaml.safe_dump({"kind": "List", "items": [rayservice("a"), rayservice("b")]})
    assert only_rayservice(listed, "b", place="x")["metadata"]["name"] == "b"
    with pytest.raises(AskedConfigError, match="expected one RayService, found a, b"):
        only_rayservice(listed, None, place="x")


@pytest.mark.parametrize("text", ["", "{", "a: 1"])
def test_a_document_without_a_rayservice_is_refused(text: str) -> None:
    with pytest.raises(AskedConfigError, match=r"^x: "):
        only_rayservice(text, None, place="x")


def test_an_operator_that_has_not_seen_the_newest_rayservice_is_told() -> None:
    told = rayservice(metadata={"name": "a", "generation": 3}, status={"observedGeneration": 2})
    (difference,) = asked_config.operator_differences(told)
    assert str(difference) == "rayservice.status.observedGeneration: expected 3, found 2"
    assert asked_config.operator_differences(rayservice()) == []


def test_every_gateway_is_read_from_the_metrics() -> None:
    second = METRICS.replace("g1", "g2").replace("} 4.0", "} 3.0")
    lines = [line for line in (METRICS + second).splitlines() if not line.startswith("#")]
    assert {one.replica: (one.generation, dict(one.answers)) for one in gateways_of("\n".join(sorted(lines)))} == {
        "g1": (4, {"iris": ("v1", DIGEST)}),
        "g2": (3, {"iris": ("v1", DIGEST)}),
    }


def run(*options: str, stdin: str = "", path: str | None = None) -> tuple[int, str]:
    environment = {} if path is None else {"PATH": path}
    result = CliRunner().invoke(app, ["drift", "--settle-s", "0", *options], input=stdin, env=environment)
    return result.exit_code, result.output


def test_where_nothing_runs_it_cannot_tell(tmp_path: Path) -> None:
    code, told = run("--rayservice", "-", "--state-dir", str(tmp_path), "--json", stdin=yaml.safe_dump(rayservice()))
    assert code == UNKNOWN
    assert json.loads(told)["unknown"]["addresses"].startswith("nothing runs in ")


def test_kubectl_is_asked_for_a_name_alone(tmp_path: Path) -> None:
    (tmp_path / "answer.yaml").write_text(yaml.safe_dump(rayservice()))
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n/bin/cat {tmp_path}/answer.yaml\n')
    kubectl.chmod(0o755)
    closed = ["--serve-api", "http://127.0.0.1:1", "--address", "http://127.0.0.1:1"]
    code, told = run("--name", "serve-app", "--namespace", "models", *closed, path=str(tmp_path))
    assert (code, "could not tell (serve)" in told, "could not tell (asked)" in told) == (UNKNOWN, True, False)
    assert (tmp_path / "asked").read_text().split() == [
        "get", "rayservice", "serve-app", "--output", "yaml", "--namespace", "models",
    ]  # fmt: skip
    code, told = run("--name", "serve-app", *closed, path=os.devnull)
    assert (code, "kubectl is not installed here" in told) == (UNKNOWN, True)


def test_quiet_keeps_silent_about_nothing_only(tmp_path: Path) -> None:
    code, told = run("--config", "configs/local.yaml", "--state-dir", str(tmp_path), "--quiet")
    assert (code, "could not tell" in told) == (UNKNOWN, True)


def test_it_wants_one_thing_to_compare_with() -> None:
    assert run()[0] == UNKNOWN
    assert run("--rayservice", "a", "--config", "b")[0] == UNKNOWN


async def test_what_health_tells_of_replicas_is_what_drift_reads() -> None:
    server = Server()
    server.observe(wanted="v1")
    (one,) = replicas_of(health_body(server.router, frozenset({FAMILY})))
    assert (one.family, one.pool, one.wanted, set(one.digests)) == (FAMILY, "cpu", "v1", {"v1"})
    assert one.digests == {held.version: held.digest for held in server.router.statuses(FAMILY)[0].versions}
