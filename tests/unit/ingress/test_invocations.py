"""`/invocations`, `/ping` and `/version` for families that are no models of MLflow; for those see tests/contracts."""

import asyncio
import json
from importlib.metadata import version
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.fakes.predict_client import row_sums
from tests.unit.ingress.serving import MAX_BODY_BYTES, MAX_ROWS, Server

pytestmark = pytest.mark.usefixtures("quiet")

COLUMNS = ["cpu", "ram", "load"]
GOOD = b'{"dataframe_split":{"columns":["cpu","ram","load"],"data":[[1,2,3]]}}'


async def invoke(server: Server, body: bytes, *, query: str = "", **headers: str) -> httpx.Response:
    return await server.post(body, path=f"/invocations{query}", headers=headers)


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_split": {"columns": ["load", "cpu", "ram"], "data": [[3, 1, 2]]}},
        {"dataframe_split": {"columns": [*COLUMNS, "x"], "data": [[1, 2, 3, "x"]], "index": ["a"]}},
        {"dataframe_split": {"data": [[1, 2, 3]]}},
        {"dataframe_records": [{"cpu": 1, "ram": "2", "load": 3, "x": None}]},
        {"instances": [{"cpu": 1, "ram": 2, "load": 3}]},
        {"instances": [[1, 2, 3]]},
        {"instances": {"cpu": [1], "ram": [2], "load": [3]}},
        {"inputs": {"cpu": 1, "ram": [2], "load": True + 2}},
        {"inputs": [{"cpu": 1, "ram": 2, "load": 3}], "params": {"a": 1}, "anything": 7},
        {"inputs": [[1, 2, 3]]},
    ],
    ids=str,
)
async def test_every_form_of_a_row_gets_the_same_answer(document: Any) -> None:
    answer = await invoke(Server(), json.dumps(document).encode())
    assert (answer.status_code, answer.json()) == (200, {"predictions": [6.0]})


@pytest.mark.parametrize(
    "body", [b"cpu,ram,load\n1,2,3\n", b'\xef\xbb\xbfram,"cpu",x,load\r\n"2",1,a,3.0\r\n\r\n'], ids=str
)
async def test_csv_is_read(body: bytes) -> None:
    answer = await server_of().post(body, path="/invocations", headers={"content-type": "text/csv; charset=utf-8"})
    assert answer.json() == {"predictions": [6.0]}


def server_of() -> Server:
    return Server()


async def test_answer_has_the_headers_of_every_prediction_and_is_counted() -> None:
    server = Server()
    answer = await invoke(server, GOOD, **{"x-request-id": "abc"})
    assert (answer.headers["x-request-id"], answer.headers["x-model-version"]) == ("abc", "v1")
    assert answer.headers["content-type"] == "application/json"
    assert server.meter.seen == [("forecaster", "v1", "stable", 200)]
    assert server.meter.http == [("POST", "/invocations", 200)]


