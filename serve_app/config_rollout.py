"""Plans of rollouts: what one must agree with in the family that it is for, and the `user_config` of the Reconciler.

    deployments:
      - name: reconciler
        user_config:
          rollouts:
            forecaster: {plan: {strategy: canary, steps: [{weight: 5, hold_s: 60}]}}

A deploy of another plan changes what the *next* rollout goes by and restarts nothing. `plan: null` lets every change be
at once, `paused: true` lets nothing new begin and holds what is under way. A family that is not named, or is named
without `plan`, has the plan of `families.<name>.rollout`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from serve_app.config_part import Name, Part
from serve_app.domain.analysis_plan import Metric, MetricKind
from serve_app.domain.errors import ConfigError, nearest
from serve_app.domain.labels import LossKind
from serve_app.domain.residency import ResidencyPolicy
from serve_app.domain.rollout_plan import RolloutPlan, Strategy
from serve_app.domain.traffic import ENTITY_FIELD, KeySource, Targeting
from serve_app.domain.validation import problems_of

_HEADER_OR_COOKIE: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token of RFC 9110 and RFC 6265: nothing else can stand as the name of a header or a cookie."""
_DEFAULT_LOSSES: Final = (LossKind.ABSOLUTE_ERROR.value, LossKind.ZERO_ONE.value)


@dataclass(frozen=True, slots=True)
class RolledOut:
    """What a family offers to plans.

    Attributes:
        pools: Names of its pools.
        policy: Whether two versions may be loaded at a time.
        losses: What labels are turned into; empty: by the types of the outputs; None: the family takes no labels.
        has_windows: Whether its forecasts are made from windows, in one pass for everybody who asks.
    """

    pools: tuple[str, ...]
    policy: ResidencyPolicy = ResidencyPolicy.AVAILABILITY_PRESERVING
    losses: tuple[str, ...] | None = None
    has_windows: bool = False


def plan_problems(plan: RolloutPlan, family: RolledOut) -> tuple[str, ...]:
    """Say in one sentence each why a plan cannot come to an end in a family, beginning with the key that is wrong."""
    return (*_family_problems(plan, family), *_reach_problems(plan), *_metric_problems(plan, family))


class FamilyRollouts(Part):
    """What a deploy says of the rollouts of one family."""

    plan: Annotated[
        RolloutPlan | None, Field(description="of the next rollout; null: every change at once; absent: the configured")
    ] = None
    paused: Annotated[bool, Field(description="nothing new begins by itself, and what is under way waits")] = False

    @property
    def has_plan(self) -> bool:
        """True when a plan is said, be it none."""
        return "plan" in self.model_fields_set


class ReconcilerUserConfig(Part):
    """The `user_config` of the Reconciler: what may change while it runs."""

    rollouts: dict[Name, FamilyRollouts] = Field(default_factory=dict, description="by family")

    @classmethod
    def parse(cls, document: Any, families: Mapping[str, RolledOut]) -> "ReconcilerUserConfig":
        """Read a document; None gives the defaults.

        Raises:
            ConfigError: With one sentence for every wrong key or value, and for every plan that does not fit.
        """
        try:
            config = cls.model_validate({} if document is None else document)
        except ValidationError as error:
            raise ConfigError(problems_of(error, cls)) from error
        problems = []
        for name, said in config.rollouts.items():
            if name not in families:
                problems.append(f"rollouts.{name}: no such family{nearest(name, families)}")
            elif said.plan is not None:
                found = plan_problems(said.plan, families[name])
                problems += [f"rollouts.{name}.plan.{problem}" for problem in found]
        if problems:
            raise ConfigError(problems)
        return config


