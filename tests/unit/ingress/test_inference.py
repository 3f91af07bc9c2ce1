"""`POST /predict/…` through the whole application."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.domain.errors import RefusedVersionError, UnavailableError, UnknownVersionError
from serve_app.domain.naming import NamingRule
from serve_app.domain.signature import Column, Signature
from serve_app.usecases.name_versions import NamingSettings
from tests.fakes.predict_client import row_sums
from tests.unit.ingress.serving import MAX_BODY_BYTES, MAX_ROWS, Server

pytestmark = pytest.mark.usefixtures("quiet")

GOOD = b'{"instances":[[1,2,3]]}'
POISON = -1.0


def refuses_poison(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    if (rows == POISON).any():
        raise ValueError("poison\nin the rows")
    return row_sums(rows)


def gone(rows: NDArray[np.float64]) -> NDArray[Any]:
    raise UnknownVersionError("forecaster", "v2", ["v1"])


def detail(answer: httpx.Response) -> str:
    """Return the message of an error, which is one sentence of bearable length."""
    assert set(answer.json()) == {"detail"}
    text: str = answer.json()["detail"]
    assert text
    assert "\n" not in text
    assert len(text) < 300
    return text


# -- good requests


@pytest.mark.parametrize(
    "body",
    [
        GOOD,
        b'{"instances":[1,2,3]}',
        b'{"instances":[{"load":3,"cpu":1,"ram":2}]}',
        b'{"instances":{"load":3,"cpu":1,"ram":2}}',
        b'{"features":[[1,2,3]]}',
        b'{"features":[1.0,2.0,3e0],"instances":null}',
        b' {"entity":"node-7", "instances":[[1,2,3]]}\n',
        b'{"instances":[[1,2,3]],"entity":null}',
    ],
    ids=str,
)
async def test_every_spelling_of_a_row_gets_the_same_answer(body: bytes) -> None:
    answer = await Server().post(body)
    assert answer.status_code == 200
    assert answer.json() == {"predictions": [6.0], "model_family": "forecaster", "model_version": "v1"}


async def test_several_outputs_are_named() -> None:
    def two(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([rows.sum(axis=1), rows.max(axis=1)], axis=1)

    answer = await Server({"v1": two}, outputs=("total", "top")).post(b'{"instances":[[1,2,3],[4,5,6]]}')
    assert answer.json()["predictions"] == [{"total": 6.0, "top": 3.0}, {"total": 15.0, "top": 6.0}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict/forecaster", b'{"instances": [[1, 2, 3]]}'),
        ("/predict/forecaster", b'{"instances": [{"server_key": 1, "window": [1]}]}'),
        ("/predict", b"no JSON at all"),
        ("/invocations", b'{"inputs": [[1, 2, 3]]}'),
    ],
)
async def test_rows_for_a_model_of_windows_are_refused_with_the_way_that_works(path: str, body: bytes) -> None:
    columns = (Column(name="server_key", dtype="int64"), Column(name="window", shape=(12, 2)))
    signature = Signature(inputs=columns, outputs=(Column(name="forecast", shape=(4, 2, 3)),))
    answer = await Server(signature=signature).post(body, path=path)
    assert answer.status_code == (400 if path == "/invocations" else 422)
    said = "family 'forecaster' takes windows, not rows: send them as 'windows' to POST /predict/forecaster"
    assert said in answer.text


async def test_labels_are_answered_as_strings() -> None:
    answer = await Server({"v1": lambda rows: np.array([["setosa"]] * len(rows))}).post(GOOD)
    assert answer.json()["predictions"] == ["setosa"]


@pytest.mark.parametrize("path", ["/predict", "/predict/", "/predict/forecaster", "/predict/forecaster/"])
async def test_path_without_a_family_is_the_default_family(path: str) -> None:
    assert (await Server().post(GOOD, path=path)).json()["model_family"] == "forecaster"


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json", "text/json",
     "application/x-www-form-urlencoded", ""],
)  # fmt: skip
async def test_json_and_untyped_bodies_are_read(content_type: str) -> None:
    assert (await Server().post(GOOD, headers={"content-type": content_type})).status_code == 200


async def test_body_in_many_pieces_is_put_together() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for i in range(len(GOOD)):
            yield GOOD[i : i + 1]

    async with Server().http() as client:
        answer = await client.post("/predict/", content=pieces(), headers={"content-type": "application/json"})
    assert answer.json()["predictions"] == [6.0]


async def test_requests_at_once_share_a_call_and_each_gets_its_own_rows() -> None:
    server = Server()
    bodies = [json.dumps({"instances": [[i, 0, 0]] * (i % 3 + 1)}).encode() for i in range(20)]
    answers = await asyncio.gather(*(server.post(body) for body in bodies))
    assert [answer.json()["predictions"] for answer in answers] == [[float(i)] * (i % 3 + 1) for i in range(20)]
    assert len(server.client.batches) < 20


async def test_answer_says_who_answered_and_why() -> None:
    answer = await Server().post(GOOD)
    shown = {name: answer.headers[name] for name in answer.headers if name.startswith("x-")}
    prediction_id = shown.pop("x-prediction-id")
    assert prediction_id
    assert shown.pop("x-request-id") == prediction_id
    assert shown == {
        "x-model-family": "forecaster", "x-model-version": "v1", "x-model-variant": "stable",
        "x-route-reason": "default", "x-generation": "1",
    }  # fmt: skip
    assert answer.headers.get_list("content-type") == ["application/json"]
    assert answer.headers["content-length"] == str(len(answer.content))


async def test_prediction_ids_differ() -> None:
    server = Server()
    ids = {(await server.post(GOOD)).headers["x-prediction-id"] for _ in range(5)}
    assert len(ids) == 5


def zoo() -> Server:
    """A server whose family may be asked for other models, of which `ant:2` can be loaded."""
    naming = {"forecaster": NamingSettings(NamingRule("own", other_models=True), wait_s=0.05)}
    server = Server({"v1": row_sums, "v2": lambda rows: row_sums(rows) * 10}, naming=naming)
    server.plane.offers = {("ant", "2"): "ant:2"}

    def load(_: str, version: str) -> None:
        server.models.setdefault(version, lambda rows: row_sums(rows) + 100)

    server.plane.on_demand = load
    return server


@pytest.mark.parametrize("path", ["/predict/forecaster", "/predict/", "/predict"])
async def test_version_in_the_query_answers(path: str) -> None:
    answer = await zoo().post(GOOD, path=f"{path}?version=v2")
    assert answer.json() == {"predictions": [60.0], "model_family": "forecaster", "model_version": "v2"}
    assert (answer.headers["x-model-version"], answer.headers["x-route-reason"]) == ("v2", "named")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict/forecaster?model=ant&version=2", GOOD),
        ("/invocations?family=forecaster&version=2&model=ant", b'{"inputs":[[1,2,3]]}'),
    ],
)
async def test_other_model_is_loaded_and_named_in_the_answer(path: str, body: bytes) -> None:
    server = zoo()
    for _ in range(2):
        answer = await server.post(body, path=path)
        assert answer.json()["predictions"] == [106.0]
        assert answer.headers["x-model-version"] == "ant:2"
    assert server.plane.demanded == [("ant", "2", False)]


async def test_version_that_was_let_go_of_meanwhile_is_demanded_once_more() -> None:
    server = zoo()
    path = "/predict/forecaster?model=ant&version=2"
    await server.post(GOOD, path=path)
    del server.models["ant:2"]  # the gateway has not heard of it
    assert (await server.post(GOOD, path=path)).json()["predictions"] == [106.0]
    server.models["ant:2"] = gone
    answer = await server.post(GOOD, path=path)
    assert answer.status_code == 503
    assert detail(answer) == "version 'ant:2' of 'forecaster' was let go of again: more are in use than fit"


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("model=bee&version=2", 404, "the registry has no bee 2"),
        ("version=v9", 404, "the registry has no None v9"),
        ("model=bad", 500, "version 'bad:1' is refused"),
        ("model=slow", 503, "loading"),
        ("version=..", 422, "'version': expected a version"),
        ("version=", 422, "'version': expected a version"),
        ("model=&version=v1", 422, "'model': expected the name of a registered model"),
        ("model=" + "x" * 300, 422, "'model': expected the name of a registered model"),
    ],
)
async def test_what_cannot_be_served_by_name_is_told(query: str, status: int, says: str) -> None:
    server = zoo()
    server.plane.offers |= {("bad", None): RefusedVersionError("version 'bad:1' is refused: it hangs")}
    server.plane.offers |= {("slow", None): UnavailableError("it is loading", retry_after_s=5)}
    answer = await server.post(GOOD, path=f"/predict/forecaster?{query}")
    assert answer.status_code == status
    assert says in detail(answer)
    assert ("retry-after" in answer.headers) == (status == 503)
    assert server.meter.seen == [("", "", "", status)]


async def test_version_is_named_in_one_place() -> None:
    answer = await zoo().post(GOOD, path="/predict/forecaster?version=v2", headers={"x-model-version": "v2"})
    assert (answer.status_code, detail(answer)) == (
        422,
        "expected model and version in the query or X-Model-Version, got both",
    )


async def test_header_loads_nothing() -> None:
    server = zoo()
    assert (await server.post(GOOD, headers={"x-model-version": "ant:2"})).status_code == 404
    assert server.plane.demanded == []


@pytest.mark.parametrize("query", ["family=iris", "x=1", "versions=2", "%ff=%ff&&&=", "a=" + "b" * 5000])
async def test_query_that_names_nothing_changes_nothing(query: str) -> None:
    answer = await zoo().post(GOOD, path=f"/predict/forecaster?{query}")
    assert answer.headers["x-route-reason"] == "default"


async def test_forced_version_answers_and_the_headers_say_so() -> None:
    server = Server({"v1": row_sums, "v2": lambda rows: row_sums(rows) * 10})
    answer = await server.post(GOOD, headers={"x-model-version": "v2"})
    assert answer.json() == {"predictions": [60.0], "model_family": "forecaster", "model_version": "v2"}
    assert (answer.headers["x-model-version"], answer.headers["x-route-reason"]) == ("v2", "forced")


# -- request ids


@pytest.mark.parametrize("name", ["X-Request-ID", "x-correlation-id"])
@pytest.mark.parametrize("body", [GOOD, b"bad"], ids=["good", "bad"])
async def test_request_id_is_echoed(name: str, body: bytes) -> None:
    answer = await Server().post(body, headers={name: "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"
    assert answer.headers["x-prediction-id"] != "abc-123"


async def test_correlation_id_goes_before_a_request_id_that_a_proxy_may_have_made() -> None:
    answer = await Server().post(GOOD, headers={"x-correlation-id": "client's", "x-request-id": "proxy's"})
    assert answer.headers["x-request-id"] == "client's"


async def asgi(
    server: Server, headers: list[tuple[bytes, bytes]], *bodies: bytes, path: str = "/predict/forecaster"
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Call the application as an HTTP server would, with headers that no client library lets through."""
    sent: list[Any] = []
    left = [{"type": "http.request", "body": body, "more_body": i < len(bodies) - 1} for i, body in enumerate(bodies)]

    async def receive() -> Any:
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode("utf-8", "replace"), "headers": headers,
        "query_string": b"", "http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    await server.api(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], sent[0]["headers"], sent[1]["body"]


