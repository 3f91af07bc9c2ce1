import math

import pytest
from pydantic import ValidationError

from serve_app.domain.rollout_plan import RolloutPlan, Step
from serve_app.domain.validation import problems_of

STEPS = [{"weight": 1, "hold_s": 60}, {"weight": 50, "hold_s": 60}]
SHADOW = {"hold_s": 60, "sample": 10}
SEGMENT = {"entities": ["edge-*"], "hold_s": 60}


@pytest.mark.parametrize(
    "document",
    [
        {"strategy": "immediate", "watch_s": 600},
        {"strategy": "canary", "steps": STEPS},
        {"strategy": "canary", "steps": STEPS, "segment_first": SEGMENT, "shadow_first": SHADOW, "deadline_s": 241},
        {"strategy": "ab", "steps": [{"weight": 50}]},
        {"strategy": "ab", "steps": [{"weight": 33.33}], "shadow_first": SHADOW, "pool": "gpu", "stable_pool": "cpu"},
        {"strategy": "shadow", "shadow_first": SHADOW},
        {"strategy": "canary", "steps": STEPS, "analysis": None},
    ],
)
def test_plan_that_can_be_carried_out_is_taken(document: dict[str, object]) -> None:
    plan = RolloutPlan.model_validate(document)
    assert RolloutPlan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"strategy": "canary"}, "steps: expected at least one with the strategy canary, found none"),
        ({"strategy": "canary", "steps": STEPS[::-1]}, "steps: expected weights that grow, found 50, 1"),
        ({"strategy": "canary", "steps": [STEPS[0]] * 2}, "steps: expected weights that grow, found 1, 1"),
        ({"strategy": "ab", "steps": STEPS},
         "steps: expected exactly one, without hold_s, with the strategy ab: it lasts until deadline_s"),
        ({"strategy": "ab", "steps": STEPS[:1]},
         "steps: expected exactly one, without hold_s, with the strategy ab: it lasts until deadline_s"),
        ({"strategy": "immediate", "steps": STEPS}, "steps: expected none with the strategy immediate, found 2"),
        ({"strategy": "shadow", "shadow_first": SHADOW, "steps": STEPS},
         "steps: expected none with the strategy shadow, found 2"),
        ({"strategy": "shadow"}, "shadow_first: expected with the strategy shadow, found none"),
        ({"strategy": "immediate", "shadow_first": SHADOW},
         "shadow_first: expected not with the strategy immediate"),
        ({"strategy": "ab", "steps": [{"weight": 50}], "segment_first": SEGMENT},
         "segment_first: expected only with the strategy canary, found ab"),
        ({"strategy": "canary", "steps": STEPS, "deadline_s": 120},
         "deadline_s: expected more than the 120 s that all is held, found 120"),
        ({"strategy": "canary", "steps": [{"weight": 0.005}]},
         "steps.0.weight: expected a percentage from 0 to 100 in steps of 0.01, found 0.005"),
        ({"strategy": "shadow", "shadow_first": {"hold_s": 1, "sample": 0.001}},
         "shadow_first.sample: expected a percentage from 0 to 100 in steps of 0.01, found 0.001"),
        ({"strategy": "canary", "steps": [{"weight": 0}]}, "steps.0.weight: expected greater than 0, found 0 (int)"),
    ],
)  # fmt: skip
def test_plan_that_cannot_be_carried_out_is_refused_in_one_sentence(document: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RolloutPlan.model_validate(document)
    assert problems_of(caught.value, RolloutPlan) == (problem,)


@pytest.mark.parametrize("hold_s", [math.inf, math.nan, -1.0])
def test_time_without_end_is_refused(hold_s: float) -> None:
    with pytest.raises(ValidationError):
        Step(weight=1, hold_s=hold_s)


def test_weight_is_a_number_of_buckets() -> None:
    assert [Step(weight=weight).buckets for weight in (0.01, 12.5, 100)] == [1, 1_250, 10_000]
