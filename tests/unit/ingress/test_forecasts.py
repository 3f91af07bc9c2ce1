import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.domain.errors import StoreError, UnavailableError
from serve_app.domain.reload import Route, RoutingTable
from serve_app.domain.signature import Column, Signature
from serve_app.domain.temporal import TemporalShape
from serve_app.domain.windows import Metric, WindowRules
from serve_app.ingress.api import build_api
from serve_app.ingress.forecasts import ForecastLimits, Temporal
from serve_app.ingress.inference import Inference, RequestLimits
from serve_app.usecases.coalesce_requests import BatchLimits
from serve_app.usecases.name_versions import NamedVersions
from serve_app.usecases.predict_windows import WindowForecaster
from serve_app.usecases.route_request import RequestRouter
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.predict_client import FakePredictClient
from tests.fakes.window_reader import FakeTrainedEntities, FakeWindowReader
from tests.reports import loaded, report
from tests.unit.ingress.administered import INGEST, ROLLOUT, admin_with
from tests.unit.ingress.serving import Meter

RULES = WindowRules((Metric("cpu", "percent", 0, 100), Metric("ram", "percent", 0, 100)), length=4)
SHAPE = TemporalShape(
    mode="tft", metrics=("cpu", "ram"), units=("percent", "percent"), max_encoder_length=3, max_prediction_length=2,
    step_s=300, quantiles=(0.1, 0.5, 0.9), n_entities=1,
)  # fmt: skip
SIGNATURE = Signature(
    inputs=(Column(name="server_key", dtype="int64"), Column(name="end_time_s"), Column(name="window", shape=(3, 2))),
    outputs=(Column(name="forecast", dtype="float32", shape=(2, 2, 3)),),
)


