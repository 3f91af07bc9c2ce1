"""`GET /admin/rollouts/{family}/shadow` and `POST /admin/replay`."""

from typing import Any

import httpx
import pytest

from serve_app.domain.diff_report import ShadowDiff
from serve_app.domain.errors import UnavailableError
from serve_app.domain.recording import NothingRecordedError, ReplayError, ReplayReport
from tests.fakes.replayer import replay_report
from tests.unit.ingress import administered
from tests.unit.ingress.administered import READ, RELOAD, ROLLOUT, Headers
from tests.unit.ingress.serving import FAMILY

PLAN = {"strategy": "shadow", "shadow_first": {"hold_s": 60}}
READER, RELOADER, OPERATOR = ({"Authorization": f"Bearer {token}"} for token in (READ, RELOAD, ROLLOUT))
TOLD = ShadowDiff(
    family=FAMILY, salt="salt-1", live_version="v1", gateways=2, away=1, at_s=1.0,
    diff=replay_report(FAMILY, "v2").diff,
)  # fmt: skip


class Administered(administered.Administered):
    """A gateway that is asked with the token of an operator unless the headers say otherwise."""

    async def call(self, method: str, path: str, *, headers: Headers = OPERATOR, **more: Any) -> httpx.Response:
        return await super().call(method, path, headers=headers, **more)


async def shadowed() -> Administered:
    served = Administered("v1", "v2")
    assert (await served.post("/admin/rollouts", json={"version": "v2", "plan": PLAN})).status_code == 202
    served.plane.shadows[FAMILY] = TOLD
    return served


async def test_shadow_is_told_to_who_may_read() -> None:
    answer = await (await shadowed()).get(f"/admin/rollouts/{FAMILY}/shadow", headers=READER)
    assert answer.status_code == 200
    assert ShadowDiff.model_validate_json(answer.content) == TOLD
    assert (answer.json()["diff"]["agreement"], answer.json()["away"]) == (0.9, 1)


async def test_family_without_a_rollout_or_a_shadow_is_404() -> None:
    served = await shadowed()
    assert (await served.get("/admin/rollouts/iris/shadow")).status_code == 404
    assert (await served.get("/admin/rollouts/none/shadow")).status_code == 404
    served.plane.shadows.clear()
    answer = await served.get(f"/admin/rollouts/{FAMILY}/shadow")
    assert (answer.status_code, "has had no shadow" in answer.json()["detail"]) == (404, True)


async def test_replay_is_asked_of_the_control_plane_and_told_whole() -> None:
    served = Administered("v1", "v2")
    served.plane.replays["v2"] = replay_report(FAMILY, "v2")
    answer = await served.post("/admin/replay", json={"family": FAMILY, "version": "v2", "limit": 10})
    assert answer.status_code == 200
    assert ReplayReport.model_validate_json(answer.content) == served.plane.replays["v2"]
    assert (await served.post("/admin/replay", json={"version": "v2"})).status_code == 200
    assert served.plane.replayed == [(FAMILY, "v2", 10, "ops"), (FAMILY, "v2", None, "ops")]


@pytest.mark.parametrize(("headers", "status"), [(READER, 403), (RELOADER, 403), ({}, 401)])
async def test_replay_needs_the_scope_of_rollouts(headers: Headers, status: int) -> None:
    served = Administered("v1")
    answer = await served.post("/admin/replay", json={"version": "v1"}, headers=headers)
    assert (answer.status_code, served.plane.replayed) == (status, [])


@pytest.mark.parametrize(
    "body", [{}, {"version": ""}, {"version": "v1", "limit": 0}, {"version": "v1", "limt": 5}, {"version": 3}, []]
)
async def test_wish_that_cannot_be_read_is_422(body: Any) -> None:
    assert (await Administered("v1").post("/admin/replay", json=body)).status_code == 422


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NothingRecordedError("nothing is recorded of 'forecaster' yet"), 409),
        (ReplayError("inputs: expected a, as recorded, found b"), 422),
        (UnavailableError("another replay is under way"), 503),
    ],
)
async def test_replay_that_cannot_be_held_says_why(error: Exception, status: int) -> None:
    served = Administered("v1")
    served.plane.error = error
    answer = await served.post("/admin/replay", json={"version": "v1"})
    assert (answer.status_code, answer.json()["detail"]) == (status, str(error))


async def test_family_that_records_nothing_and_version_that_is_not_there_are_told_apart() -> None:
    served = Administered("v1")
    assert (await served.post("/admin/replay", json={"version": "v1"})).status_code == 422
    assert (await served.post("/admin/replay", json={"version": "v9"})).status_code == 404
    assert (await served.post("/admin/replay", json={"family": "none", "version": "v1"})).status_code == 404
