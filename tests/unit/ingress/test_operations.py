"""Rollback, operations, the audit log."""

import pytest

from serve_app.domain.errors import PinnedError, StoreError
from tests.unit.ingress.administered import Administered


async def after_a_reload() -> Administered:
    served = Administered("v1", "v2")
    await served.post("/models/reload")
    return served


async def test_rollback_goes_to_the_last_good_version() -> None:
    served = await after_a_reload()
    answer = await served.post("/admin/rollback")
    assert (answer.status_code, answer.headers["x-operation-id"]) == (200, "op-2")
    assert answer.json() == {
        "status": "rolled_back", "detail": "Model rolled back", "family": "forecaster", "from_version": "v2",
        "to_version": "v1", "generation": 3,
    }  # fmt: skip
    assert (await served.get("/models/current", headers={})).json()["version"] == "v1"


async def test_rollback_goes_to_the_version_that_is_named() -> None:
    served = Administered("v1", "v2", "v3")
    await served.post("/models/reload")
    answer = await served.post("/admin/rollback?to=v2&family=forecaster&timeout_s=3")
    assert answer.json()["to_version"] == "v2"
    assert served.plane.asked[-1] == {"family": "forecaster", "version": "v2", "actor": "ci", "wait_s": 3.0}


async def test_rollback_to_what_answers_already_changes_nothing() -> None:
    answer = await Administered("v1").post("/admin/rollback?to=v1")
    assert (answer.status_code, answer.json()["status"]) == (200, "unchanged")


async def test_rollback_without_a_last_good_version_is_404() -> None:
    assert (await Administered("v1").post("/admin/rollback")).status_code == 404


async def test_rollback_to_an_unknown_version_is_404() -> None:
    answer = await Administered("v1").post("/admin/rollback?to=v9")
    assert (answer.status_code, "v9" in answer.json()["detail"]) == (404, True)


async def test_rollback_that_fails_is_500_and_says_what_stays() -> None:
    served = await after_a_reload()
    served.plane.broken["v1"] = "it raised"
    answer = await served.post("/admin/rollback")
    assert (answer.status_code, answer.json()) == (500, {"detail": "Rollback failed, v2 stays: it raised"})


async def test_rollback_against_a_pin_is_409_and_names_it() -> None:
    served = await after_a_reload()
    served.plane.error = PinnedError("forecaster", "v2")
    answer = await served.post("/admin/rollback")
    assert (answer.status_code, "pinned to 'v2'" in answer.json()["detail"]) == (409, True)


@pytest.mark.parametrize("query", ["to=", "to=" + "v" * 129])
async def test_version_of_a_wrong_length_is_422(query: str) -> None:
    assert (await Administered().post(f"/admin/rollback?{query}")).status_code == 422


async def test_another_change_under_way_is_503_with_the_time_to_try_again() -> None:
    served = Administered("v1", "v2", "v3")
    served.plane.is_held = True
    await served.post("/models/reload?wait=false")
    answer = await served.post("/admin/rollback?to=v2")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "another change of 'forecaster' is under way: v3" in answer.json()["detail"]
    served.plane.finish()


async def test_operation_tells_how_it_stands() -> None:
    served = Administered("v1", "v2")
    served.plane.is_held = True
    url = (await served.post("/models/reload?wait=false")).json()["operation_url"]
    first = (await served.get(url)).json()
    assert (first["outcome"], first["phase"], first["ended_at_s"]) == ("running", "trial", None)
    served.plane.broken["v2"] = "it raised"
    served.plane.finish()
    last = (await served.get(url)).json()
    assert (last["outcome"], last["phase"], last["detail"]) == ("failed", None, "it raised")


async def test_unknown_operation_is_404() -> None:
    answer = await Administered().get("/admin/operations/op-9")
    assert (answer.status_code, answer.json()) == (404, {"detail": "no operation 'op-9' is known"})


async def test_audit_says_who_did_what_newest_first() -> None:
    served = await after_a_reload()
    await served.post("/admin/rollback")
    body = (await served.get("/admin/audit")).json()
    assert body["count"] == 2
    assert [(e["action"], e["actor"], e["from_version"], e["to_version"]) for e in body["entries"]] == [
        ("rollback", "ci", "v2", "v1"),
        ("reload", "ci", "v1", "v2"),
    ]
    assert (await served.get("/admin/audit?limit=1")).json()["entries"] == body["entries"][:1]
    assert (await served.get("/admin/audit?family=iris")).json() == {"entries": [], "count": 0}
    assert (await served.get("/admin/audit?family=none")).status_code == 404


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "1.5", ""])
async def test_limit_outside_its_bounds_is_422(limit: str) -> None:
    assert (await Administered().get(f"/admin/audit?limit={limit}")).status_code == 422


async def test_store_away_is_503_with_its_reason() -> None:
    served = Administered()
    served.plane.error = StoreError("the disk is full")
    answer = await served.get("/admin/audit")
    assert (answer.status_code, answer.json()) == (503, {"detail": "the disk is full"})
