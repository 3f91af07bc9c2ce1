import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.domain.errors import CannotExplainError, UnavailableError
from serve_app.domain.signature import Column, Signature
from serve_app.domain.temporal import TemporalShape
from serve_app.ingress.api import build_api
from serve_app.ingress.explain import Explanations
from serve_app.usecases.explain_prediction import ExplainLimits, ExplainPrediction
from serve_app.usecases.explanation import Contributions, Explained, Method, OutputContributions, TemporalWeights
from serve_app.usecases.window_ports import FleetWindows
from serve_app.usecases.window_rows import unpack_rows
from tests.fakes.explain_client import Explain, FakeExplainClient, of_row_sums
from tests.reports import loaded, report
from tests.unit.ingress.serving import FAMILY, MAX_BODY_BYTES, Server

pytestmark = pytest.mark.usefixtures("quiet")

NOON_S = 1_769_774_400.0
SHAPE = TemporalShape(
    mode="tft", metrics=("cpu", "ram"), units=("percent", "percent"), max_encoder_length=3, max_prediction_length=2,
    step_s=300, quantiles=(0.1, 0.5, 0.9), n_entities=4,
)  # fmt: skip
WINDOWED = Signature(
    inputs=(Column(name="server_key", dtype="int64"), Column(name="end_time_s"), Column(name="window", shape=(3, 2))),
    outputs=(Column(name="forecast", shape=(2, 2, 3)),),
)


class Store:
    """Keeps windows of a and b; c is not warmed up."""

    async def windows(
        self, shape: TemporalShape, entities: Sequence[str] | None, *, unless_revision: int | None = None
    ) -> FleetWindows:
        assert entities is not None
        ready = tuple(name for name in entities if name in "ab")
        lacking = {name: "1 of 3 steps" for name in entities if name not in ready}
        values = np.ones((len(ready), 3, 2), dtype=np.float32)
        return FleetWindows(7, ready, values, np.full(len(ready), NOON_S), lacking)


def looked_at(rows: NDArray[np.float64]) -> TemporalWeights:
    """Answer shares that show how many rows came."""
    batch = unpack_rows(SHAPE, rows)
    n = len(batch.windows)
    attention = np.tile(np.array([[0.5, 0.25, 0.25, 0, 0], [0.25, 0.25, 0.25, 0.25, 0]], np.float32), (n, 1, 1))
    return TemporalWeights(
        ("server", "level"), ("cpu", "ram"), ("time_of_day",),
        np.tile(np.array([0.25, 0.75], np.float32), (n, 1)),
        np.tile(np.array([[1, 0], [0.5, 0.5], [0, 1]], np.float32), (n, 1, 1)),
        np.ones((n, 2, 1), np.float32), attention,
    )  # fmt: skip


class ExplainingServer(Server):
    """The server of all tests, with explanations; with `is_temporal` its models take windows."""

    def __init__(self, explain: Explain | None = None, *, is_temporal: bool = False, store: bool = True) -> None:
        super().__init__(signature=WINDOWED if is_temporal else None)
        if is_temporal:
            self.router.observe(FAMILY, "cpu", [report(loaded("v1", signature=WINDOWED, temporal=SHAPE))])
        self.explainer = FakeExplainClient({"v1": explain or (looked_at if is_temporal else of_row_sums)})
        stores: Mapping[str, Any] = {FAMILY: Store()} if store else {}
        explanations = Explanations(
            self.router, self.names, ExplainPrediction({(FAMILY, "cpu"): self.explainer}, ExplainLimits(max_rows=3)),
            max_body_bytes=MAX_BODY_BYTES, stores=stores,
        )  # fmt: skip
        self.api = build_api(
            self.router, self.inference, required=frozenset({FAMILY}), collect_metrics=self._collect_metrics,
            explanations=explanations,
        )  # fmt: skip

    async def ask(self, document: Any, family: str = FAMILY, **headers: str) -> httpx.Response:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return await self.post(body, path=f"/explain/{family}", headers=headers)


ROW = [1.0, 2.0, 4.0]


