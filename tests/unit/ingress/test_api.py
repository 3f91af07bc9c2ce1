"""The routes beside predictions, through the whole application."""

import httpx
import pytest
import structlog

from serve_app.domain.reload import Route, RoutingTable
from serve_app.domain.retraining import RetrainOutcome, RetrainStatus
from serve_app.domain.source_status import SourceStatus
from tests.reports import report
from tests.unit.ingress.serving import FAMILY, Server


async def get(server: Server, path: str, *, method: str = "GET") -> httpx.Response:
    async with server.http() as client:
        return await client.request(method, path)


async def test_live_says_that_the_process_answers() -> None:
    answer = await get(Server(routed=None), "/live")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})
    assert answer.headers["content-type"] == "application/json"


async def test_head_of_live_has_no_body() -> None:
    answer = await get(Server(), "/live", method="HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(b'{"status":"alive"}'))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_live_takes_no_other_method(method: str) -> None:
    assert (await get(Server(), "/live", method=method)).status_code == 405


async def test_ready_waits_for_the_required_families_only() -> None:
    answer = await get(Server(), "/ready")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "missing": {}})
    assert "retry-after" not in answer.headers


async def test_not_ready_is_503_with_what_is_missing_and_why() -> None:
    server = Server(routed=None)
    answer = await get(server, "/ready")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json() == {"ready": False, "missing": {FAMILY: "loading"}}
    server.router.observe(FAMILY, "cpu", [report(last_error="the disk is gone")])
    assert (await get(server, "/ready")).json()["missing"] == {FAMILY: "the disk is gone"}


@pytest.mark.parametrize("path", ["/health", "/health/"])
async def test_health_is_one_body_with_the_fields_of_every_convention(path: str) -> None:
    body = (await get(Server(), path)).json()
    assert {name: body[name] for name in ("status", "ready", "model_loaded", "model_version", "last_error")} == {
        "status": "ok", "ready": True, "model_loaded": True, "model_version": "v1", "last_error": None,
    }  # fmt: skip
    assert body["details"] == {"metrics": {}}
    assert set(body["families"]) == {FAMILY, "iris"}
    (replica,) = body["families"][FAMILY]["replicas"]
    assert (replica["replica"], replica["loaded"]) == ("r1", ["v1"])


async def test_health_says_where_models_run_and_what_is_left_out() -> None:
    server = Server()
    server.observe(device_note="found no CUDA here", no_room={"d": "v2 does not fit"})
    body = (await get(server, "/health")).json()
    (replica,) = body["families"][FAMILY]["replicas"]
    assert (replica["device"], replica["device_note"]) == ("cpu", "found no CUDA here")
    assert replica["no_room"] == {"d": "v2 does not fit"}
    assert body["status"] == "ok"  # it answers, only slower


async def test_health_without_a_model_is_200_and_says_unavailable() -> None:
    answer = await get(Server(routed=None), "/health")
    body = answer.json()
    assert (answer.status_code, body["status"], body["model_loaded"], body["model_version"]) == (
        200, "unavailable", False, None,
    )  # fmt: skip


async def test_health_is_degraded_while_a_replica_tells_of_an_error() -> None:
    server = Server()
    server.observe(last_error="v2: wrong digest")
    body = (await get(server, "/health")).json()
    assert (body["status"], body["last_error"]) == ("degraded", "v2: wrong digest")
    assert body["families"][FAMILY]["last_error"] == "v2: wrong digest"


REGISTRY = SourceStatus(
    kind="mlflow_registry", status="ok", name="iris-random-forest", selector="Production", version="2",
    model_uri="models:/iris-random-forest/2", stage="Production", server_version="3.17.0",
    verified_at_s=1_769_763_600.0,
)  # fmt: skip


def follow_registry(server: Server, source: SourceStatus, *, follows: bool = True, generation: int = 2) -> None:
    route = Route(version="v1", digest="0" * 64, follows=follows)
    server.router.follow(RoutingTable(generation=generation, routes={FAMILY: route}, sources={FAMILY: source}))


