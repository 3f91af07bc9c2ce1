"""A temporal family on a real server: fed, forecast, reloaded, killed."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.contracts.redis_server import NoRedisError, RedisServer, redis_server
from tests.integration import fleet
from tests.integration.fleet import Dashboard, Feeder, FleetServer
from tests.integration.instance import await_that
from tests.tft_bundles import write_tft_bundle

pytestmark = pytest.mark.ray

SERVERS = tuple(f"srv-{i:02}" for i in range(50))
BACK_S, BACK_ON_A_BUSY_MACHINE_S = 15.0, 30.0  # the first is the aim; `make chaos` and the benchmark hold it
N_RELOADS, N_RELOADS_OF_REACH = 4, 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetServer]:
    directory = tmp_path_factory.mktemp("fleet")
    for seed, version in enumerate(("tft_model_20260101_000000", "tft_model_20260102_000000")):
        write_tft_bundle(directory / "state" / "models" / "tft", version, seed=seed)
    with fleet.running(directory) as running:
        yield running


@pytest.fixture(scope="module")
def fed(server: FleetServer) -> Feeder:
    feeder = Feeder(server.instance.address, SERVERS)
    feeder.warm_up()
    return feeder


def versions(server: FleetServer) -> list[str]:
    return sorted(path.name for path in server.root.iterdir() if path.name.startswith("tft_model_") and path.is_dir())


def test_servers_are_forecast_once_they_have_warmed_up(server: FleetServer, fed: Feeder) -> None:
    record = {"server": "young", "timestamp": fed.step * fleet.STEP_S, "metrics": dict.fromkeys(fleet.METRICS, 1)}
    server.http.post("/observations", json=record)
    body = server.current().json()
    assert set(body["predictions"]) == set(SERVERS)
    assert body["not_ready"] == {"young": f"1 of {fleet.ENCODER} steps"}
    assert body["metadata"]["model_type"] == "tft"
    forecast = body["predictions"]["srv-00"]["metrics"]["cpu_percent"]
    assert [len(forecast[name]) for name in ("p10", "p50", "p90")] == [fleet.HORIZON] * 3
    assert (np.array(forecast["p10"]) <= np.array(forecast["p90"])).all()


def test_windows_of_a_request_are_forecast_as_those_that_are_kept(server: FleetServer, fed: Feeder) -> None:
    kept = server.http.get("/predictions/srv-07").json()["predictions"]["srv-07"]
    window = {"server": "srv-07", "end_time": kept["window_end"], "values": fed.values("srv-07").tolist()}
    sent = server.http.post("/predict/tft", json={"windows": [window]}).json()["predictions"]["srv-07"]
    for metric in fleet.METRICS:
        np.testing.assert_allclose(sent["metrics"][metric]["p50"], kept["metrics"][metric]["p50"], rtol=1e-4)


def test_what_the_server_keeps_is_what_was_sent(server: FleetServer, fed: Feeder) -> None:
    assert server.windows(SERVERS[:5]) == fed.windows(SERVERS[:5])


def test_an_explanation_is_that_of_the_version_that_forecasts(server: FleetServer, fed: Feeder) -> None:
    for version in (*versions(server), versions(server)[0]):
        assert server.reload(version)["success"] is True
        told = server.http.post("/explain/tft", json={"servers": ["srv-03"]})
        assert told.headers["x-model-version"] == server.current().headers["x-model-version"] == version
        (explained,) = told.json()["explanations"]
        assert explained["server"] == "srv-03"
        assert sum(explained["static"].values()) == pytest.approx(1, abs=1e-3)


def test_the_fleet_is_told_by_the_admin_route_and_by_health(server: FleetServer, fed: Feeder) -> None:
    told = server.http.get("/admin/model-info", headers=server.admin).json()
    assert (told["mode"], told["config"]) == ("tft", {"max_prediction_length": 8, "max_encoder_length": 24})
    assert told["servers"]["total"] >= len(SERVERS)

    def is_told() -> bool:
        windows = server.http.get("/health").json()["families"]["tft"]["windows"]
        return windows["last_error"] is None and windows["servers"] == told["servers"]["total"]

    await_that(is_told, timeout_s=10)


def test_metrics_tell_what_became_of_records(server: FleetServer, fed: Feeder) -> None:
    text = server.http.get("/metrics").text
    assert 'serve_app_observations_total{family="tft",fate="taken"' in text
    assert "serve_app_window_entities{" in text


def assert_reloads_touch_no_window(server: FleetServer, fed: Feeder, n: int) -> None:
    feeder = fed.again()
    with feeder.feeding(), Dashboard(server.instance.address).looking() as dashboard:
        for i in range(n):
            version = versions(server)[i % 2]
            told = server.reload(version)
            assert told["success"] is True, told
            feeder.await_steps(2)
    fed.step = feeder.step
    assert dashboard.failed == []
    assert feeder.n_retries == 0
    assert {each.ready for each in dashboard.answers} == {len(SERVERS)}  # nobody warmed up again
    assert not any(each.is_from_memory for each in dashboard.answers)
    assert server.windows(SERVERS) == feeder.windows(SERVERS)
    assert len(dashboard.versions) >= n


def test_reloads_touch_no_window_and_fail_no_forecast(server: FleetServer, fed: Feeder) -> None:
    assert_reloads_touch_no_window(server, fed, N_RELOADS)


@pytest.mark.chaos
def test_thirty_reloads_touch_no_window_and_fail_no_forecast(server: FleetServer, fed: Feeder) -> None:
    assert_reloads_touch_no_window(server, fed, N_RELOADS_OF_REACH)


def test_a_killed_store_loses_nothing_that_was_acknowledged(server: FleetServer, fed: Feeder) -> None:
    feeder = fed.again()
    with feeder.feeding(), Dashboard(server.instance.address).looking() as dashboard:
        feeder.await_steps(20)
        store = server.process("tft-windows")
        store.kill()
        server.await_another("tft-windows", store)
        feeder.await_steps(20)
    fed.step = feeder.step
    assert feeder.longest_outage_s <= BACK_ON_A_BUSY_MACHINE_S, feeder.longest_outage_s
    assert server.windows(SERVERS) == feeder.windows(SERVERS)
    assert dashboard.failed == []  # whoever asked meanwhile waited, or got the last forecasts, which said so


def test_a_killed_model_replica_comes_back_and_no_window_is_touched(server: FleetServer, fed: Feeder) -> None:
    feeder = fed.again()
    replica = server.process("tft-cpu")
    with feeder.feeding(), Dashboard(server.instance.address).looking() as dashboard:
        feeder.await_steps(5)
        replica.kill()
        server.await_another("tft-cpu", replica)
        await_that(lambda: server.current().status_code == 200, timeout_s=60)
        feeder.await_steps(5)
    fed.step = feeder.step
    assert feeder.n_retries == 0
    good = sorted(each.at_s for each in dashboard.answers if each.status == 200)
    assert max(after - before for before, after in pairwise(good)) <= BACK_ON_A_BUSY_MACHINE_S
    assert {each.status for each in dashboard.failed} <= {503}  # the only replica was gone
    assert server.windows(SERVERS) == feeder.windows(SERVERS)


def test_a_restart_of_everything_finds_the_windows(server: FleetServer, fed: Feeder) -> None:
    server.instance.run("down")
    started = server.instance.up()
    assert started.returncode == 0, started.stdout + started.stderr
    assert server.windows(SERVERS) == fed.windows(SERVERS)
    assert server.current().json()["metadata"]["servers"]["ready"] == len(SERVERS)


@pytest.mark.chaos
def test_windows_in_redis_survive_the_store_redis_and_the_state_directory(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    try:
        with redis_server() as redis:
            assert_windows_survive_in(redis, tmp_path_factory.mktemp("redis"))
    except NoRedisError as error:
        pytest.skip(str(error))


def assert_windows_survive_in(redis: RedisServer, directory: Path) -> None:
    write_tft_bundle(directory / "state" / "models" / "tft", "tft_model_20260101_000000")
    metrics = [{"name": name} for name in fleet.METRICS]
    windows = {"metrics": metrics, "length": fleet.ENCODER, "store": {"kind": "redis", "url": redis.url}}
    with fleet.running(directory, windows=windows) as server:
        feeder = Feeder(server.instance.address, SERVERS)
        feeder.warm_up()
        with feeder.feeding():
            feeder.await_steps(10)
            store = server.process("tft-windows")
            store.kill()
            server.await_another("tft-windows", store)
            feeder.await_steps(10)
            redis.kill()
            redis.start()
            feeder.await_steps(10)
        assert feeder.longest_outage_s <= BACK_S
        assert server.windows(SERVERS) == feeder.windows(SERVERS)
        server.instance.run("down")
        assert not (server.instance.state.path / "windows").exists()
        started = server.instance.up()
        assert started.returncode == 0, started.stdout + started.stderr
        assert server.windows(SERVERS) == feeder.windows(SERVERS)
