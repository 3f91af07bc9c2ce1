"""`/reload`, `/admin/reload` and `/models/reload` as their clients know them."""

import asyncio
import json
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.domain.errors import (
    PinnedError,
    ReloadDisabledError,
    ReloadError,
    SourceError,
    StoreError,
    UnavailableError,
    UnknownVersionError,
)
from tests.unit.ingress.administered import RELOAD, Administered

ONE_FAMILY = ["/reload", "/admin/reload", "/models/reload", "/admin/reload-model"]
AWAY = UnavailableError("the control plane is away", retry_after_s=7)


def jq(text: str, key: str) -> str:
    """Print one key of a JSON object as `jq -r` does."""
    value = json.loads(text)[key]
    return value if isinstance(value, str) else json.dumps(value)


# POST /admin/reload


async def test_admin_reload_says_what_was_reloaded() -> None:
    answer = await Administered("v1", "v2").post("/admin/reload", headers={"X-Admin-Token": RELOAD})
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "reloaded", "detail": "Model reloaded successfully", "version": "v2", "stage": "stable",
    }  # fmt: skip


async def test_admin_reload_of_the_same_model_is_a_noop() -> None:
    answer = await Administered("v1").post("/admin/reload")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "noop", "detail": "Model descriptor unchanged", "version": None, "stage": None,
    }  # fmt: skip


async def test_admin_reload_that_fails_is_500_with_the_reason() -> None:
    served = Administered("v1", "v2")
    served.plane.broken["v2"] = "digest of model.joblib differs"
    answer = await served.post("/admin/reload")
    assert (answer.status_code, answer.json()) == (500, {"detail": "Reload failed: digest of model.joblib differs"})


@pytest.mark.parametrize("error", [AWAY, StoreError("disk full")])
async def test_admin_reload_without_a_control_plane_is_503(error: Exception) -> None:
    served = Administered()
    served.plane.error = error
    with structlog.testing.capture_logs() as lines:
        answer = await served.post("/admin/reload")
    assert (answer.status_code, answer.json()) == (503, {"detail": "Model manager unavailable"})
    assert answer.headers.get("retry-after") == ("7" if error is AWAY else None)
    assert [line["reason"] for line in lines] == [str(error)]


@pytest.mark.parametrize(
    "error", [SourceError("no route to the registry"), UnknownVersionError("forecaster", "v9", []), ReloadError("no")]
)
async def test_admin_reload_that_cannot_start_is_500_with_the_reason(error: Exception) -> None:
    served = Administered()
    served.plane.error = error
    answer = await served.post("/admin/reload")
    assert (answer.status_code, answer.json()) == (500, {"detail": f"Reload failed: {error}"})


async def test_reload_and_verify_script_of_the_admin_reload_clients_runs() -> None:
    served = Administered("v1", "v2")
    reload_result = (await served.post("/admin/reload", headers={"X-Admin-Token": RELOAD})).text
    assert jq(reload_result, "status") == "reloaded"
    health_result = (await served.get("/health/", headers={})).text
    assert jq(health_result, "ready") == "true"
    assert jq(health_result, "model_version") == "v2"
    predicted = await served.post("/predict/", headers={}, json={"features": [[5.1, 3.5, 1.4]]})
    assert (predicted.status_code, "predictions" in predicted.json()) == (200, True)


async def test_python_client_of_admin_reload_runs() -> None:
    response = await Administered("v1", "v2").post("/admin/reload", headers={"X-Admin-Token": RELOAD})
    response.raise_for_status()
    result = response.json()
    assert f"{result['status']} {result['version']}" == "reloaded v2"


async def test_reload_is_logged_with_who_and_the_correlation_id() -> None:
    served = Administered("v1", "v2")
    processors = [structlog.contextvars.merge_contextvars]
    with structlog.testing.capture_logs(processors=processors) as lines:
        await served.post("/admin/reload", headers={"X-Admin-Token": RELOAD, "X-Correlation-ID": "abc-123-xyz"})
    (line,) = lines
    expected = {
        "event": "Manual model reload applied", "log_level": "info", "version": "v2", "stage": "stable",
        "correlation_id": "abc-123-xyz", "actor": "ci", "family": "forecaster",
    }  # fmt: skip
    assert {key: line[key] for key in expected} == expected


# POST /models/reload


async def test_models_reload_says_the_version() -> None:
    served = Administered("v1", "v2")
    answer = await served.post("/models/reload")
    assert (answer.status_code, answer.json()) == (200, {"status": "reloaded", "model_version": "v2"})
    current = (await served.get("/models/current", headers={})).json()
    assert (current["version"], current["name"]) == ("v2", "forecaster")


async def test_models_reload_without_anything_new_keeps_the_version() -> None:
    answer = await Administered("v1").post("/models/reload")
    assert (answer.status_code, answer.json()) == (200, {"status": "unchanged", "model_version": "v1"})


