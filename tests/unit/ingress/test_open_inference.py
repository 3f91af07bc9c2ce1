"""`/v2`: the Open Inference Protocol."""

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.domain.traffic import KeySource, Shadow, Targeting
from tests.fakes.predict_client import row_sums
from tests.unit.ingress import protocols
from tests.unit.ingress.protocols import COLUMNS, mixed_server, single_server, split_server
from tests.unit.ingress.serving import FAMILY, MAX_BODY_BYTES, MAX_ROWS, Server

pytestmark = pytest.mark.usefixtures("quiet")

INFER = f"/v2/models/{FAMILY}/infer"


def matrix(rows: Any, *, name: str = "input-0", datatype: str = "FP64", shape: Any = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(rows), len(rows[0])], "data": rows}


def column(name: str, data: Any, *, datatype: str = "FP64", **facts: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data} | facts


async def infer(server: Server, document: Any, *, path: str = INFER, **headers: str) -> httpx.Response:
    return await server.post(json.dumps(document).encode(), path=path, headers=headers)


GOOD = {"inputs": [matrix([[1, 2, 3], [4, 5, 6]])]}
BY_NAME = [column("load", [3, 6]), column("cpu", [1.0, 4], shape=[2, 1]), column("ram", [[2], [5]], shape=[2, 1])]


# -- predictions


@pytest.mark.parametrize(
    "inputs",
    [
        GOOD["inputs"],
        [matrix([1, 2, 3, 4, 5, 6], shape=[2, 3])],
        [matrix([[1, 2, 3], [4, 5, 6]], name="cpu", datatype="INT64")],
        [matrix([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], shape=[2, 3], datatype="UINT8")],
        BY_NAME,
    ],
    ids=["nested", "flat", "named-as-a-column", "whole-floats", "columns"],
)
async def test_every_form_of_two_rows_gets_the_same_answer(inputs: Any) -> None:
    server = Server()
    answer = await infer(server, {"inputs": inputs, "parameters": {"binary_data_output": True, "x": 1}})
    assert server.client.batches == [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "model_name": FAMILY,
            "model_version": "v1",
            "outputs": [{"name": "y", "datatype": "FP64", "shape": [2], "data": [6.0, 15.0]}],
        },
    )


@pytest.mark.parametrize("shape", [[2], [2, 1]])
async def test_the_only_input_may_have_any_name(shape: list[int]) -> None:
    answer = await infer(single_server(), {"inputs": [matrix([5, 7], shape=shape)]})
    assert answer.json()["outputs"][0]["data"] == [5.0, 7.0]


async def test_id_is_given_back_and_outputs_are_those_that_were_asked_for() -> None:
    rows = [[1, 2, True], [0.5, 0, 0]]
    inputs = [matrix(rows)]
    answer = await infer(
        mixed_server(), {"id": "42", "inputs": inputs, "outputs": [{"name": "alarm"}, {"name": "class"}]}
    )
    assert answer.json()["id"] == "42"
    assert answer.json()["outputs"] == [
        {"name": "class", "datatype": "INT64", "shape": [2], "data": [4, 0]},
        {"name": "alarm", "datatype": "BOOL", "shape": [2], "data": [True, False]},
    ]
    assert [type(value) for value in answer.json()["outputs"][0]["data"]] == [int, int]
    every = (await infer(mixed_server(), {"inputs": inputs, "outputs": []})).json()
    assert [output["name"] for output in every["outputs"]] == ["total", "class", "alarm"]
    assert "id" not in every