@pytest.mark.parametrize(
    "value",
    [b"a\r\nset-cookie: x=1", b"a\nb", b"a\x00b", b"\xff\xfe", "ü".encode(), b"a b", b"a" * 129, b"", b"\t"],
    ids=str,
)
@pytest.mark.parametrize("name", [b"x-request-id", b"x-correlation-id"])
async def test_request_id_that_could_forge_a_header_is_replaced(name: bytes, value: bytes) -> None:
    status, headers, _ = await asgi(Server(), [(name, value)], GOOD)
    assert status == 200
    ids = dict(headers)
    assert ids[b"x-request-id"] == ids[b"x-prediction-id"]
    assert all(value not in shown for _, shown in headers) or not value


# -- bad requests


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "expected a JSON document, got an empty body"),
        (b" \n ", 400, "got an empty body"),
        (b'{"instances":[[1,2,3]]', 400, "expected a JSON document, got 22 bytes that are none"),
        (b"not json", 400, "expected a JSON document"),
        (b"\xff\xfe\x00", 400, "expected a JSON document"),
        (b'{"instances":[[1,2,"\\ud800"]]}', 400, "expected a JSON document"),
        (b'{"instances":[[1,2,NaN]]}', 400, "got one with NaN, which is no JSON number"),
        (b'{"instances":[[1,2,Infinity]]}', 400, "got one with Infinity, which is no JSON number"),
        (b'{"instances":[[1,2,-Infinity]]}', 400, "got one with Infinity, which is no JSON number"),
        (b'{"instances":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "expected a JSON document"),
        (b"[" * 100_000, 400, "expected a JSON document"),
        (b'{"a":' * 100_000, 400, "expected a JSON document"),
        (b"[[1,2,3]]", 422, "expected an object with 'instances', got a list of 1"),
        (b'"text"', 422, "expected an object with 'instances', got the string 'text'"),
        (b"null", 422, "expected an object with 'instances', got null"),
        (b"{}", 422, "expected 'instances', got neither it nor 'features'"),
        (b'{"entity":"a"}', 422, "expected 'instances', got neither it nor 'features'"),
        (b'{"instances":null}', 422, "expected 'instances', got neither it nor 'features'"),
        (b'{"instances":[[1,2,3]],"features":[[1,2,3]]}', 422, "expected one of 'instances' and 'features', got both"),
        (b'{"instance":[[1,2,3]]}', 422, "unknown key 'instance' (did you mean 'instances'?)"),
        (b'{"instances":[[1,2,3]],"entiti":"a"}', 422, "unknown key 'entiti' (did you mean 'entity'?)"),
        (b'{"instances":[[1,2,3]],"entity":7}', 422, "'entity': expected a string, got the number 7"),
        (b'{"instances":[]}', 422, "expected at least one row, got an empty list"),
        (b'{"instances":"rows"}', 422, "expected a list of rows, got the string 'rows'"),
        (b'{"instances":7}', 422, "expected a list of rows, got the number 7"),
        (b'{"instances":true}', 422, "expected a list of rows, got true"),
        (b'{"instances":[[1,2]]}', 422, "row 0: expected 3 values (cpu, ram, load), got 2"),
        (b'{"instances":[[1,2,3,4]]}', 422, "row 0: expected 3 values (cpu, ram, load), got 4"),
        (b'{"instances":[[1,2,3],[1,2,3],[]]}', 422, "row 2: expected 3 values (cpu, ram, load), got 0"),
        (b'{"instances":[[1,2,3],7]}', 422, "row 1: expected a list of 3 numbers or an object, got the number 7"),
        (b'{"instances":[[[1,2,3]]]}', 422, "row 0: expected 3 values (cpu, ram, load), got 1"),
        (b'{"instances":[{"cpu":1,"ram":2}]}', 422, "row 0: missing field load"),
        (b'{"instances":[{}]}', 422, "row 0: missing fields cpu, ram, load"),
        (b'{"instances":[{"cpu":1,"ram":2,"laod":3}]}', 422, "row 0: unknown field 'laod' (did you mean 'load'?)"),
        (b'{"instances":[{"cpu":1,"ram":2,"load":3,"x":4}]}', 422, "row 0: unknown field 'x'"),
        (b'{"instances":[[1,2,"3"]]}', 422, "row 0, field 'load': expected a number, got the string '3'"),
        (b'{"instances":[[1,true,3]]}', 422, "row 0, field 'ram': expected a number, got true"),
        (b'{"instances":[[null,2,3]]}', 422, "row 0, field 'cpu': expected a number, got null"),
        (b'{"instances":[[1,2,[3]]]}', 422, "row 0, field 'load': expected a number, got a list of 1"),
        (b'{"instances":[[1,2,{"a":3}]]}', 422, "row 0, field 'load': expected a number, got an object"),
        (b'{"instances":[[1,2,1e999]]}', 422, "expected finite numbers, got one beyond the range of float64"),
        (b'{"instances":[[1,2,-1e999]]}', 422, "expected finite numbers, got one beyond the range of float64"),
        (b'{"instances":[[1,2,' + b"9" * 500 + b"]]}", 422, "expected finite numbers"),
        (b'{"instances":[' + b"[1,2,3]," * MAX_ROWS + b"[1,2,3]]}", 422, f"expected at most {MAX_ROWS} rows"),
        (b'{"' + b"k" * 1_000_000 + b'":1}', 422, "unknown key 'kkkk"),
        (b'{"instances":[{"' + b"k" * 1_000_000 + b'":1}]}', 422, "row 0: unknown field 'kkkk"),
        (b'{"instances":[["' + b"x" * 1_000_000 + b'",2,3]]}', 422, "field 'cpu': expected a number, got the string"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
async def test_bad_body_gets_its_code_and_one_sentence(body: bytes, status: int, said: str) -> None:
    server = Server()
    answer = await server.post(body)
    assert (answer.status_code, said in detail(answer)) == (status, True), answer.text
    assert answer.headers.get_list("content-type") == ["application/json"]
    assert server.client.batches == []
    assert (await server.post(GOOD)).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "text/html; charset=utf-8", "multipart/form-data", "image/png"])
