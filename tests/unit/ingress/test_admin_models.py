"""`/admin/models`, `/admin/reload-model` and `/admin/model-info` as their clients know them; `/admin/versions`."""

import json
from typing import Any

import pytest

from serve_app.domain.errors import SourceError, UnavailableError
from tests.reports import loaded, report
from tests.unit.ingress.administered import READ, RELOAD, Administered, Headers
from tests.unit.ingress.serving import FAMILY

OLD = "tft_model_20250130_120000"
NEW = "tft_model_20250130_143000"
TRAINING: dict[str, Any] = {"epochs": 20, "training_time": 7200, "servers_trained": 50}
API_KEY: Headers = {"X-API-Key": RELOAD}


def served_models(*, active: str = OLD) -> Administered:
    """Return a server whose source lists two models, the newer one with training facts."""
    served = Administered()
    for name, size_mb, modified_at_s, training in (
        (OLD, 243.1, 1_738_238_715.0, {}),
        (NEW, 245.3, 1_738_247_722.0, TRAINING),
    ):
        served.plane.publish(
            name, active=name == active, location=f"/srv/models/{name}", size_bytes=round(size_mb * (1 << 20)),
            modified_at_s=modified_at_s, training=training,
        )  # fmt: skip
    return served


async def test_list_has_name_timestamp_size_training_and_what_is_current() -> None:
    served = served_models(active=NEW)
    body = (await served.get("/admin/models", headers={"X-API-Key": READ})).json()
    assert body["models"][:2] == [
        {
            "path": f"models/{NEW}", "name": NEW, "timestamp": "20250130_143000", "is_current": True, "size_mb": 245.3,
            "modified": "2025-01-30T14:35:22", "training": TRAINING,
        },
        {
            "path": f"models/{OLD}", "name": OLD, "timestamp": "20250130_120000", "is_current": False, "size_mb": 243.1,
            "modified": "2025-01-30T12:05:15",
        },
    ]  # fmt: skip
    assert (body["count"], body["models_dir"], body["current_model"]) == (3, "models", f"models/{NEW}")


async def test_small_model_has_a_size_above_zero() -> None:
    served = Administered()
    served.plane.publish("tiny", size_bytes=40_000)
    assert (await served.get("/admin/models")).json()["models"][0]["size_mb"] == 0.0381


async def test_empty_source_is_an_empty_list() -> None:
    answer = await Administered().get("/admin/models?family=iris")
    assert answer.json() == {"models": [], "count": 0, "models_dir": "models", "current_model": None}


async def test_latest_model_is_reloaded() -> None:
    answer = await served_models().post("/admin/reload-model", headers=API_KEY)
    assert (answer.status_code, answer.headers["x-operation-id"]) == (200, "op-1")
    assert answer.json() == {
        "success": True, "message": "Model reloaded successfully", "previous_model": f"models/{OLD}",
        "new_model": f"models/{NEW}", "model_timestamp": "20250130_143000",
    }  # fmt: skip


async def test_first_model_has_no_previous_one() -> None:
    served = Administered()
    served.plane.publish("i1", family="iris")
    assert (await served.post("/admin/reload-model?family=iris")).json()["previous_model"] is None


async def test_model_that_answers_already_is_not_reloaded() -> None:
    answer = await served_models(active=NEW).post("/admin/reload-model", headers=API_KEY)
    assert answer.status_code == 200
    assert answer.json() == {
        "success": True, "message": "Model already loaded (same version)", "model_path": f"models/{NEW}",
        "new_model": f"models/{NEW}",
    }  # fmt: skip


async def test_model_that_fails_leaves_the_previous_one() -> None:
    served = served_models()
    served.plane.broken[NEW] = "weights are missing"
    answer = await served.post("/admin/reload-model", headers=API_KEY)
    assert answer.json() == {
        "success": False, "error": "Failed to load new model, rolled back to previous",
        "current_model": f"models/{OLD}",
    }  # fmt: skip
    assert answer.status_code == 500
    operation = await served.get(f"/admin/operations/{answer.headers['x-operation-id']}")
    assert operation.json()["detail"] == "weights are missing"


@pytest.mark.parametrize("path", [f"models/{OLD}", OLD, f"./models/{OLD}/", f"/srv/models/{OLD}"])
async def test_model_is_chosen_by_its_path(path: str) -> None:
    served = served_models(active=NEW)
    answer = await served.post("/admin/reload-model", params={"model_path": path}, headers=API_KEY)
    assert answer.json()["new_model"] == f"models/{OLD}"
    assert served.plane.asked[0]["version"] == OLD


async def test_every_listed_path_can_be_given_back() -> None:
    served = served_models()
    for model in (await served.get("/admin/models")).json()["models"]:
        answer = await served.post("/admin/reload-model", params={"model_path": model["path"]})
        assert answer.json()["success"] is True
        assert (await served.get("/admin/models")).json()["current_model"] == model["path"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"models/../models/{OLD}", 400),
        ("../../etc/passwd", 400),
        ("..%2f..%2fetc", 404),
        ("/etc/passwd", 400),
        ("/srv/models", 400),
        ("", 400),
        ("models/\x00", 400),
        ("models", 404),
        ("models/none", 404),
    ],
)
async def test_path_that_the_source_does_not_list_is_refused_in_one_sentence(path: str, status: int) -> None:
    served = served_models()
    answer = await served.post("/admin/reload-model", params={"model_path": path}, headers=API_KEY)
    body = answer.json()
    assert (answer.status_code, body["success"]) == (status, False)
    assert body["error"] == body["detail"]
    assert "\n" not in body["error"]
    assert served.plane.asked == []