async def test_several_outputs_are_named() -> None:
    def two(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([rows.sum(axis=1), rows.max(axis=1)], axis=1)

    answer = await invoke(Server({"v1": two}, outputs=("total", "top")), GOOD)
    assert answer.json() == {"predictions": [{"total": 6.0, "top": 3.0}]}


async def test_requests_of_both_protocols_share_a_call() -> None:
    server = Server()
    predict = server.post(b'{"instances":[[1,2,3]]}')
    answers = await asyncio.gather(*(invoke(server, GOOD) for _ in range(5)), predict)
    assert {answer.status_code for answer in answers} == {200}
    assert len(server.client.batches) == 1


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?family=forecaster", 200, None),
        ("?family=iris&family=forecaster", 200, None),
        ("?family=", 200, None),
        ("?other=1", 200, None),
        ("?family=iris", 503, "TEMPORARILY_UNAVAILABLE"),
        ("?family=nothing", 404, "RESOURCE_DOES_NOT_EXIST"),
        ("?family=%ff", 404, "RESOURCE_DOES_NOT_EXIST"),
    ],
)
async def test_family_is_named_by_the_query(query: str, status: int, code: str | None) -> None:
    answer = await invoke(Server(), GOOD, query=query)
    assert (answer.status_code, answer.json().get("error_code")) == (status, code)
    assert ("retry-after" in answer.headers) == (status == 503)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "expected a JSON document, got an empty body"),
        (b"{", "expected a JSON document, got 1 bytes that are none"),
        (b"[" * 100_000, "expected a JSON document"),
        (b'{"a":' * 100_000, "expected a JSON document"),
        (b'{"instances":[[1,2,' + b"9" * 5000 + b"]]}", "expected a JSON document"),
        (b'{"instances":[[1,2,' + b"9" * 400 + b"]]}", "row 0, field 'load'"),
        (b'{"instances":[[1,2,NaN]]}', "row 0, field 'load': expected a finite number"),
        (b'{"instances":[[1,2,null]]}', "row 0, field 'load': expected a finite number"),
        (b'{"instances":[[1,2,1e999]]}', "row 0, field 'load': expected a finite number"),
        (b'{"instances":[[1,2]]}', "expected 3 columns, got 2"),
        (b'{"instances":[[1,2,3],[1,2]]}', "rows of one length"),
        (b'{"instances":[{"cpu":1,"ram":2,"load":3},{"cpu":1}]}', "row 1: expected the same fields"),
        (b'{"instances":[],"inputs":[]}', "expected exactly one of dataframe_split"),
        (b'{"instances":' + b"[[1,2,3]" + b",[1,2,3]" * MAX_ROWS + b"]}", f"at most {MAX_ROWS} rows"),
        (b'{"inputs":{"cpu":' + json.dumps([1] * (MAX_ROWS + 1)).encode() + b"}}", f"at most {MAX_ROWS} rows"),
        (b'{"prompt":"hello"}', "language models"),
        (b'{"' + b"k" * 1_000_000 + b'":1}', "got none of them"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_bad_body_is_400_as_mlflow_says_it(body: bytes, said: str) -> None:
    server = Server()
    answer = await invoke(server, body)
    error = answer.json()
    assert (answer.status_code, set(error)) == (400, {"error_code", "message"}), answer.text
    assert said in error["message"]
    assert len(error["message"]) < 300
    assert server.client.batches == []


@pytest.mark.parametrize("content_type", ["text/plain", "application/json; charset=latin-1", "", "text/csv;header=x"])
async def test_other_content_types_are_415(content_type: str) -> None:
    answer = await server_of().post(GOOD, path="/invocations", headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["error_code"]) == (415, "BAD_REQUEST")


async def test_body_that_is_too_large_is_413() -> None:
    answer = await invoke(Server(), b" " * (MAX_BODY_BYTES + 1))
    assert (answer.status_code, set(answer.json())) == (413, {"error_code", "message"})


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"dataframe_records": [{f"c{i}_{j}": 1 for j in range(250)} for i in range(MAX_ROWS)]}).encode(),
        json.dumps({"dataframe_split": {"data": [[1] * 300_000, *[[]] * (MAX_ROWS - 1)]}}).encode(),
        json.dumps({"inputs": {**{f"c{i}": [] for i in range(100_000)}}}).encode(),
    ],
    ids=["fields", "width", "columns"],
)
async def test_short_body_cannot_ask_for_a_huge_table(body: bytes) -> None:
    assert len(body) < MAX_BODY_BYTES
    async with asyncio.timeout(5):
        assert (await invoke(Server(), body)).status_code == 400


async def test_csv_with_a_long_line_of_names_makes_no_huge_table() -> None:
    body = b"," * 1_000_000 + b"\n" + b"1\n" * MAX_ROWS
    async with asyncio.timeout(5):
        answer = await server_of().post(body, path="/invocations", headers={"content-type": "text/csv"})
    assert answer.status_code == 400