def _family_problems(plan: RolloutPlan, family: RolledOut) -> Iterator[str]:
    """Look at the pools, at the room for two versions, and at whether the family's requests can be split at all."""
    for name, pool in (("pool", plan.pool), ("stable_pool", plan.stable_pool)):
        if pool is not None and pool not in family.pools:
            yield f"{name}: expected one of {', '.join(family.pools)}, found {pool!r}{nearest(pool, family.pools)}"
    if plan.strategy is Strategy.IMMEDIATE:
        return
    found = f"found {plan.strategy.value}"
    if family.policy is ResidencyPolicy.RESOURCE_PRESERVING:
        yield (
            "strategy: expected immediate, or residency.policy availability_preserving, for both versions answer at "
            f"the same time; {found}"
        )
    if family.has_windows:
        yield f"strategy: expected immediate, for one pass over the windows makes the forecasts of all; {found}"


def _reach_problems(plan: RolloutPlan) -> Iterator[str]:
    """Look at whether both sides can get what they are judged by."""
    if plan.targeting is not None and (problem := _targeting_problem(plan.targeting)) is not None:
        yield f"targeting.name: {problem}"
    if plan.analysis is None:
        return
    weights = [step.weight for step in plan.steps]
    if weights and weights[0] == 100:
        yield "steps.0.weight: expected less than 100, so that the stable version answers some to compare with"
    left = 100 - (weights[-1] if weights else 0)
    if plan.is_watched and plan.holdback > left:
        yield (
            f"holdback: expected at most the {left:g} % that the last step leaves to the former version, found "
            f"{plan.holdback:g}; 0 watches without a comparison"
        )
    cap = plan.max_exposed_requests
    most = max((one for one in plan.analysis.metrics if _is_counted(one)), key=lambda one: one.needed, default=None)
    if plan.steps and cap is not None and most is not None and cap < most.needed:
        yield f"max_exposed_requests: expected at least the {most.needed} that {most.name} needs, found {cap}"


def _is_counted(metric: Metric) -> bool:
    """True for what every answer counts once in: a label may speak of many rows, a copy exposes nobody."""
    return metric.kind not in (MetricKind.LOSS, MetricKind.DISAGREEMENT)


def _targeting_problem(targeting: Targeting) -> str | None:
    match targeting.source:
        case KeySource.FIELD if targeting.name != ENTITY_FIELD:
            return f"expected {ENTITY_FIELD!r}, the one field that is read of a body, found {targeting.name!r}"
        case KeySource.HEADER | KeySource.COOKIE if not _HEADER_OR_COOKIE.fullmatch(targeting.name):
            return f"expected what can be the name of a {targeting.source.value}, found {targeting.name!r}"
        case _:
            return None


def _metric_problems(plan: RolloutPlan, family: RolledOut) -> Iterator[str]:
    """Look at whether each metric will ever be measured."""
    for place, metric in enumerate(plan.analysis.metrics if plan.analysis is not None else ()):
        problem = None
        if metric.kind is MetricKind.DISAGREEMENT and plan.shadow_first is None:
            problem = "expected shadow_first with disagreement, for nobody else answers the same requests twice"
        elif metric.loss is not None:
            problem = _loss_problem(metric.loss, plan, family)
        if problem is not None:
            yield f"analysis.metrics.{place}: {problem}"


def _loss_problem(loss: str, plan: RolloutPlan, family: RolledOut) -> str | None:
    if family.losses is None:
        return f"expected labels to be configured for the family, which the loss {loss!r} is made of, found none"
    if plan.strategy is Strategy.SHADOW:
        return "expected no loss with the strategy shadow: nobody gets its answers, so no label speaks of them"
    if family.losses and loss not in family.losses:
        return f"loss: expected one of {', '.join(family.losses)}, found {loss!r}{nearest(loss, family.losses)}"
    if not family.losses and loss.partition(".")[0] not in _DEFAULT_LOSSES:
        told = " or ".join(_DEFAULT_LOSSES)
        return (
            f"loss: expected {told}, of several outputs with .<output>, found {loss!r}{nearest(loss, _DEFAULT_LOSSES)}"
        )
    return None
