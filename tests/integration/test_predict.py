"""Predictions through the whole server: HAProxy, Gateway, link, replica."""

import json

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_app.adapters.bundle_reader import read_bundle
from tests.integration.conftest import IRIS_ROW, Server

pytestmark = pytest.mark.ray


def test_forecasts_equal_the_offline_pipeline(server: Server) -> None:
    bundle = read_bundle(server.models / "forecaster" / "v1")
    golden = json.loads(bundle.files["golden.json"])
    assert bundle.manifest.signature is not None
    answer = server.predict("forecaster", golden["inputs"])
    assert answer.status_code == 200
    found = [list(row.values()) for row in answer.json()["predictions"]]
    assert [list(row) for row in answer.json()["predictions"]] == [list(bundle.manifest.signature.output_names)] * len(
        found
    )
    np.testing.assert_allclose(found, golden["outputs"], rtol=1e-9)


def test_an_answer_says_what_gave_it(server: Server) -> None:
    answer = server.predict("iris", [IRIS_ROW], **{"X-Request-ID": "abc-123"})
    assert answer.json()["predictions"] == [0]
    told = {name: value for name, value in answer.headers.items() if name.startswith("x-")}
    prediction_id, generation = told.pop("x-prediction-id"), int(told.pop("x-generation"))
    version = told.pop("x-model-version")
    assert told == {
        "x-model-family": "iris",
        "x-model-variant": "stable",
        "x-request-id": "abc-123",
        "x-route-reason": "default",
    }
    assert prediction_id
    assert generation >= 1
    assert version == answer.json()["model_version"]


def test_the_default_family_answers_without_a_name(server: Server) -> None:
    assert server.http.post("/predict/", json={"features": [IRIS_ROW]}).json()["model_family"] == "iris"


@pytest.mark.parametrize(
    ("body", "headers", "status", "says"),
    [
        (b"{", {}, 400, "JSON"),
        (b'{"instances": [[1, 2, NaN, 4]]}', {}, 400, "NaN"),
        (b'{"instances": [[1, 2, 3]]}', {}, 422, "expected 4 values"),
        (b'{"instances": [[1, 2, 3, "4"]]}', {}, 422, "expected a number"),
        (b'{"instances": [{"sepal_lenth": 1}]}', {}, 422, "'sepal_length'"),
        (b'{"instances": [[1, 2, 3, 1e999]]}', {}, 422, "finite"),
        (b"[" * 100_000, {}, 400, "JSON"),
        (b" " * 10_000_000, {}, 413, "at most"),
        (b"a=b", {"Content-Type": "text/csv"}, 415, "application/json"),
    ],
)
def test_bad_input_gets_its_own_code_and_one_sentence(
    server: Server, body: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    headers = {"Content-Type": "application/json", **headers}
    answer = server.http.post("/predict/iris", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]


def test_an_unknown_family_is_named_with_the_nearest_one(server: Server) -> None:
    answer = server.predict("irs", [IRIS_ROW])
    assert answer.status_code == 404
    assert "did you mean 'iris'?" in answer.json()["detail"]


def test_health_ready_and_current_tell_of_the_version(server: Server) -> None:
    assert server.http.get("/live").json() == {"status": "alive"}
    assert server.http.get("/ready").json() == {"ready": True, "missing": {}}
    for path in ("/health", "/health/"):
        health = server.http.get(path).json()
        assert health["ready"] is True
        assert health["model_loaded"] is True
    current = server.http.get("/models/current", params={"family": "forecaster"}).json()
    assert set(current["engine"].values()) == {"treelite"}
    assert current["loaded_at"].endswith("Z")


def test_metrics_are_merged_over_all_replicas(server: Server) -> None:
    server.predict("iris", [IRIS_ROW])
    text = server.http.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert any(s.labels["family"] == "iris" for s in families["serve_app_requests"].samples)
    assert any(s.labels["family"] == "iris" for s in families["serve_app_predict_duration_seconds"].samples)
    assert {s.labels["family"] for s in families["serve_app_model_info"].samples} == {"iris", "forecaster"}


def test_the_document_lists_the_hot_route(server: Server) -> None:
    assert "/predict/{family}" in server.http.get("/openapi.json").json()["paths"]
    assert server.http.get("/docs").status_code == 200
