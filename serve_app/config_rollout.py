"""`families.<name>.rollout`: what a plan must agree with in the family that it is for."""

from collections.abc import Collection

from serve_app.domain.residency import ResidencyPolicy
from serve_app.domain.rollout_plan import RolloutPlan, Strategy


def check_rollout(plan: RolloutPlan, *, pools: Collection[str], policy: ResidencyPolicy) -> None:
    """See that the family has the pools that the plan names, and room for two versions at a time.

    Raises:
        ValueError: It has not.
    """
    for name, pool in (("pool", plan.pool), ("stable_pool", plan.stable_pool)):
        if pool is not None and pool not in pools:
            raise ValueError(f"rollout.{name}: expected one of {', '.join(pools)}, found {pool!r}")
    if policy is ResidencyPolicy.RESOURCE_PRESERVING and plan.strategy is not Strategy.IMMEDIATE:
        raise ValueError(
            "rollout: expected residency.policy availability_preserving, for both versions answer at the same time"
        )
