"""Splits through HTTP: what is read of a request, what its answer says, and what is counted."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.domain.errors import UnknownVersionError
from serve_app.domain.evidence import Measurement
from serve_app.domain.traffic import KeySource, Segment, Shadow, Targeting
from serve_app.usecases.mirror_requests import MirrorLimits
from tests.fakes.predict_client import Model, row_sums
from tests.splits import canary_split
from tests.unit.ingress.serving import FAMILY, Server

pytestmark = pytest.mark.usefixtures("quiet")

GOOD = b'{"instances":[[1,2,3]]}'
BY_ENTITY = Targeting(source=KeySource.FIELD, name="entity")
BY_COOKIE = Targeting(source=KeySource.COOKIE, name="session")


def broken(rows: NDArray[np.float64]) -> NDArray[Any]:
    raise ValueError("broken")


def split_server(weight: int, *, canary: Model = row_sums, **facts: Any) -> Server:
    server = Server({"v1": row_sums, "v2": canary}, mirrored=MirrorLimits(max_lag_s=10.0))
    server.route("v1", generation=2, split=canary_split(weight, **facts))
    return server


def measured(server: Server) -> dict[str, Measurement]:
    return server.router.evidence("g1").families.get(FAMILY, {}).get("salt-1", {})


def named(entity: str) -> bytes:
    return b'{"entity":"%s","instances":[[1,2,3]]}' % entity.encode()


async def test_answer_names_its_variant_and_the_reason() -> None:
    answer = await split_server(10_000).post(GOOD, headers={"X-User": "ann"})
    told = {name: answer.headers[f"x-{name}"] for name in ("model-variant", "model-version", "route-reason")}
    assert told == {"model-variant": "canary", "model-version": "v2", "route-reason": "hash"}
    assert answer.headers["x-generation"] == "2"
    assert "set-cookie" not in answer.headers


async def test_key_in_a_header_goes_to_one_variant_for_ever() -> None:
    server = split_server(5000)
    for key in ("ann", "bob", "cat", "dan"):
        answers = [await server.post(GOOD, headers={"x-uSER": key}) for _ in range(3)]
        assert len({answer.headers["x-model-variant"] for answer in answers}) == 1
        assert {answer.headers["x-route-reason"] for answer in answers} == {"hash"}


async def test_without_a_key_chance_decides() -> None:
    assert (await split_server(5000).post(GOOD)).headers["x-route-reason"] == "weight"


async def test_key_in_the_body_is_that_of_the_header() -> None:
    by_header, by_entity = split_server(5000), split_server(5000, targeting=BY_ENTITY)
    for i in range(20):
        first = await by_header.post(GOOD, headers={"x-user": f"node-{i}"})
        second = await by_entity.post(named(f"node-{i}"))
        assert first.headers["x-model-variant"] == second.headers["x-model-variant"]
        assert second.headers["x-route-reason"] == "hash"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"entity":null,"instances":[[1,2,3]]}', 200),
        (b'{"entity":"","instances":[[1,2,3]]}', 200),
        (b'{"entity":7,"instances":[[1,2,3]]}', 422),
        (b'{"entity":"a","instances":', 400),
        (b'["entity"]', 422),
        (b'{"entity":"\\ud800","instances":[[1,2,3]]}', 400),
    ],
)
async def test_body_that_has_no_key_is_answered_as_ever(body: bytes, status: int) -> None:
    answer = await split_server(10_000, targeting=BY_ENTITY).post(body)
    assert answer.status_code == status
    assert answer.headers["x-route-reason"] == "weight"


async def test_segment_goes_by_the_entity_of_the_body() -> None:
    server = split_server(0, segments=(Segment(variant="canary", entities=("node-7",)),))
    answers = [await server.post(named(entity)) for entity in ("node-7", "node-8")]
    told = [(answer.headers["x-model-variant"], answer.headers["x-route-reason"]) for answer in answers]
    assert told == [("canary", "segment"), ("stable", "weight")]


async def test_drawn_client_gets_a_cookie_and_stays_with_it() -> None:
    server = split_server(5000, targeting=BY_COOKIE)
    variants = set()
    for _ in range(30):
        drawn = await server.post(GOOD)
        value, *attributes = drawn.headers["set-cookie"].split("; ")
        assert value.startswith("serve_app_forecaster=")
        assert attributes == ["Path=/", "HttpOnly", "SameSite=Lax"]
        again = await server.post(GOOD, headers={"cookie": f"a=b; {value}"})
        assert again.headers["x-model-variant"] == drawn.headers["x-model-variant"]
        assert again.headers["x-route-reason"] == "cookie"
        assert "set-cookie" not in again.headers
        variants.add(again.headers["x-model-variant"])
    assert variants == {"stable", "canary"}
    assert sum(measurement.assigned for measurement in measured(server).values()) == 30


@pytest.mark.parametrize(
    "cookie", ["serve_app_forecaster=1.other", "serve_app_forecaster=x", "=", "serve_app_forecaster"]
)
async def test_cookie_of_another_experiment_is_drawn_anew(cookie: str) -> None:
    answer = await split_server(5000, targeting=BY_COOKIE).post(GOOD, headers={"cookie": cookie})
    assert answer.headers["x-route-reason"] == "weight"
    assert ".salt-1;" in answer.headers["set-cookie"]


async def test_clients_own_cookie_may_be_the_key() -> None:
    answer = await split_server(5000, targeting=BY_COOKIE).post(GOOD, headers={"cookie": "session=ann"})
    assert answer.headers["x-route-reason"] == "hash"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("cookies", "reason"),
    [
        ("xsession=ann", "weight"), ("a=session=1", "weight"), ("session=", "weight"),
        ("xsession=ann;session=bob", "hash"),
        ('a="b"; session=ann ; session=bob', "hash"), ("session=ann; serve_app_forecaster=1.salt-1", "cookie"),
    ],
)  # fmt: skip
async def test_cookies_are_told_apart_by_their_whole_names(cookies: str, reason: str) -> None:
    answer = await split_server(5000, targeting=BY_COOKIE).post(GOOD, headers={"cookie": cookies})
    assert answer.headers["x-route-reason"] == reason


async def test_cookie_of_ours_that_is_named_as_the_key_is_no_key() -> None:
    ours = Targeting(source=KeySource.COOKIE, name="serve_app_forecaster")
    stale = {"cookie": "serve_app_forecaster=1.other"}
    answer = await split_server(5000, targeting=ours).post(GOOD, headers=stale)
    assert answer.headers["x-route-reason"] == "weight"
    assert "set-cookie" in answer.headers


async def test_only_so_much_of_a_key_tells_it_from_others() -> None:
    server = split_server(5000)
    for end in ("a", "b", "c", "d", "e", "f", "g", "h"):
        await server.post(GOOD, headers={"x-user": "x" * 256 + end})
    assert server.router.evidence("g1").exposed_entities[FAMILY]["salt-1"] <= 1
    assert sum(one.assigned for one in measured(server).values()) == 1


async def test_forced_version_goes_before_the_split() -> None:
    answer = await split_server(10_000).post(GOOD, headers={"x-model-version": "v1", "x-user": "ann"})
    assert (answer.headers["x-model-version"], answer.headers["x-route-reason"]) == ("v1", "forced")


async def test_evidence_adds_up_to_the_requests_that_were_sent() -> None:
    server = split_server(3000, canary=broken)
    answers = [await server.post(GOOD, headers={"x-user": f"user-{i % 40}"}) for i in range(80)]
    answers += [await server.post(GOOD) for _ in range(40)]
    by_variant = Counter((answer.headers["x-model-variant"], answer.status_code) for answer in answers)
    assert set(by_variant) == {("stable", 200), ("canary", 500)}
    found = measured(server)
    for variant, status in by_variant:
        one = found[variant]
        assert one.requests == by_variant[variant, status] == one.latency.total == one.latency_s.count
        assert one.errors == (one.requests if status == 500 else 0)
    assert sum(one.assigned for one in found.values()) == 80  # 40 keys, and 40 requests without


async def test_bad_requests_are_nobodys_errors() -> None:
    server = split_server(10_000, canary=broken)
    for body in (b"", b"[]", b'{"instances":[[1]]}', b'{"instances":[[1e300,0,0]]}'):
        assert (await server.post(body)).status_code in (400, 422)
    assert measured(server)["canary"].requests == 0


async def test_canary_that_is_let_go_of_amid_a_request_is_replaced_and_not_counted() -> None:
    def gone(rows: NDArray[np.float64]) -> NDArray[Any]:
        raise UnknownVersionError(FAMILY, "v2", ["v1"])

    server = split_server(10_000, canary=gone)
    answer = await server.post(GOOD, headers={"x-user": "ann"})
    assert (answer.status_code, answer.headers["x-model-version"]) == (200, "v1")
    assert answer.headers["x-route-reason"] == "fallback"
    assert measured(server)["canary"].requests == 0


async def test_after_the_split_has_gone_answers_are_as_before_it() -> None:
    server = split_server(10_000)
    server.route("v1", generation=3)
    answer = await server.post(GOOD, headers={"x-user": "ann", "cookie": "serve_app_forecaster=1.salt-1"})
    assert (answer.headers["x-model-variant"], answer.headers["x-route-reason"]) == ("stable", "default")


async def test_family_without_a_split_is_not_touched_by_that_of_another() -> None:
    server = split_server(10_000)
    assert (await server.post(GOOD, path="/predict/iris")).status_code == 503
    assert (await server.post(GOOD, path="/predict/none")).status_code == 404
    assert set(server.router.evidence("g1").exposures) == {FAMILY}


async def test_rows_of_mlflow_clients_are_split_as_well() -> None:
    answer = await split_server(10_000).post(b'{"inputs":[[1,2,3]]}', path="/invocations", headers={"x-user": "ann"})
    assert (answer.status_code, answer.headers["x-model-variant"]) == (200, "canary")


async def test_shadow_gets_copies_of_answers_and_never_answers() -> None:
    server = split_server(0, canary=lambda rows: row_sums(rows) + 1, shadow=Shadow(version="v2"))
    for i in range(10):
        answer = await server.post(GOOD, headers={"x-user": f"user-{i}"})
        assert answer.json()["predictions"] == [6.0]
        await server.mirror.settled()
    found = measured(server)
    assert (found["stable"].requests, found["shadow"].requests, found["shadow"].disagreed) == (10, 10, 10)


async def test_shadow_gets_no_copies_of_what_the_canary_answers() -> None:
    server = split_server(10_000, shadow=Shadow(version="v2"))
    await server.post(GOOD, headers={"x-user": "ann"})
    await server.mirror.settled()
    assert measured(server)["shadow"].requests == 0


async def test_shadow_gets_only_its_sample() -> None:
    server = split_server(0, shadow=Shadow(version="v2", sample=0))
    for i in range(10):
        await server.post(GOOD, headers={"x-user": f"user-{i}"})
    await server.mirror.settled()
    assert measured(server)["shadow"].requests == 0