def counting(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Answer each place with its own number, so that a wrong order shows."""
    return np.tile(np.arange(12.0), (len(rows), 1))


class Gateway:
    """A temporal family `tft` and a family `forecaster` of rows."""

    def __init__(
        self, *, default: str = "forecaster", has_model: bool = True, security: dict[str, Any] | None = None
    ) -> None:
        self.clock = FakeClock()
        self.meter = Meter()
        client = FakePredictClient({"v1": counting}, family="tft")
        self.router = RequestRouter(
            ("forecaster", "tft"), default_family=default,
            clients={("forecaster", "cpu"): FakePredictClient(), ("tft", "cpu"): client},
            limits=BatchLimits(1000, 1 << 20, 100, 30.0),
        )  # fmt: skip
        self.end_step = int(self.clock.now_s() // 300)
        self.store = FakeWindowReader(RULES, now_s=self.clock.now_s())
        forecasters = {
            "tft": WindowForecaster(
                "tft", self.router, self.store, trained=FakeTrainedEntities({"v1": ["a"]}), clock=self.clock
            )
        }
        self.forecaster = forecasters["tft"]
        temporal = Temporal(
            forecasters, default="tft", answers_for=default, limits=ForecastLimits({"tft": 10_000}, 20_000, 4),
            meter=self.meter, clock=self.clock,
        )  # fmt: skip
        names = NamedVersions(
            self.router, FakeControlPlane("forecaster", "tft"), None, refresh=self._refresh, clock=self.clock,
            max_waiting=1,
        )  # fmt: skip
        inference = Inference(
            self.router, names, limits=RequestLimits(20_000, 100), meter=self.meter, access_log=False,
            elsewhere=temporal.paths,
        )  # fmt: skip
        self.api = build_api(
            self.router, inference, required=frozenset({"tft"}), collect_metrics=self._collect, temporal=temporal,
            admin=None if security is None else admin_with(FakeControlPlane("forecaster", "tft"), **security),
        )  # fmt: skip
        if has_model:
            version = loaded("v1", temporal=SHAPE, signature=SIGNATURE)
            self.router.observe("tft", "cpu", [report(version, family="tft")])
            self.router.follow(RoutingTable(generation=3, routes={"tft": Route(version="v1", digest="0" * 64)}))

    def fill(self, entity: str, steps: int = 3) -> None:
        self.store.fill(entity, steps, end_step=self.end_step)

    async def _refresh(self, family: str) -> None:
        raise AssertionError(family)

    async def _collect(self) -> bytes:
        return b""

    async def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.api)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            return await http.request(method, path, **request)

    def record(self, server: str = "a", *, steps_ago: int = 0, **metrics: Any) -> dict[str, Any]:
        return {"server": server, "timestamp": (self.end_step - steps_ago) * 300, "metrics": metrics or {"cpu": 1}}


@pytest.fixture
async def gateway() -> Gateway:
    return Gateway()


async def test_the_fleet_is_forecast_by_server_metric_and_quantile(gateway: Gateway) -> None:
    gateway.fill("a")
    gateway.fill("b")
    gateway.fill("young", 1)
    told = await gateway.ask("GET", "/predictions/current")
    assert told.status_code == 200
    body = told.json()
    assert set(body["predictions"]) == {"a", "b"}
    assert body["predictions"]["a"]["metrics"] == {
        "cpu": {"p10": [0.0, 6.0], "p50": [1.0, 7.0], "p90": [2.0, 8.0]},
        "ram": {"p10": [3.0, 9.0], "p50": [4.0, 10.0], "p90": [5.0, 11.0]},
    }
    assert (body["predictions"]["a"]["known"], body["predictions"]["b"]["known"]) == (True, False)
    assert body["not_ready"] == {"young": "1 of 3 steps"}
    facts = body["metadata"]
    assert facts["servers"] == {"ready": 2, "not_ready": 1, "known": 1}
    names = ("model_type", "model_family", "model_version", "generation", "horizon_steps", "store_error")
    assert [facts[name] for name in names] == ["tft", "tft", "v1", 3, 2, None]
    assert facts["staleness_s"] == pytest.approx(gateway.clock.now_s() - gateway.end_step * 300, abs=0.001)
    headers = ("x-model-family", "x-model-version", "x-model-variant", "x-route-reason", "x-generation")
    assert [told.headers[name] for name in headers] == ["tft", "v1", "stable", "default", "3"]


async def test_more_servers_than_are_written_at_once_are_all_there(gateway: Gateway) -> None:
    names = {f"s{i}" for i in range(101)}
    for name in names:
        gateway.fill(name)
    assert set((await gateway.ask("GET", "/predictions/current")).json()["predictions"]) == names


async def test_nobody_observed_is_an_empty_answer(gateway: Gateway) -> None:
    body = (await gateway.ask("GET", "/predictions/current?family=tft")).json()
    assert (body["predictions"], body["not_ready"], body["metadata"]["newest_observation_at"]) == ({}, {}, None)


async def test_one_server_is_forecast_alone(gateway: Gateway) -> None:
    gateway.fill("a")
    gateway.fill("b")
    body = (await gateway.ask("GET", "/predictions/a")).json()
    assert set(body["predictions"]) == {"a"}


async def test_a_server_that_is_not_ready_or_not_known_gets_a_sentence(gateway: Gateway) -> None:
    gateway.fill("young", 2)
    young = await gateway.ask("GET", "/predictions/young")
    assert (young.status_code, young.json()["detail"]) == (
        409, "server 'young' cannot be predicted yet: 2 of 3 steps"
    )  # fmt: skip
    nobody = await gateway.ask("GET", "/predictions/nobody")
    assert (nobody.status_code, nobody.json()["detail"]) == (404, "nothing was observed of server 'nobody'")


async def test_forecasts_are_counted_once_with_their_version(gateway: Gateway) -> None:
    await gateway.ask("GET", "/predictions/current")
    await gateway.ask("GET", "/predictions/nobody")
    assert gateway.meter.seen == [("tft", "v1", "stable", 200)]
    assert gateway.meter.http == [("GET", "/predictions/current", 200), ("GET", "/predictions/{server}", 404)]


@pytest.mark.parametrize(
    ("family", "known"), [("forecaster", "tft"), ("nothing", "tft")],
)  # fmt: skip
async def test_a_family_without_windows_is_refused(gateway: Gateway, family: str, known: str) -> None:
    for method, path in (("GET", "/predictions/current"), ("POST", "/observations"), ("GET", "/observations")):
        told = await gateway.ask(method, path, params={"family": family})
        assert told.status_code == 404
        assert known in told.json()["detail"]


async def test_closed_route_takes_observations_from_those_who_may_send_them_alone() -> None:
    closed = Gateway(security={"closed_ingest": True})
    for headers, status in (({}, 401), ({"X-API-Key": ROLLOUT}, 403)):
        told = await closed.ask("POST", "/observations", json=[closed.record()], headers=headers)
        assert (told.status_code, list(told.json())) == (status, ["detail"])
    assert await closed.store.entities() == ()
    told = await closed.ask("POST", "/observations", json=[closed.record()], headers={"X-API-Key": INGEST})
    assert (told.status_code, told.json()["accepted"]) == (200, 1)
    assert (await closed.ask("GET", "/observations")).status_code == 200, "to read needs no token, as ever"


async def test_records_are_taken_and_counted_by_what_became_of_them(gateway: Gateway) -> None:
    records = [gateway.record(), gateway.record(), gateway.record(steps_ago=1), gateway.record(cpu=101)]
    told = await gateway.ask("POST", "/observations", json=records)
    assert told.status_code == 200
    assert told.json() == {
        "accepted": 3,
        "refused": 1,
        "records": {"taken": 1, "duplicate": 1, "out_of_order": 1, "out_of_range": 1},
        "problems": [{"record": 3, "kind": "out_of_range", "detail": "cpu: expected 0 to 100 percent, got 101"}],
    }


async def test_records_of_which_none_was_taken_are_a_mistake_of_the_sender(gateway: Gateway) -> None:
    told = await gateway.ask("POST", "/observations", json=[gateway.record(cpu=101), gateway.record(disk=1)])
    assert told.status_code == 422
    assert told.json()["detail"].startswith("none of 2 records was taken; the first: cpu: expected 0 to 100")


async def test_lines_of_json_are_taken_as_records(gateway: Gateway) -> None:
    body = b"\n".join(orjson.dumps(gateway.record(name)) for name in "abc")
    told = await gateway.ask("POST", "/observations", content=body, headers={"content-type": "application/x-ndjson"})
    assert told.json()["records"] == {"taken": 3}


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        (b"", 400, "expected JSON"),
        (b"[]", 422, "expected at least one record, got none"),
        (b'{"server": "a"}', 422, "expected one of timestamp, time, at"),
        (b"[" + b" " * 10_000 + b"]", 413, "expected a body of at most 10000 bytes"),
    ],
)
async def test_a_body_of_no_records_is_refused_as_a_whole(
    gateway: Gateway, body: bytes, status: int, problem: str
) -> None:
    told = await gateway.ask("POST", "/observations", content=body)
    assert told.status_code == status
    assert problem in told.json()["detail"]
    assert len(gateway.store.table) == 0


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (UnavailableError("the store is away"), "the store is away"),
        (StoreError("the disk is full"), "the disk is full"),
    ],
)
async def test_records_that_cannot_be_kept_now_may_be_sent_again(
    gateway: Gateway, error: Exception, problem: str
) -> None:
    gateway.store.error = error
    told = await gateway.ask("POST", "/observations", json=gateway.record())
    assert (told.status_code, told.json()["detail"]) == (503, problem)


async def test_what_is_kept_is_told_with_those_that_lack_something(gateway: Gateway) -> None:
    gateway.fill("a")
    gateway.fill("young", 2)
    await gateway.ask("POST", "/observations", json=gateway.record("a", cpu=5))
    told = (await gateway.ask("GET", "/observations")).json()
    assert (told["family"], told["servers"], told["ready"]) == ("tft", 2, 1)
    assert told["not_ready"] == {"young": "2 of 3 steps"}
    assert told["records"] == {"replaced": 1}


async def test_the_warm_up_of_one_server_is_told(gateway: Gateway) -> None:
    gateway.fill("a")
    gateway.fill("young", 2)
    ready = (await gateway.ask("GET", "/observations/a")).json()
    assert (ready["ready"], ready["lacks"], ready["metrics"]) == (True, None, ["cpu", "ram"])
    assert ready["values"] == [[(gateway.end_step - ago) % 100] * 2 for ago in (2, 1, 0)]
    assert (await gateway.ask("GET", "/observations/young")).json() == {
        "server": "young", "ready": False, "lacks": "2 of 3 steps", "window_end": None,
    }  # fmt: skip


async def test_what_is_kept_is_told_before_there_is_a_model() -> None:
    gateway = Gateway(has_model=False)
    gateway.fill("a")
    told = (await gateway.ask("GET", "/observations")).json()
    assert (told["servers"], "ready" in told) == (1, False)
    assert (await gateway.ask("GET", "/predictions/current")).status_code == 503


async def test_windows_of_a_request_are_forecast(gateway: Gateway) -> None:
    window = {"server": "x", "end_time": "2026-01-30T09:00:00Z", "values": [[1, 2], [3, None]]}
    told = await gateway.ask("POST", "/predict/tft", json={"windows": [window]})
    assert told.status_code == 200
    assert told.json()["predictions"]["x"]["window_end"] == "2026-01-30T09:00:00Z"
    assert gateway.meter.http == [("POST", "/predict/tft", 200)]


async def test_windows_are_refused_with_a_sentence(gateway: Gateway) -> None:
    window = {"server": "x", "end_time": 0, "values": [[1]]}
    told = await gateway.ask("POST", "/predict/tft", json={"windows": [window]})
    assert told.status_code == 422
    assert told.json()["detail"] == "window 0, step 0: expected 2 values (cpu, ram), got 1"
    assert (await gateway.ask("POST", "/predict/tft", content=b"nonsense")).status_code == 400


async def test_the_default_path_belongs_to_windows_where_the_default_family_has_them() -> None:
    gateway = Gateway(default="tft")
    window = {"server": "x", "end_time": 0, "values": [[1, 2]]}
    for path in ("/predict/", "/predict"):
        assert (await gateway.ask("POST", path, json={"windows": [window]})).status_code == 200


async def test_rows_for_another_family_go_where_they_always_went(gateway: Gateway) -> None:
    assert (await gateway.ask("POST", "/predict/forecaster", json={"instances": [[1]]})).status_code == 503


async def test_a_version_may_be_forced(gateway: Gateway) -> None:
    gateway.fill("a")
    told = await gateway.ask("GET", "/predictions/current", headers={"x-model-version": "v1"})
    assert told.headers["x-route-reason"] == "forced"
    wrong = await gateway.ask("GET", "/predictions/current", headers={"x-model-version": "v9"})
    assert wrong.status_code == 404


async def test_health_tells_what_is_kept(gateway: Gateway) -> None:
    gateway.fill("a")
    await gateway.forecaster.look()
    families = (await gateway.ask("GET", "/health")).json()["families"]
    assert families["tft"]["windows"]["servers"] == 1
    assert "windows" not in families["forecaster"]
    gateway.store.error = UnavailableError("away")
    await gateway.forecaster.look()
    families = (await gateway.ask("GET", "/health")).json()["families"]
    assert families["tft"]["windows"]["last_error"] == "the store of windows does not answer"


TEXT = st.characters(exclude_categories=["Cs"])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**63 - 1) | st.text(TEXT, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "server",
                    "timestamp",
                    "metrics",
                    "cpu",
                    "ram",
                    "units",
                    "records",
                    "windows",
                    "values",
                    "end_time",
                    "x",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


class Asking:
    """One gateway for many questions, from tests that are no coroutines."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._gateway = runner.run(self._made())

    @staticmethod
    async def _made() -> Gateway:
        return Gateway()

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        return self._runner.run(self._gateway.ask(method, path, **request))


@pytest.fixture(scope="module")
def asking() -> Iterator[Asking]:
    with asyncio.Runner() as runner:
        yield Asking(runner)


@settings(max_examples=300, deadline=None)
@given(
    path=st.sampled_from(["/observations", "/predict/tft", "/observations?family=tft"]),
    body=JSON.map(orjson.dumps) | st.binary(max_size=60),
    content_type=st.sampled_from(["application/json", "application/x-ndjson", ""]),
)
def test_no_body_is_an_error_of_the_server(asking: Asking, path: str, body: bytes, content_type: str) -> None:
    told = asking.ask("POST", path, content=body, headers={"content-type": content_type})
    assert told.status_code in (200, 400, 413, 422), told.text
    assert told.status_code == 200 or told.json()["detail"]


@settings(max_examples=100, deadline=None)
@given(name=st.text(min_size=1, max_size=40))
def test_no_name_is_an_error_of_the_server(asking: Asking, name: str) -> None:
    for path in ("/predictions/", "/observations/"):
        told = asking.ask("GET", path + quote(name, safe="", errors="replace"))
        assert told.status_code in (200, 307, 404, 405, 409), (name, told.text)