async def test_model_that_fails_is_500_with_its_code() -> None:
    def broken(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        raise ValueError("worn out")

    answer = await invoke(Server({"v1": broken}), GOOD)
    assert (answer.status_code, answer.json()["error_code"]) == (500, "INTERNAL_ERROR")


@pytest.mark.parametrize(("number", "status"), [("1e39", 400), ("7", 500)])
async def test_failure_at_a_number_beyond_float32_is_the_clients(number: str, status: int) -> None:
    def narrow(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        raise ValueError("value too large\nfor dtype('float32')")

    answer = await invoke(Server({"v1": narrow}), b'{"instances":[[1,2,' + number.encode() + b"]]}")
    assert answer.status_code == status


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "status", "body"),
    [("/ping", 200, b"\n"), ("/ping?family=forecaster", 200, b"\n"), ("/version", 200, version("mlflow").encode())],
)
async def test_questions_of_balancers(method: str, path: str, status: int, body: bytes) -> None:
    async with Server().http() as client:
        answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["content-length"]) == (status, str(len(body)))
    assert answer.content == (body if method == "GET" else b"")


@pytest.mark.parametrize(("path", "status"), [("/ping?family=iris", 503), ("/ping?family=nothing", 404)])
async def test_ping_of_a_family_that_cannot_answer(path: str, status: int) -> None:
    async with Server().http() as client:
        answer = await client.get(path)
    assert (answer.status_code, set(answer.json())) == (status, {"error_code", "message"})


@pytest.mark.parametrize("path", ["/invocations", "/ping", "/version"])
async def test_routes_mounted_in_fastapi_alone_answer_the_same(path: str) -> None:
    server = Server()
    method, body = ("POST", GOOD) if path == "/invocations" else ("GET", b"")
    answers = []
    for app in (server.api, server.api.rest):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            answer = await client.request(method, path, content=body, headers={"content-type": "application/json"})
            answers.append((answer.status_code, answer.content, answer.headers["content-type"]))
    assert answers[0] == answers[1]


# -- whatever comes

cells: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just([]) | st.just({})
)
keys = st.sampled_from([*COLUMNS, "x"])
rows = st.lists(st.lists(cells, max_size=4) | cells, max_size=3)
objects = st.lists(st.dictionaries(keys, cells, max_size=4) | cells, max_size=3)
columns = st.dictionaries(keys, st.lists(cells, max_size=3) | cells, max_size=4)
split = st.fixed_dictionaries(
    {}, optional={"columns": st.lists(keys | cells, max_size=4), "data": rows | objects, "index": rows | cells}
)
forms = st.dictionaries(
    st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs", "params", "input"]),
    rows | objects | columns | split | cells,
    max_size=2,
)
documents = (forms | rows | cells).map(lambda value: json.dumps(value).encode())
csvs = st.text(alphabet='cpu,ram,load"\n\r 1.e', max_size=60).map(lambda text: b"cpu,ram,load\n" + text.encode())
types = st.sampled_from([b"application/json", b"text/csv"]) | st.binary(max_size=30)


def test_whatever_comes_is_answered_and_never_by_500() -> None:
    async def make() -> Server:
        return Server({"v1": row_sums})

    with asyncio.Runner() as runner, structlog.testing.capture_logs():
        server = runner.run(make())

        @settings(max_examples=400, deadline=None)
        @given(st.binary(max_size=60) | documents | csvs, types)
        def ask(body: bytes, content_type: bytes) -> None:
            async def post() -> httpx.Response:
                async with server.http() as client:
                    return await client.post("/invocations", content=body, headers=[(b"content-type", content_type)])

            answer = runner.run(post())
            assert answer.status_code in (200, 400, 415), answer.text
            wanted = {"predictions"} if answer.status_code == 200 else {"error_code", "message"}
            assert set(answer.json()) == wanted

        ask()