async def test_body_that_says_it_is_no_json_is_refused(content_type: str) -> None:
    answer = await Server().post(GOOD, headers={"content-type": content_type})
    assert answer.status_code == 415
    assert detail(answer) == f"expected content-type application/json, got '{content_type.partition(';')[0]}'"


async def test_body_of_ten_megabytes_is_refused_by_its_length_unread() -> None:
    answer = await Server().post(b" " * (10 << 20))
    assert answer.status_code == 413
    assert detail(answer) == f"expected a body of at most {MAX_BODY_BYTES} bytes, got {10 << 20}"
    assert answer.headers["connection"] == "close"


async def test_body_of_ten_megabytes_without_a_length_is_refused_when_the_limit_is_passed() -> None:
    taken = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(160):
            taken += 1
            yield b" " * (64 << 10)

    async with Server().http() as client:
        answer = await client.post("/predict/", content=pieces(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert taken < 80
    assert "got more" in detail(answer)


async def test_too_large_body_in_one_piece_without_a_length_is_refused() -> None:
    status, _, body = await asgi(Server(), [], b" " * (MAX_BODY_BYTES + 1))
    assert (status, b"got more" in body) == (413, True)


@pytest.mark.parametrize("length", [b"9" * 30, b"9" * 5000], ids=len)
async def test_absurd_content_length_is_too_large(length: bytes) -> None:
    status, _, _ = await asgi(Server(), [(b"content-length", length)], GOOD)
    assert status == 413


@pytest.mark.parametrize("length", [b"-1", b"abc", b"", b"\xb2", b"1e3"], ids=str)
async def test_content_length_that_is_none_is_not_believed(length: bytes) -> None:
    status, _, _ = await asgi(Server(), [(b"content-length", length)], GOOD)
    assert status == 200


async def test_client_that_goes_away_amid_its_body_harms_nothing() -> None:
    server = Server()
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    messages = [{"type": "http.request", "body": GOOD[:9], "more_body": True}, {"type": "http.disconnect"}]
    scope = {"type": "http", "method": "POST", "path": "/predict/", "headers": []}
    await server.api(scope, receive, send)
    assert server.client.batches == []
    assert (await server.post(GOOD)).status_code == 200


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("forcaster", "unknown family 'forcaster' (did you mean 'forecaster'?); this server has forecaster, iris"),
        ("nothing", "unknown family 'nothing'; this server has forecaster, iris"),
        ("forecaster/v1", "unknown family 'forecaster/v1' (did you mean 'forecaster'?)"),
    ],
)
async def test_unknown_family_is_404_with_the_nearest(family: str, said: str) -> None:
    answer = await Server().post(GOOD, path=f"/predict/{family}")
    assert answer.status_code == 404
    assert said in detail(answer)