async def test_contributions_come_by_name_with_who_made_them() -> None:
    answer = await ExplainingServer().ask({"instances": [ROW, {"load": 1, "cpu": 2, "ram": 3}]})
    assert answer.status_code == 200
    told = answer.json()
    assert told["explanations"][0] == {
        "y": {
            "prediction": 7.0,
            "explained": "value",
            "value": 7.0,
            "base": 0.0,
            "contributions": {"cpu": 1.0, "ram": 2.0, "load": 4.0},
            "method": "linear_shap",
        }
    }
    assert told["explanations"][1]["y"]["contributions"] == {"cpu": 2.0, "ram": 3.0, "load": 1.0}
    assert (told["model_family"], told["model_version"], told["generation"]) == (FAMILY, "v1", 1)
    assert told["tolerance"] == 1e-6
    headers = ("x-model-family", "x-model-version", "x-model-variant", "x-route-reason", "x-generation")
    assert [answer.headers[name] for name in headers] == [FAMILY, "v1", "stable", "default", "1"]
    assert answer.headers["content-type"] == "application/json"


async def test_label_comes_with_the_number_that_is_explained() -> None:
    def of_label(rows: NDArray[np.float64]) -> Contributions:
        labels = np.array(["high"], dtype=object)
        output = OutputContributions(
            labels, Explained.PROBABILITY, Method.TREE_SHAP, np.array([0.75]), np.array([0.25]), np.array([[0.5, 0, 0]])
        )
        return Contributions(("cpu", "ram", "load"), {"level": output})

    (told,) = (await ExplainingServer(of_label).ask({"instances": ROW})).json()["explanations"]
    assert (told["level"]["prediction"], told["level"]["explained"], told["level"]["value"]) == (
        "high", "probability", 0.75,
    )  # fmt: skip


async def test_version_that_is_forced_explains() -> None:
    server = ExplainingServer()
    answer = await server.ask({"instances": ROW}, **{"x-model-version": "v1"})
    assert (answer.status_code, answer.headers["x-route-reason"]) == (200, "forced")
    answer = await server.ask({"instances": ROW}, **{"x-model-version": "v9"})
    assert (answer.status_code, server.explainer.asked) == (404, ["v1"])


async def test_version_named_in_the_query_is_never_answered_by_another() -> None:
    server = ExplainingServer()
    answer = await server.post(json.dumps({"instances": ROW}).encode(), path="/explain/forecaster?version=v9")
    assert (answer.status_code, server.explainer.asked) == (404, [])


@pytest.mark.parametrize(
    ("document", "family", "status", "said"),
    [
        (b"{", FAMILY, 400, "expected a JSON document"),
        ({"instances": [[1, 2]]}, FAMILY, 422, "row 0: expected 3 values"),
        ({"instances": [ROW] * 4}, FAMILY, 422, "expected at most 3 rows in a request, got 4"),
        ({"servers": ["a"]}, FAMILY, 422, "unknown key 'servers'"),
        ({"instances": ROW}, "forcaster", 404, "unknown family 'forcaster' (did you mean 'forecaster'?)"),
        ({"instances": ROW}, "iris", 503, "family 'iris' has no model yet"),
        (b"[" + b" " * MAX_BODY_BYTES + b"]", FAMILY, 413, f"expected a body of at most {MAX_BODY_BYTES} bytes"),
    ],
    ids=["no json", "short row", "many rows", "servers", "unknown family", "no model", "huge"],
)
async def test_wrong_requests_are_refused_in_a_sentence(document: Any, family: str, status: int, said: str) -> None:
    answer = await ExplainingServer().ask(document, family)
    assert answer.status_code == status
    assert said in answer.json()["detail"]


async def test_other_content_is_refused() -> None:
    assert (await ExplainingServer().ask(b"x", **{"content-type": "text/csv"})).status_code == 415


@pytest.mark.parametrize(
    ("error", "status"),
    [(CannotExplainError("pip install it"), 501), (UnavailableError("no explanation within 30 s"), 503)],
    ids=["cannot", "not now"],
)
async def test_what_keeps_a_replica_from_explaining_is_told(error: Exception, status: int) -> None:
    def fail(rows: NDArray[np.float64]) -> Contributions:
        raise error

    answer = await ExplainingServer(fail).ask({"instances": ROW})
    assert (answer.status_code, answer.json()) == (status, {"detail": str(error)})


WINDOW = {"server": "a", "end_time": NOON_S, "values": [[1, 2], [3, None]]}


