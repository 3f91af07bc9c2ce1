"""The section on reports in `docs/rollouts.md`: its plan is one, its bounds are the code's, its links lead to pages."""

import re

import yaml

from serve_app.domain.analysis_plan import MIN_COUNTS, MIN_VALUES
from serve_app.domain.looks import MAX_LOOKS
from serve_app.domain.rollout_plan import RolloutPlan, Strategy
from serve_app.domain.traffic import MAX_GROUPS
from tests.pages import DOCS, block, page

PAGE = "rollouts.md"


def section() -> str:
    return page(PAGE).split("\n## Experiments and reports\n")[1].split("\n## ")[0]


def test_the_plan_is_one() -> None:
    plan = RolloutPlan.model_validate(yaml.safe_load(block(PAGE, "yaml", "groups:")))
    assert (plan.strategy, [group.name for group in plan.groups]) == (Strategy.AB, ["edge", "lab"])


def test_the_bounds_are_those_of_the_code() -> None:
    assert f"up to {MAX_LOOKS} looks" in section()
    assert f"fewer than {MIN_COUNTS}\n  requests of a side, or {MIN_VALUES} for latencies" in section()
    assert MAX_GROUPS == 8
    assert "eight groups" in section()


def test_the_links_lead_somewhere() -> None:
    for name in re.findall(r"\]\(([\w.-]+)\)", section()):
        assert (DOCS / name).is_file(), name