async def test_unknown_version_is_404_with_those_that_are_loaded() -> None:
    answer = await Server().post(GOOD, headers={"x-model-version": "v9"})
    assert answer.status_code == 404
    assert detail(answer) == "version 'v9' of 'forecaster' is not loaded; loaded: v1"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/predict", "/predict/", "/predict/forecaster"])
async def test_other_methods_are_405(method: str, path: str) -> None:
    async with Server().http() as client:
        answer = await client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


async def test_errors_carry_ids_and_once_the_route_is_known_the_route() -> None:
    answer = await Server().post(b'{"instances":[]}', headers={"x-request-id": "abc"})
    assert (answer.headers["x-request-id"], answer.headers["x-model-version"]) == ("abc", "v1")


async def test_every_answer_is_counted_with_its_code() -> None:
    server = Server()
    for body, path in (
        (GOOD, "/predict/"),
        (b"", "/predict/"),
        (GOOD, "/predict/nothing"),
        (b" " * (5 << 20), "/predict/"),
    ):
        await server.post(body, path=path)
    assert server.meter.seen == [
        ("forecaster", "v1", "stable", 200),
        ("forecaster", "v1", "stable", 400),
        ("", "", "", 404),
        ("", "", "", 413),
    ]


# -- nobody to answer


async def test_family_without_a_model_is_503_with_retry_after() -> None:
    answer = await Server().post(GOOD, path="/predict/iris")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert "family 'iris' has no model yet" in detail(answer)