async def test_weights_come_by_server_with_means_over_time() -> None:
    answer = await ExplainingServer(is_temporal=True).ask({"windows": [WINDOW, {**WINDOW, "server": "z"}]})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert [of["server"] for of in told["explanations"]] == ["a", "z"]
    assert told["explanations"][0] == {
        "server": "a",
        "window_end": "2026-01-30T12:00:00Z",
        "static": {"server": 0.25, "level": 0.75},
        "past": {"cpu": 0.5, "ram": 0.5},
        "future": {"time_of_day": 1.0},
        "attention": {"first_step": -2, "weights": [0.375, 0.25, 0.25, 0.125, 0.0]},
    }
    assert (told["metrics"], told["not_ready"], told["model_version"]) == (["cpu", "ram"], {}, "v1")
    assert answer.headers["x-model-version"] == "v1"


async def test_detail_has_every_step() -> None:
    answer = await ExplainingServer(is_temporal=True).ask({"windows": [WINDOW], "detail": True})
    detail = answer.json()["explanations"][0]["detail"]
    assert detail["past"] == [[1, 0], [0.5, 0.5], [0, 1]]
    assert detail["future"] == [[1], [1]]
    assert detail["attention"] == [[0.5, 0.25, 0.25, 0, 0], [0.25, 0.25, 0.25, 0.25, 0]]


async def test_servers_are_explained_from_the_kept_windows() -> None:
    told = (await ExplainingServer(is_temporal=True).ask({"servers": ["b", "c", "b"]})).json()
    assert [of["server"] for of in told["explanations"]] == ["b"]
    assert told["not_ready"] == {"c": "1 of 3 steps"}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"instances": [ROW]}, "expected an object with one of 'servers' and 'windows', got an object"),
        ({"windows": [WINDOW], "servers": ["a"]}, "expected an object with one of 'servers' and 'windows'"),
        ({"windows": [WINDOW], "details": True}, "unknown key 'details'"),
        ({"windows": [WINDOW], "detail": 1}, "'detail': expected true or false, got the number 1"),
        ({"windows": [WINDOW] * 4}, "'windows': expected 1 to 3 windows, got 4"),
        ({"servers": []}, "'servers': expected a list of 1 to 3 servers, got a list of 0"),
        ({"servers": ["a", 7]}, "'servers', 1: expected a name of 1 to 256 characters, got the number 7"),
        ({"servers": ["c"]}, "server 'c' cannot be predicted yet: 1 of 3 steps"),
    ],
)
async def test_wrong_windows_are_refused_in_a_sentence(document: Any, said: str) -> None:
    answer = await ExplainingServer(is_temporal=True).ask(document)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


async def test_family_without_a_store_takes_windows_only() -> None:
    server = ExplainingServer(is_temporal=True, store=False)
    answer = await server.ask({"servers": ["a"]})
    assert (answer.status_code, "send them as 'windows'" in answer.json()["detail"]) == (422, True)
    assert (await server.ask({"windows": [WINDOW]})).status_code == 200


Scalar = st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.floats(allow_nan=False) | st.text(max_size=5)
KEYS = ["instances", "features", "entity", "windows", "servers", "detail", "server", "end_time", "values", "cpu"]
Json = st.recursive(
    Scalar | st.just(ROW) | st.just(WINDOW) | st.sampled_from(["a", "c"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=10,
)
Body = st.binary(max_size=40) | Json | st.dictionaries(st.sampled_from(KEYS), Json, max_size=3)
SERVERS: dict[bool, ExplainingServer] = {}


@settings(max_examples=150, deadline=None)
@given(Body, st.booleans())
async def test_any_body_is_explained_or_refused(document: Any, is_temporal: bool) -> None:
    if is_temporal not in SERVERS:
        SERVERS[is_temporal] = ExplainingServer(is_temporal=is_temporal)
    server = SERVERS[is_temporal]
    body = document if isinstance(document, bytes) else b""
    if not isinstance(document, bytes):
        with contextlib.suppress(TypeError):  # an infinite number, which JSON does not have
            body = orjson.dumps(document)
    answer = await server.ask(body)
    assert answer.status_code in (200, 400, 422), answer.text
    assert ("detail" in answer.json()) == (answer.status_code != 200)
