"""`/admin/rollouts`: how rollouts stand, commands, and what other controllers ask."""

from typing import Any

import httpx
import pytest

from serve_app.domain.analysis import Analysis, MetricAnalysis
from serve_app.domain.errors import RefusedVersionError, StoreError
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutReport
from serve_app.domain.rollout_state import CoolingDownError, Phase
from serve_app.domain.verdict import Verdict
from tests.unit.ingress import administered
from tests.unit.ingress.administered import READ, RELOAD, ROLLOUT, Headers

PLAN = {"strategy": "canary", "steps": [{"weight": 5, "hold_s": 10}, {"weight": 50, "hold_s": 10}]}
READER, RELOADER, OPERATOR = ({"Authorization": f"Bearer {token}"} for token in (READ, RELOAD, ROLLOUT))


class Administered(administered.Administered):
    """A gateway that is asked with the token of an operator unless the headers say otherwise."""

    async def call(self, method: str, path: str, *, headers: Headers = OPERATOR, **more: Any) -> httpx.Response:
        return await super().call(method, path, headers=headers, **more)


async def started(**wish: Any) -> Administered:
    served = Administered("v1", "v2")
    answer = await served.post("/admin/rollouts", json={"version": "v2", "plan": PLAN} | wish)
    assert answer.status_code == 202, answer.text
    return served


def judged(served: Administered, verdict: Verdict) -> None:
    """Let the analysis of the rollout say this."""
    metric = MetricAnalysis(name="error_rate", verdict=verdict, reason="because", stable=0.01, canary=0.02)
    analysis = Analysis(verdict=verdict, reason="error_rate: because", metrics=(metric,), n_windows=3)
    record = served.plane.rolled["forecaster"]
    served.plane.rolled["forecaster"] = record.model_copy(update={"analysis": analysis})


async def test_start_answers_202_and_where_to_look() -> None:
    served = Administered("v1", "v2")
    answer = await served.post("/admin/rollouts", json={"version": "v2", "plan": PLAN, "reason": "try it"})
    assert (answer.status_code, answer.headers["location"]) == (202, "/admin/rollouts/forecaster")
    report = RolloutReport.model_validate_json((await served.get(answer.headers["location"])).content)
    assert report.model_dump(mode="json") == answer.json()
    assert (report.state.actor, report.state.reason, report.state.candidate.version) == ("ops", "try it", "v2")
    assert (report.state.phase, report.weight) == (Phase.STEP, 5.0)
    assert report.split is not None
    assert [variant.weight for variant in report.split.variants] == [9_500, 500]


async def test_start_goes_by_the_configured_plan() -> None:
    served = Administered("v1", "v2")
    assert (await served.post("/admin/rollouts", json={})).status_code == 422
    served.plane.plans["forecaster"] = RolloutPlan.model_validate(PLAN)
    assert (await served.post("/admin/rollouts", json={})).status_code == 202


@pytest.mark.parametrize(
    "wish",
    [
        {"plan": {"strategy": "canary"}}, {"plan": {"strategy": "hope"}}, {"versoin": "v2"}, {"version": ""},
        {"plan": PLAN | {"alpha": 1}}, [], "x",
    ],
)  # fmt: skip
async def test_wish_that_cannot_be_read_is_422(wish: Any) -> None:
    assert (await Administered("v1", "v2").post("/admin/rollouts", json=wish)).status_code == 422


async def test_list_tells_of_every_family_that_had_one() -> None:
    assert (await Administered("v1").get("/admin/rollouts")).json() == {"rollouts": [], "count": 0}
    body = (await (await started()).get("/admin/rollouts")).json()
    assert (body["count"], body["rollouts"][0]["family"]) == (1, "forecaster")


@pytest.mark.parametrize("family", ["iris", "none"])
async def test_family_without_a_rollout_is_404(family: str) -> None:
    served = await started()
    assert (await served.get(f"/admin/rollouts/{family}")).status_code == 404
    assert (await served.post(f"/admin/rollouts/{family}/abort")).status_code == 404
    assert (await served.get(f"/admin/rollouts/{family}/verdict")).status_code == 404


@pytest.mark.parametrize(
    ("commands", "phase"),
    [
        (["pause"], "paused"), (["pause", "resume"], "step"), (["promote"], "promoting"), (["abort"], "aborting"),
        (["skip"], "step"),
    ],
)  # fmt: skip
async def test_commands_move_the_rollout(commands: list[str], phase: str) -> None:
    served = await started()
    for command in commands:
        answer = await served.post(f"/admin/rollouts/forecaster/{command}?reason=because")
        assert answer.status_code == 200, answer.text
    state = answer.json()["state"]
    assert (state["phase"], state["history"][-1]["actor"], state["history"][-1]["reason"]) == (phase, "ops", "because")