async def test_full_queue_is_503_with_retry_after_and_the_others_are_answered() -> None:
    server = Server(queued=2)
    server.client.is_held = True
    first = asyncio.ensure_future(server.post(GOOD))
    async with asyncio.timeout(5):
        while not server.client.n_held:
            await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(server.post(GOOD)) for _ in range(3)]
    async with asyncio.timeout(5):
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = [task.result() for task in done]
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "2 requests wait already" in detail(refused)
    server.client.is_held = False
    server.client.release()
    answers = [await task for task in (first, *waiting)]
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 503]


async def test_lost_replicas_are_503_with_retry_after() -> None:
    server = Server()
    server.client.lost_calls = 2
    answer = await server.post(GOOD)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_model_that_raises_is_500_with_one_sentence_and_the_batch_is_served() -> None:
    server = Server({"v1": refuses_poison})
    bad = b'{"instances":[[1,2,3],[-1,2,3]]}'
    answers = await asyncio.gather(*(server.post(body) for body in (GOOD, bad, GOOD)))
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert len(server.client.batches[0]) == 4
    assert "poison" in answers[1].json()["detail"]


async def test_outputs_that_make_no_answer_are_500_without_details() -> None:
    answer = await Server({"v1": lambda rows: np.array([[object()]])}).post(GOOD)
    assert answer.status_code == 500
    assert detail(answer) == "internal error; the log has the details"


