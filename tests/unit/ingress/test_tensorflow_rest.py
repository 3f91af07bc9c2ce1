"""`/v1/models`: the REST API of TensorFlow Serving, and KServe's first protocol."""

import asyncio
import json
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.domain.traffic import KeySource, Targeting
from tests.fakes.predict_client import row_sums
from tests.unit.ingress import protocols
from tests.unit.ingress.protocols import COLUMNS, mixed_server, single_server, split_server
from tests.unit.ingress.serving import FAMILY, MAX_BODY_BYTES, MAX_ROWS, Server

pytestmark = pytest.mark.usefixtures("quiet")

PREDICT = f"/v1/models/{FAMILY}:predict"
GOOD = {"instances": [[1, 2, 3], [4, 5, 6]]}


async def predict(server: Server, document: Any, *, path: str = PREDICT, **headers: str) -> httpx.Response:
    return await server.post(json.dumps(document).encode(), path=path, headers=headers)


@pytest.mark.parametrize(
    ("document", "answered"),
    [
        (GOOD, {"predictions": [6.0, 15.0]}),
        ({"instances": [{"load": 3, "cpu": 1, "ram": 2}], "signature_name": "serving_default"}, {"predictions": [6.0]}),
        ({"instances": [[1, 2, 3]], "entity": "node-7", "anything": 7}, {"predictions": [6.0]}),
        ({"inputs": {"load": [3, 6], "cpu": [[1], [4]], "ram": [2, 5]}}, {"outputs": [6.0, 15.0]}),
        ({"inputs": [[1, 2, 3]]}, {"outputs": [6.0]}),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_rows_are_answered_by_rows_and_columns_by_columns(document: Any, answered: Any) -> None:
    server = Server()
    answer = await predict(server, document)
    assert (answer.status_code, answer.json()) == (200, answered)
    assert server.client.batches[0][0] == [1.0, 2.0, 3.0]


async def test_several_outputs_are_named() -> None:
    rows = await predict(mixed_server(), {"instances": [[1, 2, True], [0.5, 0, False]]})
    assert rows.json()["predictions"][0] == {"total": 4.0, "class": 4, "alarm": 1}
    columns = await predict(mixed_server(), {"inputs": {"cpu": [1, 0.5], "ram": [2, 0], "load": [True, 0]}})
    assert columns.json() == {"outputs": {"total": [4.0, 0.5], "class": [4, 0], "alarm": [True, False]}}


@pytest.mark.parametrize("form", ["instances", "inputs"])
async def test_values_are_rows_where_there_is_one_input(form: str) -> None:
    key = {"instances": "predictions", "inputs": "outputs"}[form]
    for rows in ([5, 7], [[5], [7]]):
        assert (await predict(single_server(), {form: rows})).json() == {key: [5.0, 7.0]}


def test_answers_equal_those_of_predict() -> None:
    with asyncio.Runner() as runner:

        async def make() -> tuple[Server, Server]:
            return Server(), mixed_server()

        plain, mixed = runner.run(make())

        @settings(max_examples=150, deadline=None)
        @given(protocols.tables, st.booleans(), st.booleans(), st.booleans())
        def ask(rows: list[list[float]], is_named: bool, is_columnar: bool, is_mixed: bool) -> None:
            server = mixed if is_mixed else plain
            instances: Any = [dict(zip(COLUMNS, row, strict=True)) for row in rows] if is_named else rows
            columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))

            async def both() -> tuple[httpx.Response, httpx.Response]:
                theirs = await server.post(json.dumps({"instances": instances}).encode())
                return await predict(server, {"inputs": columns} if is_columnar else {"instances": instances}), theirs

            ours, theirs = runner.run(both())
            if theirs.status_code == 422:
                assert (ours.status_code, ours.json()) == (400, {"error": theirs.json()["detail"]})
                return
            assert (ours.status_code, theirs.status_code) == (200, 200)
            expected = theirs.json()["predictions"]
            if is_columnar and is_mixed:
                expected = {name: [row[name] for row in expected] for name in expected[0]}
            assert ours.json() == {"outputs" if is_columnar else "predictions": expected}

        ask()