async def test_models_reload_that_fails_keeps_the_version_and_says_why() -> None:
    served = Administered("v1", "v2")
    served.plane.broken["v2"] = "it raised"
    answer = await served.post("/models/reload")
    assert (answer.status_code, answer.json()) == (
        500,
        {"detail": "version v2 was not taken up, v1 stays: it raised"},
    )


# POST /reload


async def test_reload_takes_all_families_and_lists_their_outcomes() -> None:
    served = Administered("v1", "v2")
    served.plane.publish("i1", family="iris", active=True)
    answer = await served.post("/reload", headers={"x-reload-token": RELOAD})
    body = answer.json()
    assert (answer.status_code, body["status"], body["model_version"]) == (200, "reloaded", "v2")
    assert {name: (fared["status"], fared["model_version"]) for name, fared in body["families"].items()} == {
        "forecaster": ("reloaded", "v2"),
        "iris": ("unchanged", "i1"),
    }


async def test_reload_of_one_family_leaves_the_others() -> None:
    served = Administered("v1", "v2")
    answer = await served.post("/reload?family=forecaster")
    assert set(answer.json()["families"]) == {"forecaster"}
    assert [asked["family"] for asked in served.plane.asked] == ["forecaster"]


async def test_reload_where_one_family_fails_is_500_and_says_what_stays() -> None:
    served = Administered("v1", "v2")
    served.plane.publish("i1", family="iris")
    served.plane.broken["v2"] = "it raised"
    answer = await served.post("/reload")
    body = answer.json()
    assert (answer.status_code, body["status"]) == (500, "failed")
    assert body["families"]["forecaster"]["detail"] == "v2: it raised; v1 stays"
    assert body["families"]["forecaster"]["model_version"] == "v1"
    assert body["families"]["iris"]["status"] == "reloaded", "the others are reloaded all the same"
    assert "v2: it raised; v1 stays" in body["detail"]


async def test_reload_without_a_control_plane_is_503() -> None:
    served = Administered()
    served.plane.error = AWAY
    answer = await served.post("/reload")
    assert (answer.status_code, answer.json()["status"], answer.headers["retry-after"]) == (503, "unavailable", "5")
    assert answer.json()["model_version"] == "v1", "what answers now is told all the same"


@pytest.mark.parametrize(
    ("error", "status"), [(PinnedError("forecaster", "v1"), "pinned"), (ReloadDisabledError("mode 'none'"), "disabled")]
)
async def test_reload_of_a_family_that_must_stay_is_409(error: Exception, status: str) -> None:
    served = Administered()
    served.plane.error = error
    answer = await served.post("/reload?family=forecaster")
    assert (answer.status_code, answer.json()["status"]) == (409, status)
    assert str(error) in answer.json()["detail"]


# what all of them share


@pytest.mark.parametrize("path", ["/admin/reload", "/models/reload", "/admin/reload-model"])
async def test_pin_is_named_in_a_409(path: str) -> None:
    served = Administered()
    served.plane.error = PinnedError("forecaster", "v1")
    answer = await served.post(path)
    assert answer.status_code == 409
    assert answer.json()["detail"] == "family 'forecaster' is pinned to 'v1' by user_config; change the pin there"


@pytest.mark.parametrize("path", [*ONE_FAMILY, "/admin/rollback"])
async def test_unknown_family_is_404_with_the_nearest_one(path: str) -> None:
    served = Administered()
    answer = await served.post(path, params={"family": "forecastr"})
    assert answer.status_code == 404
    assert "did you mean 'forecaster'" in answer.json()["detail"]
    assert served.plane.asked == []