async def test_prediction_that_is_no_number_is_null_whatever_its_type() -> None:
    def nothing(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.full((len(rows), 3), np.nan)

    server = Server({"v1": nothing}, signature=protocols.MIXED)
    answer = await infer(server, {"inputs": [matrix([[1, 2, 0]])]})
    assert [output["data"] for output in answer.json()["outputs"]] == [[None]] * 3


def test_answers_equal_those_of_predict() -> None:
    with asyncio.Runner() as runner:

        async def make() -> tuple[Server, Server]:
            return Server(), mixed_server()

        plain, mixed = runner.run(make())

        @settings(max_examples=150, deadline=None)
        @given(protocols.tables, st.booleans(), st.booleans())
        def ask(rows: list[list[float]], by_column: bool, is_mixed: bool) -> None:
            server = mixed if is_mixed else plain
            inputs = [matrix(rows)]
            if by_column:
                inputs = [
                    column(name, list(values)) for name, values in zip(COLUMNS, zip(*rows, strict=True), strict=True)
                ]

            async def both() -> tuple[httpx.Response, httpx.Response]:
                theirs = await server.post(json.dumps({"instances": rows}).encode())
                return await infer(server, {"inputs": inputs}), theirs

            ours, theirs = runner.run(both())
            if theirs.status_code == 422:
                assert (ours.status_code, ours.json()) == (400, {"error": theirs.json()["detail"]})
                return
            assert (ours.status_code, theirs.status_code) == (200, 200)
            found = {output["name"]: output["data"] for output in ours.json()["outputs"]}
            expected = theirs.json()["predictions"]
            for name, data in found.items():
                assert data == ([row[name] for row in expected] if is_mixed else expected)

        ask()


# -- which version


async def test_version_of_the_path_answers_whatever_the_split_says() -> None:
    server = split_server(10_000)
    answer = await infer(server, GOOD, path=f"/v2/models/{FAMILY}/versions/v1/infer")
    assert (answer.json()["model_version"], answer.headers["x-route-reason"]) == ("v1", "forced")
    assert (await infer(server, GOOD)).json()["model_version"] == "v2"


async def test_version_that_is_not_loaded_is_404_with_those_that_are() -> None:
    answer = await infer(split_server(0), GOOD, path=f"/v2/models/{FAMILY}/versions/v9/infer")
    assert answer.status_code == 404
    assert answer.json() == {"error": "version 'v9' of 'forecaster' is not loaded; loaded: v1, v2"}


@pytest.mark.parametrize(
    ("path", "query", "headers", "said"),
    [
        ("/versions/v1", "", {"x-model-version": "v1"}, None),
        ("", "", {"x-model-version": "v2"}, None),
        ("/versions/v1", "", {"x-model-version": "v2"}, "got 'v1' in the path and 'v2' in X-Model-Version"),
        ("/versions/v1", "?version=v1", {}, "got both"),
    ],
)
async def test_two_versions_are_refused(path: str, query: str, headers: dict[str, str], said: str | None) -> None:
    answer = await infer(split_server(0), GOOD, path=f"/v2/models/{FAMILY}{path}/infer{query}", **headers)
    assert answer.status_code == (200 if said is None else 400)
    assert said is None or said in answer.json()["error"]


async def test_version_that_the_query_names_answers() -> None:
    answer = await infer(split_server(0), GOOD, path=f"{INFER}?version=v2")
    assert (answer.json()["model_version"], answer.headers["x-route-reason"]) == ("v2", "named")


# -- splits, evidence, shadow


async def test_split_goes_by_the_header_and_counts_evidence() -> None:
    server, other = split_server(5000), split_server(5000)
    for i in range(20):
        ours = await infer(server, GOOD, **{"x-user": f"node-{i}"})
        theirs = await other.post(b'{"instances":[[1,2,3]]}', headers={"x-user": f"node-{i}"})
        for name in ("x-model-variant", "x-route-reason", "x-generation"):
            assert ours.headers[name] == theirs.headers[name]
    ours_counted, theirs_counted = (one.router.evidence("g").families[FAMILY]["salt-1"] for one in (server, other))
    for variant in ("stable", "canary"):
        assert ours_counted[variant].requests == theirs_counted[variant].requests > 0


@pytest.mark.parametrize(
    ("parameters", "reason"), [({"entity": "node-7"}, "hash"), ({"entity": ""}, "weight"), ({}, "weight")]
)
async def test_entity_of_the_parameters_is_the_key(parameters: Any, reason: str) -> None:
    server = split_server(5000, targeting=Targeting(source=KeySource.FIELD, name="entity"))
    answers = [await infer(server, GOOD | {"parameters": parameters}) for _ in range(4)]
    assert {answer.headers["x-route-reason"] for answer in answers} == {reason}
    if reason == "hash":
        same = await server.post(b'{"entity":"node-7","instances":[[1,2,3]]}')
        assert {answer.headers["x-model-variant"] for answer in answers} == {same.headers["x-model-variant"]}


async def test_shadow_gets_copies() -> None:
    server = split_server(0, shadow=Shadow(version="v2"))
    for _ in range(10):
        assert (await infer(server, GOOD)).json()["model_version"] == "v1"
    await server.mirror.settled()
    found = server.router.evidence("g").families[FAMILY]["salt-1"]
    assert (found["stable"].requests, found["shadow"].requests) == (10, 10)


# -- what is refused


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "expected an object, got a list of 0"),
        ({}, "'inputs': expected a list of tensors, got none"),
        ({"inputs": []}, "'inputs': expected a list of tensors, got a list of 0"),
        ({"inputs": {"a": 1}}, "'inputs': expected a list of tensors, got an object"),
        ({"inputs": [7]}, "'inputs', 0: expected an object, got the number 7"),
        ({"inputs": [{}]}, "'inputs', 0: expected 'name', a string, got null"),
        (GOOD | {"id": 7}, "'id': expected a string, got the number 7"),
        (GOOD | {"parameters": []}, "'parameters': expected an object, got a list of 0"),
        (GOOD | {"parameters": {"entity": 7}}, "'entity': expected a string, got the number 7"),
        (GOOD | {"outputs": "y"}, "'outputs': expected a list of outputs, got the string 'y'"),
        (GOOD | {"outputs": ["y"]}, "'outputs', 0: expected an object with 'name', got the string 'y'"),
        (GOOD | {"outputs": [{"name": "yy"}]}, "unknown output 'yy'"),
        ({"inputs": [matrix([[1, 2, 3]], datatype="FLOAT")]}, "input 'input-0': expected a datatype of BOOL, BYTES,"),
        ({"inputs": [matrix([[1, 2, 3]], shape=[1, -3])]}, "expected 'shape', a list of sizes, got a list of 2"),
        ({"inputs": [matrix([[1, 2, 3]], shape=[1, True])]}, "expected 'shape', a list of sizes"),
        ({"inputs": [matrix([[1, 2, 3]], shape=[1, 1, 3])]}, "expected a shape of one or two sizes, got 3"),
        ({"inputs": [matrix([[1, 2]])]}, "expected shape [n, 3], or an input for each column, got [1, 2]"),
        ({"inputs": [matrix([1, 2, 3], shape=[3])]}, "expected shape [n, 3], or an input for each column, got [3]"),
        ({"inputs": [matrix([1, 2, 3], shape=[2, 3])]}, "expected 6 values for shape [2, 3], got 3"),
        ({"inputs": [matrix([[1, 2, 3]], shape=[2, 3])]}, "expected data of shape [2, 3], got lists of another"),
        ({"inputs": [matrix([[1, 2, 3], [1]])]}, "expected data of shape [2, 3], got lists of another"),
        ({"inputs": [matrix([[1, 2, 3], 4])]}, "expected data of shape [2, 3], got lists of another"),
        ({"inputs": [matrix([[1, 2.5, 3]], datatype="INT32")]}, "expected integers, as INT32 says, got the number 2.5"),
        ({"inputs": [matrix([["a", 2, 3]], datatype="BYTES")]}, "row 0, field 'cpu': expected a number, got the str"),
        ({"inputs": [matrix([[1, 2, None]])]}, "row 0, field 'load': expected a number, got null"),
        ({"inputs": [matrix([], shape=[0, 3])]}, "expected at least one row"),
        ({"inputs": [matrix([[1, 2, 3]] * (MAX_ROWS + 1))]}, f"expected at most {MAX_ROWS} rows"),
        ({"inputs": [column("cpu", [1])]}, "expected 3 inputs, one for each column, got 1; missing: ram, load"),
        ({"inputs": [*BY_NAME, column("lod", [1])]}, "unknown input 'lod' (did you mean 'load'?)"),
        ({"inputs": [*BY_NAME, BY_NAME[0]]}, "input 'load': expected once, got twice"),
        ({"inputs": [*BY_NAME[1:], column("load", [1])]}, "expected inputs of one length, got 1 and 2 rows"),
        ({"inputs": [*BY_NAME[1:], matrix([[1, 2]], name="load")]}, "input 'load': expected shape [n] or [n, 1], got"),
        ({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 3]}]}, "input 'x': expected 'data', a list"),
        (
            {"inputs": [{**matrix([[1, 2, 3]]), "data": None, "parameters": {"binary_data_size": 24}}]},
            "binary tensors are not read",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_bad_body_is_400_with_a_sentence(document: Any, said: str) -> None:
    server = Server()
    answer = await infer(server, document)
    assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text
    assert said in answer.json()["error"]
    assert len(answer.json()["error"]) < 300
    assert server.client.batches == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "expected a JSON document, got an empty body"),
        (b"{", "expected a JSON document, got 1 bytes"),
        (b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[1,2,NaN]}]}', "NaN"),
        (b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[1,2,1e999]}]}', "finite numbers"),
        (b'{"inputs":[{"parameters":{"binary_data_size":8}}]}\x00\x00\x00\x00\x00\x00\xf0\x3f', "binary tensors"),
        (b"[" * 100_000, "expected a JSON document"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_body_that_is_no_json_is_400(body: bytes, said: str) -> None:
    answer = await Server().post(body, path=INFER)
    assert (answer.status_code, said in answer.json()["error"]) == (400, True), answer.text


async def test_other_errors_have_the_same_form() -> None:
    large = await Server().post(b" " * (MAX_BODY_BYTES + 1), path=INFER)
    typed = await Server().post(b"{}", path=INFER, headers={"content-type": "text/csv"})
    unknown = await infer(Server(), GOOD, path="/v2/models/nothing/infer")
    empty = await infer(Server(), GOOD, path="/v2/models/iris/infer")
    answers = [large, typed, unknown, empty]
    assert [answer.status_code for answer in answers] == [413, 415, 404, 503]
    assert all(list(answer.json()) == ["error"] for answer in answers)
    assert "retry-after" in empty.headers


async def test_model_of_windows_says_where_to_send_them() -> None:
    server = Server(signature=protocols.WINDOWS)
    answer = await infer(server, GOOD)
    assert answer.status_code == 400
    assert "send them as 'windows' to POST /predict/forecaster" in answer.json()["error"]
    inputs = (await server.get(f"/v2/models/{FAMILY}")).json()["inputs"]
    assert inputs == [{"name": "past", "datatype": "FP64", "shape": [-1, 4, 3]}]


def test_whatever_comes_is_answered_and_never_by_500() -> None:
    keys = st.sampled_from(["name", "datatype", "shape", "data", "parameters"])
    tensor = st.fixed_dictionaries(
        {
            "name": st.sampled_from([*COLUMNS, "x"]) | protocols.cells,
            "datatype": st.sampled_from(["FP64", "INT64", "BOOL", "BYTES"]) | protocols.cells,
            "shape": st.lists(st.integers(-1, 4) | protocols.cells, max_size=3) | protocols.cells,
            "data": protocols.lists | protocols.cells,
        },
        optional={"parameters": protocols.cells},
    )
    inputs = st.lists(tensor | st.dictionaries(keys, protocols.cells) | protocols.cells, max_size=3)
    documents = st.fixed_dictionaries(
        {"inputs": inputs | protocols.cells},
        optional=dict.fromkeys(["id", "outputs", "parameters"], protocols.cells | protocols.lists),
    )

    async def make() -> list[Server]:
        return [Server({"v1": row_sums}), mixed_server(), single_server()]

    with asyncio.Runner() as runner, structlog.testing.capture_logs():
        servers = runner.run(make())

        @settings(max_examples=300, deadline=None)
        @given(
            st.sampled_from(servers), documents.map(json.dumps).map(str.encode) | st.binary(max_size=60),
            protocols.media_types,
        )  # fmt: skip
        def ask(server: Server, body: bytes, content_type: bytes) -> None:
            async def post() -> httpx.Response:
                async with server.http() as client:
                    return await client.post(INFER, content=body, headers=[(b"content-type", content_type)])

            answer = runner.run(post())
            assert answer.status_code in (200, 400, 415), answer.text
            assert ("outputs" if answer.status_code == 200 else "error") in answer.json()

        ask()


# -- what is told


async def test_server_tells_of_itself() -> None:
    told = (await Server().get("/v2")).json()
    assert (told["name"], told["extensions"], bool(told["version"])) == ("serve-app", [], True)
    live = await Server().get("/v2/health/live")
    assert (live.status_code, live.json()) == (200, {"live": True})


async def test_server_is_ready_when_every_required_family_is() -> None:
    ready = await Server().get("/v2/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"live": True, "ready": True})
    empty = await Server(routed=None).get("/v2/health/ready")
    assert (empty.status_code, empty.json()) == (503, {"error": "not ready; without a model: forecaster"})
    assert empty.headers["retry-after"]


@pytest.mark.parametrize("path", ["", "/versions/v1"])
async def test_metadata_names_inputs_and_outputs_with_their_types(path: str) -> None:
    told = await mixed_server().get(f"/v2/models/{FAMILY}{path}")
    assert told.json() == {
        "name": FAMILY,
        "versions": ["v1"],
        "platform": "fake",
        "inputs": [
            {"name": "cpu", "datatype": "FP64", "shape": [-1]},
            {"name": "ram", "datatype": "INT64", "shape": [-1]},
            {"name": "load", "datatype": "BOOL", "shape": [-1]},
        ],
        "outputs": [
            {"name": "total", "datatype": "FP64", "shape": [-1]},
            {"name": "class", "datatype": "INT64", "shape": [-1]},
            {"name": "alarm", "datatype": "BOOL", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("end", ["", "/ready"])
@pytest.mark.parametrize(
    ("path", "status"),
    [(FAMILY, 200), (f"{FAMILY}/versions/v1", 200), (f"{FAMILY}/versions/v9", 404), ("nothing", 404), ("iris", 503)],
)
async def test_only_what_is_loaded_is_told_of(path: str, status: int, end: str) -> None:
    answer = await Server().get(f"/v2/models/{path}{end}")
    assert answer.status_code == status
    if status == 200 and end:
        assert answer.json() == {"name": FAMILY, "ready": True}
    assert ("error" in answer.json()) == (status != 200)


async def test_index_has_every_version_and_its_state() -> None:
    server = split_server(0)
    server.observe(loading={"v3": "fetching", "v1": "again"})
    async with server.http() as client:
        every = [await client.get("/v2/repository/index"), await client.post("/v2/repository/index", content=b"{}")]
        ready = await client.post("/v2/repository/index", json={"ready": True})
        broken = [await client.post("/v2/repository/index", content=body) for body in (b"{", b"[]", b'{"ready":1}')]
    assert every[0].json() == every[1].json()
    assert [(one["name"], one["version"], one["state"]) for one in every[0].json()] == [
        (FAMILY, "v1", "READY"),
        (FAMILY, "v2", "READY"),
        (FAMILY, "v3", "LOADING"),
        ("iris", "", "UNAVAILABLE"),
    ]
    assert every[0].json()[3]["reason"] == "it has no version yet"
    assert [(one["version"], one["state"]) for one in ready.json()] == [("v1", "READY"), ("v2", "READY")]
    assert all((answer.status_code, list(answer.json())) == (400, ["error"]) for answer in broken)
