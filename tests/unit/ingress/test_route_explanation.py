import pytest

from serve_app.domain.traffic import Segment
from tests.splits import canary_split
from tests.unit.ingress.administered import READ, Administered
from tests.unit.ingress.serving import FAMILY

READING = {"Authorization": f"Bearer {READ}"}


async def explained(served: Administered, query: str) -> dict[str, object]:
    answer = await served.get(f"/admin/route?{query}", headers=READING)
    assert answer.status_code == 200, answer.text
    body: dict[str, object] = answer.json()
    return body


def with_split() -> Administered:
    served = Administered("v1", "v2")
    segments = (Segment(variant="canary", entities=("node-7",)),)
    served.server.route("v1", generation=9, split=canary_split(2550, segments=segments))
    return served


async def test_family_without_a_split_goes_by_its_route() -> None:
    served = Administered("v1")
    served.server.route("v1", generation=3)
    assert await explained(served, "key=ann") == {
        "family": FAMILY, "variant": "stable", "version": "v1", "pool": "cpu", "reason": "default", "generation": 3,
        "chosen_variant": "stable", "chosen_reason": "default", "bucket": None, "salt": None, "targeting": None,
        "variants": [],
    }  # fmt: skip


async def test_explanation_says_what_a_request_would_get() -> None:
    served = with_split()
    for i in range(20):
        found = await explained(served, f"family={FAMILY}&key=user-{i}")
        answer = await served.server.post(b'{"instances":[[1,2,3]]}', headers={"x-user": f"user-{i}"})
        assert (found["variant"], found["reason"]) == (answer.headers["x-model-variant"], "hash")
        assert (found["version"], str(found["generation"])) == (
            answer.headers["x-model-version"], answer.headers["x-generation"],
        )  # fmt: skip
    assert (found["salt"], found["targeting"]) == ("salt-1", "header X-User")
    assert found["variants"] == [
        {"name": "stable", "version": "v1", "pool": None, "weight_percent": 74.5},
        {"name": "canary", "version": "v2", "pool": None, "weight_percent": 25.5},
    ]


@pytest.mark.parametrize(
    ("query", "variant", "reason"),
    [
        ("key=node-7", "canary", "segment"),
        ("key=ann&entity=node-7", "canary", "segment"),
        ("cookie=0.salt-1", "canary", "cookie"),
        ("key=ann&cookie=9999.salt-1", "stable", "cookie"),
        ("key=node-7&version=v1", "stable", "forced"),
    ],
)
async def test_precedence_is_that_of_requests(query: str, variant: str, reason: str) -> None:
    found = await explained(with_split(), query)
    assert (found["chosen_variant"], found["variant"], found["reason"]) == (variant, variant, reason)


async def test_variant_that_is_not_loaded_is_told() -> None:
    served = Administered("v1")
    served.server.route("v1", generation=3, split=canary_split(10_000))
    found = await explained(served, "key=ann")
    assert (found["chosen_variant"], found["chosen_reason"]) == ("canary", "hash")
    assert (found["variant"], found["version"], found["reason"]) == ("stable", "v1", "fallback")


async def test_explaining_counts_nothing() -> None:
    served = with_split()
    await explained(served, "key=ann")
    told = served.server.router.evidence("g1")
    assert all(one.assigned == 0 for one in told.families[FAMILY]["salt-1"].values())


async def test_what_cannot_be_routed_is_told() -> None:
    served = with_split()
    assert (await served.get("/admin/route?family=none", headers=READING)).status_code == 404
    assert (await served.get("/admin/route?version=v9", headers=READING)).status_code == 404
    assert (await served.get("/admin/route", headers={})).status_code == 401