@pytest.mark.parametrize("path", ["/models/reload", "/admin/reload-model", "/admin/rollback"])
async def test_control_plane_away_is_503_with_the_time_to_try_again(path: str) -> None:
    served = Administered()
    served.plane.error = AWAY
    answer = await served.post(path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json()["detail"] == "the control plane is away"


@pytest.mark.parametrize("path", ONE_FAMILY)
async def test_parameters_reach_the_control_plane(path: str) -> None:
    served = Administered()
    served.plane.publish("i1", family="iris")
    await served.post(path, params={"family": "iris", "force": "true", "timeout_s": "2.5"})
    (asked,) = served.plane.asked
    assert asked == {"family": "iris", "version": None, "force": True, "actor": "ci", "wait_s": 2.5}
    assert served.plane.entries[0].reason == f"POST {path}"


@pytest.mark.parametrize(("query", "wait_s"), [("", 30.0), ("?wait=false", 0.0), ("?wait=false&timeout_s=9", 0.0)])
async def test_configured_time_is_waited_unless_the_request_says_otherwise(query: str, wait_s: float) -> None:
    served = Administered("v1", "v2", admin={"wait_s": 30})
    await served.post(f"/models/reload{query}")
    assert served.plane.asked[0]["wait_s"] == wait_s


@pytest.mark.parametrize("path", ["/admin/reload", "/models/reload", "/admin/reload-model", "/admin/rollback?to=v2"])
async def test_change_that_is_not_waited_for_is_202_with_where_to_ask(path: str) -> None:
    served = Administered("v1", "v2")
    served.plane.is_held = True
    answer = await served.post(path + ("&" if "?" in path else "?") + "wait=false")
    body = answer.json()
    assert (answer.status_code, body["status"], body["operation"]["outcome"]) == (202, "running", "running")
    assert answer.headers["location"] == body["operation_url"] == "/admin/operations/op-1"
    served.plane.finish()
    ended = (await served.get(body["operation_url"])).json()
    assert (ended["outcome"], ended["to_version"]) == ("reloaded", "v2")


async def test_reload_of_all_that_is_not_waited_for_is_202_with_where_to_ask() -> None:
    served = Administered("v1", "v2")
    served.plane.publish("i1", family="iris", active=True)
    served.plane.is_held = True
    answer = await served.post("/reload?wait=false")
    fared = answer.json()["families"]
    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    assert fared["forecaster"] | {"detail": ""} == {
        "status": "running", "model_version": "v1", "detail": "", "operation_id": "op-1",
        "operation_url": "/admin/operations/op-1",
    }  # fmt: skip
    assert fared["iris"]["status"] == "unchanged"


async def test_change_that_outlasts_its_deadline_is_202_and_goes_on() -> None:
    served = Administered("v1", "v2")
    served.plane.is_held = True
    assert (await served.post("/models/reload?timeout_s=0.01")).status_code == 202
    served.plane.finish()
    assert (await served.get("/models/current", headers={})).json()["version"] == "v2"


async def test_reload_that_ends_in_time_is_waited_for() -> None:
    served = Administered("v1", "v2")
    served.plane.is_held = True
    waiting = asyncio.create_task(served.post("/models/reload"))
    while not served.plane.asked:
        await asyncio.sleep(0)
    assert not waiting.done()
    served.plane.finish()
    assert (await waiting).json() == {"status": "reloaded", "model_version": "v2"}


async def test_unchanged_is_told_at_once_where_nothing_is_waited_for() -> None:
    answer = await Administered("v1").post("/models/reload?wait=false")
    assert (answer.status_code, answer.json()["status"]) == (200, "unchanged")


@pytest.mark.parametrize(
    "query", ["wait=perhaps", "timeout_s=-1", "timeout_s=601", "timeout_s=nan", "timeout_s=inf", "force=2"]
)
@pytest.mark.parametrize("path", [*ONE_FAMILY, "/admin/rollback"])
async def test_wrong_parameter_is_422_in_one_sentence(path: str, query: str) -> None:
    served = Administered("v1", "v2")
    answer = await served.post(f"{path}?{query}")
    if query.startswith("force") and path == "/admin/rollback":
        assert answer.status_code == 404, "it has no such parameter, and nothing to go back to"
        return
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(query.partition("=")[0] + ": ")
    assert served.plane.asked == []


QUERY = st.dictionaries(
    st.sampled_from(["family", "force", "wait", "timeout_s", "model_path", "to", "limit", "x"]),
    st.one_of(
        st.text(max_size=80),
        st.sampled_from(
            ["", "true", "0", "1e999", "nan", "v1", "forecaster", "iris", "models/v2", "../v2", "a" * 2000]
        ),
        st.integers().map(str),
        st.floats().map(str),
    ),
)
ANY_ROUTE = st.sampled_from([
    ("POST", "/reload"), ("POST", "/admin/reload"), ("POST", "/models/reload"), ("POST", "/admin/reload-model"),
    ("POST", "/admin/rollback"), ("GET", "/admin/models"), ("GET", "/admin/model-info"), ("GET", "/admin/versions"),
    ("GET", "/admin/audit"), ("GET", "/admin/operations/op-1"),
])  # fmt: skip


@pytest.fixture
async def busy() -> Administered:
    """Serves two families; one for all examples, so that they also meet what others before them have changed."""
    served = Administered("v1", "v2")
    served.plane.publish("i1", family="iris", active=True)
    return served


ONE_FOR_ALL = [HealthCheck.function_scoped_fixture]


@settings(max_examples=300, deadline=None, suppress_health_check=ONE_FOR_ALL)
@given(route=ANY_ROUTE, query=QUERY, body=st.binary(max_size=50))
async def test_no_parameter_makes_a_defect(
    busy: Administered, route: tuple[str, str], query: dict[str, Any], body: bytes
) -> None:
    params = {key: value for key, value in query.items() if not _is_surrogate(value)}
    answer = await busy.call(*route, params=params, content=body)
    assert answer.status_code in (200, 202, 400, 404, 409, 422)
    assert isinstance(answer.json(), dict)


@settings(max_examples=100, deadline=None, suppress_health_check=ONE_FOR_ALL)
@given(operation_id=st.text(min_size=1, max_size=200))
async def test_no_operation_id_makes_a_defect(busy: Administered, operation_id: str) -> None:
    if not _is_surrogate(operation_id):
        path = "/admin/operations/" + "".join(f"%{byte:02x}" for byte in operation_id.encode())
        assert (await busy.get(path)).status_code in (200, 307, 404, 422)  # 307: a slash at the end is cut off


def _is_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
