import numpy as np
import pytest

from serve_app.adapters.loaders.tft.forecaster import TftForecaster
from serve_app.adapters.loaders.tft.server_mapping import ServerMapping
from serve_app.adapters.loaders.tft.tft_config import TftConfig
from tests.unit.training.fleets import hourly_config, hourly_fleet
from training.tft_report import TftReport, horizon_groups, judge, report_table

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def _report(**changes: int | None) -> TftReport:
    fleet = hourly_fleet()
    forecaster = TftForecaster(hourly_config(**changes), len(fleet.servers)).eval().requires_grad_(False)
    return judge(forecaster, ServerMapping.of(fleet.servers), fleet, first=400, stride=5)


def test_groups_are_half_an_hour_two_hours_and_the_rest() -> None:
    assert horizon_groups(TftConfig(metrics=hourly_config().metrics)) == {
        "to 30 min": slice(0, 6),
        "to 2 h": slice(6, 24),
        "to 8 h": slice(24, 96),
    }
    assert horizon_groups(hourly_config()) == {"to 2 h": slice(0, 2), "to 6 h": slice(2, 6)}


def test_baselines_are_those_of_plain_loops() -> None:
    fleet = hourly_fleet()
    errors: dict[str, list[float]] = {"persistence": [], "seasonal_naive": []}
    for end in range(399, fleet.n_steps - 6, 5):
        for server in range(5):
            series = fleet.values[server, :, 0]
            last = [value for value in series[end - 23 : end + 1] if not np.isnan(value)][-1]
            for h in (1, 2):
                errors["persistence"].append(abs(last - series[end + h]))
                errors["seasonal_naive"].append(abs(series[end + h - 24] - series[end + h]))
    found = _report().groups[0]
    assert (found.metric, found.horizon) == ("cpu_percent", "to 2 h")
    for name, expected in errors.items():
        assert found.mae[name] == pytest.approx(np.nanmean(expected), rel=1e-5)


def test_window_shorter_than_a_day_has_a_baseline_too() -> None:
    report = _report(max_encoder_length=10, season_steps=None)
    assert all(np.isfinite(list(group.mae.values())).all() for group in report.groups)


def test_json_says_who_won() -> None:
    report = _report()
    document = report.as_json()
    assert document["windows"] == report.n_windows == 5 * len(range(399, 480 - 6, 5))
    for group in report.groups:
        numbers = document["metrics"][group.metric][group.horizon]
        for name in ("persistence", "seasonal_naive"):
            assert (name in numbers["beaten_by"]) == (group.mae[name] <= group.mae["model"])


def test_table_has_a_line_for_each_group() -> None:
    report = _report()
    assert report_table("held-out", report.groups).row_count == len(report.groups) == 4
