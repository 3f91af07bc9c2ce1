"""`GET /admin/route`: which variant a request would get, and why; nothing is predicted, and nothing counted."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from serve_app.domain.access import Scope
from serve_app.domain.traffic import N_BUCKETS, RequestFacts
from serve_app.ingress.admin import Admin, FamilyQuery, admin_route, answer, family_named
from serve_app.usecases.route_request import RequestRouter

_Fact = Annotated[str | None, Query(min_length=1, max_length=256)]


class ExplainedVariant(BaseModel):
    """A variant of the split; `weight_percent` is its share of what chance assigns."""

    name: str
    version: str
    pool: str | None
    weight_percent: float


class RouteExplanation(BaseModel):
    """Body of `GET /admin/route`: the headers that an answer would have, and what decided.

    `bucket` is what the key was hashed to, of 10,000; None where no bucket decided. `chosen_variant` differs from
    `variant` where its version is not loaded. Without a split there is no salt, and there are no variants.
    """

    family: str
    variant: str
    version: str
    pool: str
    reason: str
    generation: int
    chosen_variant: str
    chosen_reason: str
    bucket: int | None
    salt: str | None
    targeting: str | None
    variants: list[ExplainedVariant]


def route_explanation_router(router: RequestRouter, admin: Admin) -> APIRouter:
    """Build the route."""
    api = APIRouter(tags=["traffic"], route_class=admin_route())

    @api.get(
        "/admin/route", summary="Which variant a request would get, and why", response_model=RouteExplanation,
        responses={401: {}, 403: {}, 404: {}, 503: {}},
        dependencies=[Depends(admin.guard.caller_with(Scope.READ))],
    )  # fmt: skip
    async def route(
        family: FamilyQuery = "",
        key: _Fact = None,
        entity: _Fact = None,
        cookie: _Fact = None,
        version: Annotated[str | None, Query(min_length=1, max_length=128, description="the forced version")] = None,
    ) -> Response:
        name = family_named(router, family)
        return answer(explained(router, name, RequestFacts(key, entity, cookie, version)))

    return api


def explained(router: RequestRouter, family: str, facts: RequestFacts) -> RouteExplanation:
    """Explain where a request with these facts goes. Without a key chance decides, anew every time.

    Raises:
        As `RequestRouter.target`.
    """
    target, assignment = router.assign(family, facts, counts=False)
    route = router.splits.get(family)
    split = None if route is None or assignment is None else route.split
    targeting = None if split is None else split.targeting
    return RouteExplanation(
        family=family,
        variant=target.variant,
        version=target.version,
        pool=target.pool,
        reason=target.reason,
        generation=target.generation,
        chosen_variant=target.variant if assignment is None else assignment.variant.name,
        chosen_reason=target.reason if assignment is None else assignment.reason.value,
        bucket=None if assignment is None else assignment.bucket,
        salt=None if split is None else split.salt,
        targeting=None if targeting is None else f"{targeting.source.value} {targeting.name}",
        variants=[
            ExplainedVariant(
                name=variant.name,
                version=variant.version,
                pool=variant.pool,
                weight_percent=variant.weight * 100 / N_BUCKETS,
            )
            for variant in (split.variants if split is not None else ())
        ],
    )
