from pathlib import Path

import numpy as np
import pytest

from tests.unit.training.recordings import write_recording
from training.fleet_data import Fleet
from training.fleet_simulator import METRICS, START_S, recorded_shocks, simulate

DAY = 288


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return simulate(servers=8, days=14, seed=1)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def test_same_arguments_give_the_same_fleet_and_another_seed_another(fleet: Fleet) -> None:
    assert simulate(servers=8, days=14, seed=1).digest() == fleet.digest()
    assert simulate(servers=8, days=14, seed=2).digest() != fleet.digest()


def test_fleet_is_whole_and_within_the_metrics_bounds(fleet: Fleet) -> None:
    assert fleet.values.shape == (8, 14 * DAY, 3)
    assert fleet.values.dtype == np.float32
    assert len(set(fleet.servers)) == 8
    assert (fleet.start_s, fleet.metrics) == (START_S, METRICS)
    assert np.isfinite(fleet.values).all()
    for column, metric in enumerate(METRICS):
        assert metric.minimum is not None
        assert fleet.values[..., column].min() >= metric.minimum
        if metric.maximum is not None:
            assert fleet.values[..., column].max() <= metric.maximum


@pytest.mark.parametrize("role", ["web", "db", "batch", "cache"])
def test_days_are_alike_and_have_a_peak(fleet: Fleet, role: str) -> None:
    cpu = fleet.values[fleet.servers.index(f"{role}-01"), :, 0].reshape(14, DAY)
    working = cpu[[0, 1, 2, 3, 4, 7, 8, 9, 10, 11]]
    curve = working.mean(axis=0)
    assert np.ptp(np.convolve(curve, np.ones(12) / 12, mode="valid")) > 8
    alike = [_correlation(day, np.delete(working, i, axis=0).mean(axis=0)) for i, day in enumerate(working)]
    assert np.median(alike) > 0.6


def test_weekends_of_web_servers_are_quieter(fleet: Fleet) -> None:
    cpu = fleet.values[fleet.servers.index("web-01"), :, 0].reshape(14, DAY).mean(axis=1)
    assert cpu[[5, 6, 12, 13]].mean() < 0.9 * cpu[[0, 1, 2, 3, 4, 7, 8, 9, 10, 11]].mean()


def _without_season(fleet: Fleet, server: str) -> np.ndarray:
    cpu = fleet.values[fleet.servers.index(server), :, 0].reshape(14, DAY)
    return (cpu - np.median(cpu, axis=0)).ravel()


def test_servers_of_one_site_share_load_that_those_of_another_do_not() -> None:
    fleet = simulate(servers=20, days=14, seed=5)  # the first and the fourth of a role stand at one site
    together = _correlation(_without_season(fleet, "web-01"), _without_season(fleet, "web-04"))
    apart = _correlation(_without_season(fleet, "web-01"), _without_season(fleet, "web-02"))
    assert together > apart + 0.1


def test_memory_leaks_until_a_deploy_on_a_working_day_gives_it_back(fleet: Fleet) -> None:
    memory = fleet.values[fleet.servers.index("cache-01"), :, 1].reshape(14, DAY)
    changes = np.diff(np.median(memory, axis=1))
    assert changes.min() < -1
    assert changes[[5, 12]].min() > 0  # Saturday to Sunday
    assert (changes > 0).sum() > (changes < 0).sum()


def test_backups_come_every_night_at_the_servers_own_hour(fleet: Fleet) -> None:
    for server in ("web-01", "db-02"):
        disk = np.log(fleet.values[fleet.servers.index(server), :, 2].reshape(14, DAY))
        night = disk[:, : 6 * 12]
        peak = int(np.median(night, axis=0).argmax())
        assert np.median(night[:, peak] - np.median(night, axis=1)) > 0.7


def test_recorded_shocks_are_standardised_minutes(tmp_path: Path) -> None:
    shocks = recorded_shocks(write_recording(tmp_path / "node.csv", 1800))
    assert shocks.shape == (30, 3)
    np.testing.assert_allclose(shocks.mean(axis=0), 0, atol=1e-9)
    assert np.isfinite(shocks).all()


def test_recording_of_the_repository_gives_shocks_that_change_the_fleet() -> None:
    shocks = recorded_shocks()
    np.testing.assert_allclose(shocks.std(axis=0), 1, atol=1e-9)
    fleet = simulate(servers=2, days=1, seed=1, shocks=shocks)
    assert fleet.digest() != simulate(servers=2, days=1, seed=1).digest()
    assert fleet.facts["shocks"] == f"drawn from {len(shocks)} recorded minutes"