async def test_version_that_no_replica_holds_any_more_is_answered_by_the_last_good_one() -> None:
    server = Server({"v1": row_sums, "v2": gone}, routed=None)
    server.route("v2", last_good="v1")
    answer = await server.post(GOOD)
    assert (answer.status_code, answer.json()["model_version"]) == (200, "v1")
    assert (answer.headers["x-model-version"], answer.headers["x-route-reason"]) == ("v1", "fallback")


@pytest.mark.parametrize("models", [{"v2": gone}, {"v1": gone, "v2": gone}], ids=["none", "gone too"])
async def test_without_a_last_good_version_either_it_is_503_not_404(models: dict[str, Any]) -> None:
    server = Server(models, routed=None)
    server.route("v2", last_good="v1")
    answer = await server.post(GOOD)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "version 'v2' of 'forecaster' is being replaced" in detail(answer)


async def test_forced_version_that_is_gone_is_404_with_those_that_are_loaded() -> None:
    answer = await Server({"v1": row_sums, "v2": gone}).post(GOOD, headers={"x-model-version": "v2"})
    assert answer.status_code == 404
    assert detail(answer) == "version 'v2' of 'forecaster' is not loaded; loaded: v1"


async def test_failures_of_the_server_are_logged_with_the_request_id() -> None:
    server = Server({"v1": refuses_poison})
    with structlog.testing.capture_logs() as lines:
        await server.post(b'{"instances":[[-1,2,3]]}', headers={"x-request-id": "abc"})
    (line,) = [line for line in lines if line["event"] == "request failed"]
    assert (line["request_id"], line["family"], line["version"], line["status"]) == ("abc", "forecaster", "v1", 500)


