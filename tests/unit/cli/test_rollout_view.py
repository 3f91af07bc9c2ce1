from typing import Any

import pytest

from serve_app.cli.rollout_view import origin_lines
from serve_app.domain.rollout import start
from serve_app.domain.rollout_plan import NextPlan, PlanOrigin, RolloutPlan
from serve_app.domain.rollout_record import RolloutReport
from serve_app.domain.version_ref import VersionRef

PLAN = RolloutPlan.model_validate({"strategy": "canary", "steps": [{"weight": 5, "hold_s": 60}]})
OTHER = RolloutPlan.model_validate({"strategy": "ab", "steps": [{"weight": 50}], "deadline_s": 3600})


def told(of: PlanOrigin, /, **following: Any) -> list[str]:
    old, new = VersionRef(version="v1", digest="d1"), VersionRef(version="v2", digest="d2")
    state = start(
        PLAN, rollout_id="r", family="f", candidate=new, stable=old, actor="ann", reason="", now_s=0.0,
        plan_from=of,
    )  # fmt: skip
    return origin_lines(RolloutReport(family="f", state=state, next_plan=NextPlan(**following) if following else None))


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (PlanOrigin.CONFIGURATION, "plan from the configuration"),
        (PlanOrigin.USER_CONFIG, "plan from user_config"),
        (PlanOrigin.CALL, "plan from a call"),
    ],
)
def test_origin_of_the_plan_is_told(origin: PlanOrigin, line: str) -> None:
    assert told(origin) == [line]
    assert told(origin, plan=PLAN) == [line]


def test_what_the_next_rollout_goes_by_is_told_where_it_is_another_plan() -> None:
    assert told(PlanOrigin.CONFIGURATION, plan=OTHER, origin=PlanOrigin.USER_CONFIG)[1:] == [
        "next rollout: experiment: 50 % for 3600 s, from user_config"
    ]
    assert told(PlanOrigin.USER_CONFIG, plan=None, origin=PlanOrigin.USER_CONFIG)[1:] == [
        "next rollout: all traffic at once, from user_config"
    ]
    assert told(PlanOrigin.CALL, plan=OTHER) == ["plan from a call"]


def test_pause_and_problem_of_a_deploy_are_told() -> None:
    lines = told(PlanOrigin.USER_CONFIG, plan=PLAN, is_paused=True, problem="user_config is refused: stepz")
    assert lines[1:] == ["rollouts are paused in the user_config of the reconciler", "user_config is refused: stepz"]