async def test_command_that_does_not_fit_is_409_and_says_what_was_expected() -> None:
    answer = await (await started()).post("/admin/rollouts/forecaster/retry")
    assert (answer.status_code, "expected a rollout that is aborted or failed" in answer.json()["detail"]) == (
        409,
        True,
    )


async def test_second_rollout_is_409() -> None:
    answer = await (await started()).post("/admin/rollouts", json={"version": "v2", "plan": PLAN})
    assert answer.status_code == 409


@pytest.mark.parametrize("command", ["explode", "skip_step", "verdict2"])
async def test_unknown_command_is_422(command: str) -> None:
    assert (await (await started()).post(f"/admin/rollouts/forecaster/{command}")).status_code == 422


@pytest.mark.parametrize(
    ("error", "status"),
    [(StoreError("full"), 503), (CoolingDownError("forecaster", 3), 409), (RefusedVersionError("bad"), 500)],
)
async def test_errors_of_the_control_plane_have_their_status(error: Exception, status: int) -> None:
    served = await started()
    served.plane.error = error
    assert (await served.post("/admin/rollouts/forecaster/abort")).status_code == status


async def test_readers_may_look_and_not_command() -> None:
    served = await started()
    for path in ("", "/forecaster", "/forecaster/verdict"):
        assert (await served.get("/admin/rollouts" + path, headers=READER)).status_code == 200
        assert (await served.get("/admin/rollouts" + path, headers={})).status_code == 401
    for path in ("", "/forecaster/abort"):
        assert (await served.post("/admin/rollouts" + path, headers=RELOADER, json={})).status_code == 403
        assert (await served.post("/admin/rollouts" + path, headers=READER, json={})).status_code == 403
        assert (await served.post("/admin/rollouts" + path, headers={}, json={})).status_code == 401


@pytest.mark.parametrize(
    ("verdict", "value", "confirm", "rollback"),
    [
        (Verdict.PASS, 1, 200, 409), (Verdict.FAIL, -1, 409, 200), (Verdict.INCONCLUSIVE, 0, 409, 409),
        (Verdict.ERROR, 0, 409, 409),
    ],
)  # fmt: skip
async def test_verdict_has_a_value_for_argo_and_a_status_for_flagger(
    verdict: Verdict, value: int, confirm: int, rollback: int
) -> None:
    served = await started()
    judged(served, verdict)
    path = "/admin/rollouts/forecaster/verdict"
    body = (await served.get(path)).json()
    assert (body["verdict"], body["value"], body["metrics"]) == (verdict, value, {"error_rate": verdict})
    for form, status in (("value", 200), ("confirm", confirm), ("rollback", rollback)):
        assert (await served.post(f"{path}?form={form}", json={"name": "podinfo"})).status_code == status


async def test_verdict_before_anything_was_judged_and_after_an_abort() -> None:
    served = await started()
    path = "/admin/rollouts/forecaster/verdict"
    assert (await served.get(path)).json()["verdict"] == "inconclusive"
    judged(served, Verdict.PASS)
    await served.post("/admin/rollouts/forecaster/abort")
    assert ((await served.get(path)).json()["value"], (await served.post(f"{path}?form=rollback")).status_code) == (
        -1, 200,
    )  # fmt: skip


@pytest.mark.parametrize("route", ["/admin/reload", "/models/reload", "/admin/reload-model"])
async def test_reload_with_a_plan_starts_a_rollout_and_says_where_to_look(route: str) -> None:
    served = Administered("v1", "v2")
    served.plane.plans["forecaster"] = RolloutPlan.model_validate(PLAN)
    answer = await served.post(route)
    assert (answer.status_code, answer.headers["location"]) == (202, "/admin/rollouts/forecaster")
    assert answer.json()["rollout_url"] == "/admin/rollouts/forecaster"
    assert (await served.get("/models/current")).json()["version"] == "v1"


@pytest.mark.parametrize(
    "route", ["/admin/reload", "/models/reload", "/admin/reload-model", "/reload?family=forecaster"]
)
async def test_immediate_reload_does_not_go_by_the_plan(route: str) -> None:
    served = Administered("v1", "v2")
    served.plane.plans["forecaster"] = RolloutPlan.model_validate(PLAN)
    answer = await served.post(route, params={"strategy": "immediate", "family": "forecaster"})
    assert answer.status_code == 200, answer.text
    assert (await served.get("/models/current")).json()["version"] == "v2"


async def test_reload_takes_no_other_strategy() -> None:
    assert (await Administered("v1", "v2").post("/models/reload?strategy=canary")).status_code == 422