# -- whatever comes

keys = st.sampled_from(["instances", "features", "entity", "cpu", "ram", "load"]) | st.text(max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
rows = st.lists(st.lists(st.integers() | st.floats() | st.none() | st.text(max_size=2), max_size=4), max_size=4)
documents = (json_values | st.fixed_dictionaries({"instances": rows | json_values})).map(
    lambda v: json.dumps(v).encode()
)
mutated = st.tuples(documents, st.integers(0, 200), st.binary(max_size=3)).map(
    lambda t: t[0][: t[1]] + t[2] + t[0][t[1] :]
)
header_names = st.sampled_from(
    [
        b"content-type",
        b"content-length",
        b"x-request-id",
        b"x-correlation-id",
        b"x-model-version",
        b"expect",
        b"x-other",
    ]
)
header_values = st.binary(max_size=40) | st.sampled_from([b"application/json", b"v1", b"99", b"text/plain"])
paths = st.sampled_from(["/predict", "/predict/", "/predict/forecaster", "/predict/iris"]) | st.text(max_size=20).map(
    lambda text: "/predict/" + text
)


def test_whatever_comes_is_answered_and_never_by_500() -> None:
    async def make() -> Server:
        return Server()

    with asyncio.Runner() as runner, structlog.testing.capture_logs():
        server = runner.run(make())

        @settings(max_examples=100, deadline=None)
        @given(
            st.binary(max_size=100) | documents | mutated,
            st.lists(st.tuples(header_names, header_values), max_size=5),
            paths,
        )
        def check(body: bytes, headers: list[tuple[bytes, bytes]], path: str) -> None:
            status, answered, answer = runner.run(asgi(server, headers, body, path=path))
            assert status in (200, 400, 404, 413, 415, 422, 503)
            document = json.loads(answer)
            assert document.keys() == (
                {"detail"} if status != 200 else {"predictions", "model_family", "model_version"}
            )
            names = [name for name, _ in answered]
            assert len(set(names)) == len(names)
            assert all(byte in range(0x20, 0x7F) for _, value in answered for byte in value)
            assert (status == 503) == (b"retry-after" in names)

        check()