@pytest.mark.parametrize("error", [UnavailableError("away"), SourceError("the disk is gone")])
async def test_source_or_control_plane_away_is_503_in_words_of_this_route(error: Exception) -> None:
    served = served_models()
    served.plane.error = error
    for path in ("/admin/reload-model", f"/admin/reload-model?model_path=models/{NEW}"):
        answer = await served.post(path)
        assert (answer.status_code, answer.json()["success"], answer.json()["error"]) == (503, False, str(error))
    assert (await served.get("/admin/models")).json() == {"detail": str(error)}


async def test_reload_that_is_not_waited_for_has_no_success_yet() -> None:
    served = served_models()
    served.plane.is_held = True
    answer = await served.post("/admin/reload-model?wait=false")
    assert (answer.status_code, answer.json()["success"]) == (202, None)
    assert "operation_url" in answer.json()["error"]
    served.plane.finish()


async def test_info_tells_the_model_that_answers() -> None:
    served = served_models(active=NEW)
    config = {"max_prediction_length": 96, "max_encoder_length": 288}
    servers = {"total": 50, "known": 50}
    training = {"config": config, "servers": servers, "epochs": 20}
    served.server.router.observe(FAMILY, "cpu", [report(loaded(NEW, training=training))])
    assert (await served.get("/admin/model-info", headers={"X-API-Key": READ})).json() == {
        "loaded": True, "mode": "regression", "model_path": f"models/{NEW}", "model_name": NEW,
        "model_timestamp": "20250130_143000", "config": config, "servers": servers,
    }  # fmt: skip


async def test_info_tells_of_devices_where_a_pool_has_another_than_the_cpu() -> None:
    served = served_models(active=NEW)
    note = "expected cuda, found no CUDA here: runs on cpu"
    fallen_back = [report(NEW, replica_id=name, pool="gpu", device_note=note) for name in ("r2", "r3")]
    served.server.router.observe(FAMILY, "cpu", [report(NEW), *fallen_back])
    assert (await served.get("/admin/model-info")).json()["devices"] == [
        {"pool": "cpu", "device": "cpu", "device_note": None}, {"pool": "gpu", "device": "cpu", "device_note": note},
    ]  # fmt: skip


async def test_info_leaves_out_what_is_not_known() -> None:
    body = (await served_models().get("/admin/model-info")).json()
    assert set(body) == {"loaded", "mode", "model_path", "model_name", "model_timestamp"}


async def test_info_of_a_family_without_a_model() -> None:
    assert (await Administered().get("/admin/model-info?family=iris")).json() == {
        "loaded": False, "mode": "regression", "model_path": None, "model_name": None, "model_timestamp": None,
    }  # fmt: skip


async def test_info_needs_no_control_plane() -> None:
    served = served_models()
    served.plane.error = UnavailableError("away")
    answer = await served.get("/admin/model-info")
    assert (answer.status_code, answer.json()["model_path"]) == (200, f"models/{OLD}")


async def test_versions_tell_all_that_is_known() -> None:
    served = served_models()
    body = (await served.get("/admin/versions")).json()
    assert (body["family"], body["count"], body["versions"][0]["version"]) == (FAMILY, 3, NEW)
    assert body["versions"][0] | {"metrics": None} == {
        "version": NEW, "location": f"/srv/models/{NEW}", "modified_at_s": 1_738_247_722.0, "is_current": True,
        "size_bytes": round(245.3 * (1 << 20)), "is_active": False, "is_resident": False, "failed_reason": None,
        "metrics": None, "training": TRAINING,
    }  # fmt: skip


@pytest.mark.parametrize("is_broken", [False, True])
async def test_python_client_of_these_routes_runs(is_broken: bool) -> None:
    served = served_models()
    said = []
    models = (await served.get("/admin/models", headers=API_KEY)).json()
    said.append(f"Found {models['count']} models:")
    for model in models["models"]:
        current = " (CURRENT)" if model["is_current"] else ""
        said.append(f"{model['name']}{current} {model['size_mb']} MB {model['modified']}")
    if is_broken:
        served.plane.broken[NEW] = "weights are missing"
    result = (await served.post("/admin/reload-model", headers=API_KEY)).json()
    said.append(f"reloaded {result['new_model']}" if result["success"] else f"failed {result['error']}")
    info = (await served.get("/admin/model-info", headers=API_KEY)).json()
    said.append(f"{info['model_name']} {info['model_timestamp']}")
    assert said[:3] == [
        "Found 3 models:",
        f"{NEW} 245.3 MB 2025-01-30T14:35:22",
        f"{OLD} (CURRENT) 243.1 MB 2025-01-30T12:05:15",
    ]
    assert said[-2:] == (
        ["failed Failed to load new model, rolled back to previous", f"{OLD} 20250130_120000"]
        if is_broken
        else [f"reloaded models/{NEW}", f"{NEW} 20250130_143000"]
    )


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (RELOAD, None),
        ("wrong-token-0123456789", "expected an admin token, found none that is known"),
        (READ, "expected a token with the scope 'reload', found 'ann', which does not have it"),
    ],
)
async def test_retraining_script_reads_success_and_error_of_every_answer(key: str, error: str | None) -> None:
    response = (await served_models().post("/admin/reload-model", headers={"X-API-Key": key})).text
    success = json.dumps(json.loads(response)["success"])  # what `jq -r '.success'` prints
    if success == "true":
        assert (error, json.loads(response)["new_model"]) == (None, f"models/{NEW}")
    else:
        assert json.loads(response)["error"] == error