async def test_version_of_the_path_answers_whatever_the_split_says() -> None:
    server = split_server(10_000)
    answer = await predict(server, GOOD, path=f"/v1/models/{FAMILY}/versions/v1:predict")
    assert (answer.json(), answer.headers["x-route-reason"]) == ({"predictions": [6.0, 15.0]}, "forced")
    assert (await predict(server, GOOD)).json() == {"predictions": [7.0, 16.0]}
    unknown = await predict(server, GOOD, path=f"/v1/models/{FAMILY}/versions/v9:predict")
    assert (unknown.status_code, "loaded: v1, v2" in unknown.json()["error"]) == (404, True)
    twice = await predict(server, GOOD, path=f"/v1/models/{FAMILY}/versions/v1:predict", **{"x-model-version": "v2"})
    assert (twice.status_code, "in the path" in twice.json()["error"]) == (400, True)


async def test_entity_of_the_body_is_the_key() -> None:
    server = split_server(5000, targeting=Targeting(source=KeySource.FIELD, name="entity"))
    for i in range(10):
        document = {"entity": f"node-{i}", "instances": [[1, 2, 3]]}
        ours, theirs = await predict(server, document), await server.post(json.dumps(document).encode())
        assert ours.headers["x-route-reason"] == "hash"
        assert ours.headers["x-model-variant"] == theirs.headers["x-model-variant"]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "expected an object, got a list of 0"),
        ({}, "expected one of 'instances' and 'inputs', got neither"),
        (GOOD | {"inputs": []}, "expected one of 'instances' and 'inputs', got both"),
        (GOOD | {"signature_name": "other"}, "'signature_name': expected 'serving_default', got the string 'other'"),
        (GOOD | {"signature_name": []}, "'signature_name': expected 'serving_default', got a list of 0"),
        (GOOD | {"entity": 7}, "'entity': expected a string, got the number 7"),
        ({"instances": {"cpu": 1}}, "'instances': expected a list of rows, got an object"),
        ({"instances": None}, "'instances': expected a list of rows, got null"),
        ({"instances": []}, "expected at least one row"),
        ({"instances": [1, 2, 3]}, "row 0: expected a list of 3 numbers or an object, got the number 1"),
        ({"instances": [[1, 2, 3], "x"]}, "row 1: expected a list of 3 numbers or an object, got the string 'x'"),
        ({"instances": [[1, 2]]}, "row 0: expected 3 values (cpu, ram, load), got 2"),
        ({"instances": [{"cpu": 1, "ram": 2, "lod": 3}]}, "row 0: unknown field 'lod' (did you mean 'load'?)"),
        ({"instances": [[1, 2, None]]}, "row 0, field 'load': expected a number, got null"),
        ({"instances": [[1, 2, 3]] * (MAX_ROWS + 1)}, f"expected at most {MAX_ROWS} rows"),
        ({"inputs": 7}, "'inputs': expected an object of columns or a list of rows, got the number 7"),
        ({"inputs": {"cpu": 1}}, "input 'cpu': expected a list, got the number 1"),
        ({"inputs": {"cpu": [1], "ram": [2]}}, "expected 3 inputs, one for each column, got 2; missing: load"),
        ({"inputs": {"cpu": [1], "ram": [2], "x": [3]}}, "unknown input 'x'"),
        ({"inputs": {"cpu": [1], "ram": [2], "load": [3, 4]}}, "expected inputs of one length, got 1 and 2 rows"),
        ({"inputs": {"cpu": [[1, 2]], "ram": [2], "load": [3]}}, "row 0, field 'cpu': expected a number, got a list"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_bad_body_is_400_with_a_sentence(document: Any, said: str) -> None:
    server = Server()
    answer = await predict(server, document)
    assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text
    assert said in answer.json()["error"]
    assert server.client.batches == []


async def test_other_errors_have_the_same_form() -> None:
    large = await Server().post(b" " * (MAX_BODY_BYTES + 1), path=PREDICT)
    typed = await Server().post(b"{}", path=PREDICT, headers={"content-type": "text/csv"})
    unknown = await predict(Server(), GOOD, path="/v1/models/nothing:predict")
    empty = await predict(Server(), GOOD, path="/v1/models/iris:predict")
    windows = await predict(Server(signature=protocols.WINDOWS), GOOD)
    answers = [large, typed, unknown, empty, windows]
    assert [answer.status_code for answer in answers] == [413, 415, 404, 503, 400]
    assert all(list(answer.json()) == ["error"] for answer in answers)
    assert "POST /predict/forecaster" in windows.json()["error"]


async def test_model_that_fails_is_500_in_the_same_form() -> None:
    def broken(rows: Any) -> Any:
        raise ValueError("worn out")

    answer = await predict(Server({"v1": broken}), GOOD)
    assert (answer.status_code, list(answer.json())) == (500, ["error"])


def test_whatever_comes_is_answered_and_never_by_500() -> None:
    keys = st.sampled_from([*COLUMNS, "x"])
    objects = st.lists(st.dictionaries(keys, protocols.cells, max_size=4) | protocols.cells, max_size=3)
    columns = st.dictionaries(keys, protocols.lists | protocols.cells, max_size=4)
    forms = st.dictionaries(
        st.sampled_from(["instances", "inputs", "signature_name", "entity", "x"]),
        protocols.lists | objects | columns | protocols.cells,
        max_size=3,
    )

    async def make() -> list[Server]:
        return [Server({"v1": row_sums}), mixed_server(), single_server()]

    with asyncio.Runner() as runner, structlog.testing.capture_logs():
        servers = runner.run(make())

        @settings(max_examples=300, deadline=None)
        @given(
            st.sampled_from(servers),
            (forms | protocols.cells).map(json.dumps).map(str.encode) | st.binary(max_size=60),
            protocols.media_types,
        )
        def ask(server: Server, body: bytes, content_type: bytes) -> None:
            async def post() -> httpx.Response:
                async with server.http() as client:
                    return await client.post(PREDICT, content=body, headers=[(b"content-type", content_type)])

            answer = runner.run(post())
            assert answer.status_code in (200, 400, 415), answer.text
            assert set(answer.json()) <= {"predictions", "outputs", "error"}

        ask()


async def test_models_and_their_versions_are_told_of() -> None:
    server = split_server(0)
    server.observe(loading={"v3": "fetching"})
    assert (await server.get("/v1/models")).json() == {"models": [FAMILY, "iris"]}
    told = (await server.get(f"/v1/models/{FAMILY}")).json()
    assert (told["name"], told["ready"]) == (FAMILY, True)
    assert [(one["version"], one["state"]) for one in told["model_version_status"]] == [
        ("v1", "AVAILABLE"),
        ("v2", "AVAILABLE"),
        ("v3", "LOADING"),
    ]
    (one,) = (await server.get(f"/v1/models/{FAMILY}/versions/v2")).json()["model_version_status"]
    assert one == {"version": "v2", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}


@pytest.mark.parametrize(("path", "status"), [(f"{FAMILY}/versions/v9", 404), ("nothing", 404), ("iris", 503)])
async def test_only_what_is_loaded_is_told_of(path: str, status: int) -> None:
    answer = await Server().get(f"/v1/models/{path}")
    assert (answer.status_code, list(answer.json())) == (status, ["error"])


@pytest.mark.parametrize(
    "path",
    [
        "/v1/x", "/v1/models/forecaster", "/v1/models/a/b:predict", "/v1/models/:predict",
        "/v2/models/a/b/infer", "/v2/models//infer", "/v2/repository/models/forecaster/load",
    ],
)  # fmt: skip
async def test_paths_that_no_protocol_has_are_refused_in_its_form(path: str) -> None:
    server = Server()
    answer = await predict(server, GOOD, path=path)
    assert (answer.status_code, answer.json()["error"].startswith(f"no route POST '{path}'")) == (404, True)
    assert server.client.batches == []