async def test_health_tells_how_the_registry_is() -> None:
    server = Server()
    assert (await get(server, "/health")).json()["mlflow"] is None
    follow_registry(server, REGISTRY)
    body = (await get(server, "/health/")).json()
    assert body["mlflow"] == {
        "status": "ok", "server_version": "3.17.0", "verified_at": "2026-01-30T09:00:00Z",
        "model_uri": "models:/iris-random-forest/2", "last_error": None, "next_try_at": None,
    }  # fmt: skip
    assert body["families"][FAMILY]["source"]["selector"] == "Production"
    away = {"status": "error", "last_error": "connection refused", "next_try_s": 1_769_763_605.0}
    follow_registry(server, REGISTRY.model_copy(update=away), generation=3)
    told = (await get(server, "/health")).json()["mlflow"]
    assert (told["status"], told["last_error"], told["next_try_at"]) == (
        "error", "connection refused", "2026-01-30T09:00:05Z",
    )  # fmt: skip


async def test_health_tells_how_trainings_stand_also_after_a_commit() -> None:
    server = Server()
    assert "retraining" not in (await get(server, "/health")).json()["families"][FAMILY]
    status = RetrainStatus(
        records=12, after_records=50, began_at_s=1_769_763_600.0, outcome=RetrainOutcome.FAILED, error="no data"
    )
    route = Route(version="v1", digest="0" * 64)
    server.router.follow(
        RoutingTable(generation=2, routes={FAMILY: route}, sources={FAMILY: REGISTRY}, retraining={FAMILY: status})
    )
    server.route("v1", generation=3)  # as a commit pushes it
    assert (await get(server, "/health")).json()["families"][FAMILY]["retraining"] == {
        "new_records": 12, "after_records": 50, "running": None, "began_at": "2026-01-30T09:00:00Z", "ended_at": None,
        "outcome": "failed", "last_error": "no data", "not_before": None,
    }  # fmt: skip


async def test_current_model_has_the_registry_s_name_and_stage_as_long_as_it_is_its_choice() -> None:
    server = Server()
    follow_registry(server, REGISTRY)
    body = (await get(server, "/models/current")).json()
    assert (body["name"], body["version"], body["stage"]) == ("iris-random-forest", "v1", "Production")
    server.route("v1", generation=3)  # as a commit pushes it: it says nothing of the sources
    assert (await get(server, "/models/current")).json()["name"] == "iris-random-forest"
    follow_registry(server, REGISTRY, follows=False, generation=4)
    assert (await get(server, "/models/current")).json()["stage"] == "stable"


@pytest.mark.parametrize("path", ["/models/current", f"/models/current?family={FAMILY}"])
async def test_current_model_is_described(path: str) -> None:
    body = (await get(Server(), path)).json()
    assert (body["name"], body["version"], body["stage"], body["generation"]) == (FAMILY, "v1", "stable", 1)
    assert body["loaded_at"] == "2026-01-30T09:00:00Z"
    assert body["engine"] == {"y": "fake"}
    assert body["row_micros"] == 12.35
    assert [column["name"] for column in body["signature"]["inputs"]] == ["cpu", "ram", "load"]


@pytest.mark.parametrize(("family", "status"), [("nothing", 404), ("iris", 503)])
async def test_current_model_of_a_family_without_one_is_an_error(family: str, status: int) -> None:
    answer = await get(Server(), f"/models/current?family={family}")
    assert answer.status_code == status
    assert answer.headers.get_list("content-type") == ["application/json"]
    assert family in answer.json()["detail"]
    assert ("retry-after" in answer.headers) == (status == 503)


async def test_metrics_are_in_the_text_format_of_prometheus() -> None:
    answer = await get(Server(metrics=b"# EOF\n"), "/metrics")
    assert (answer.status_code, answer.text) == (200, "# EOF\n")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_route_that_breaks_is_500_without_details_and_logged() -> None:
    server = Server()
    server.metrics_error = ValueError("secret detail")
    transport = httpx.ASGITransport(server.api, raise_app_exceptions=False)
    with structlog.testing.capture_logs() as lines:
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            answer = await client.get("/metrics")
    assert (answer.status_code, answer.json()) == (500, {"detail": "internal error; the log has the details"})
    assert [(line["event"], line["path"]) for line in lines] == [("request failed", "/metrics")]


async def test_document_of_the_api_lists_the_hot_route() -> None:
    document = (await get(Server(), "/openapi.json")).json()
    assert {"/predict/{family}", "/predict/", "/live", "/ready", "/health", "/models/current", "/metrics"} <= set(
        document["paths"]
    )
    assert "/predict" not in document["paths"]
    route = document["paths"]["/predict/{family}"]["post"]
    schema = route["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"instances", "features", "entity"}
    assert {"200", "400", "404", "413", "415", "422", "503"} <= set(route["responses"])
    assert [parameter["name"] for parameter in route.get("parameters", [])] == ["family", "model", "version"]


async def test_docs_are_a_page() -> None:
    answer = await get(Server(), "/docs")
    assert answer.status_code == 200
    assert "text/html" in answer.headers["content-type"]


async def test_unknown_path_is_404_with_a_detail() -> None:
    answer = await get(Server(), "/nothing")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


async def test_hot_route_mounted_in_fastapi_alone_answers_the_same() -> None:
    server = Server()
    body = b'{"instances":[[1,2,3]]}'
    hot = await server.post(body, headers={"x-request-id": "abc"})
    transport = httpx.ASGITransport(server.api.rest)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        cold = await client.post("/predict/forecaster", content=body, headers={"x-request-id": "abc"})
    ignored = ("x-prediction-id",)
    assert cold.content == hot.content
    assert {k: v for k, v in cold.headers.items() if k not in ignored} == {
        k: v for k, v in hot.headers.items() if k not in ignored
    }


async def test_requests_are_counted_by_the_template_of_their_route() -> None:
    server = Server()
    for path in ("/health", "/models/current?family=iris", "/nothing/7", "/live", "/ping", "/version", "/docs"):
        await get(server, path)
    await get(server, "/health", method="BREW")
    await server.post(b'{"instances":[[1,2,3]]}')
    await server.post(b"", path="/predict/")
    await server.post(b"", path="/invocations?family=x")
    assert server.meter.http == [
        ("GET", "/health", 200), ("GET", "/models/current", 503), ("GET", "other", 404), ("GET", "/live", 200),
        ("GET", "/ping", 200), ("GET", "/version", 200), ("GET", "other", 200), ("other", "/health", 405),
        ("POST", "/predict/{family}", 200), ("POST", "/predict/", 400), ("POST", "/invocations", 404),
    ]  # fmt: skip


async def test_route_that_breaks_is_counted_as_500() -> None:
    server = Server()
    server.metrics_error = ValueError("secret detail")
    transport = httpx.ASGITransport(server.api, raise_app_exceptions=False)
    with structlog.testing.capture_logs():
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            await client.get("/metrics")
    assert server.meter.http == [("GET", "/metrics", 500)]


async def test_body_of_a_prediction_needs_one_of_its_two_names() -> None:
    document = (await get(Server(), "/openapi.json")).json()
    schema = document["paths"]["/predict/"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "required" not in schema
    assert schema["oneOf"] == [{"required": ["instances"]}, {"required": ["features"]}]


async def test_document_of_the_api_has_the_protocol_of_mlflow() -> None:
    paths = (await get(Server(), "/openapi.json")).json()["paths"]
    content = paths["/invocations"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "text/csv"}
    assert [form["required"] for form in content["application/json"]["schema"]["oneOf"]] == [
        ["dataframe_split"], ["dataframe_records"], ["instances"], ["inputs"],
    ]  # fmt: skip
    assert {"/ping", "/version"} <= set(paths)
