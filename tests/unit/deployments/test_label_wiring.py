from pathlib import Path
from typing import Any

import pytest

from serve_app.adapters.prometheus_metrics import GatewayMetrics, exposition, snapshot
from serve_app.config import AppConfig
from serve_app.deployments.label_wiring import make_labels
from serve_app.domain.errors import ConfigError
from serve_app.domain.labels import GivenLabel, PredictionId
from tests.fakes.clock import FakeClock
from tests.labelled import answer, target


def config(state_dir: Path, **families: dict[str, Any]) -> AppConfig:
    base = {"models_type": "sklearn", "source": {"root": "models"}}
    return AppConfig.parse(
        {"state_dir": str(state_dir), "families": {name: {**base, **changes} for name, changes in families.items()}}
    )


def test_without_labels_nothing_is_remembered(tmp_path: Path) -> None:
    assert make_labels(config(tmp_path, iris={}), GatewayMetrics(), clock=FakeClock()) is None


async def test_a_label_goes_from_the_disk_to_the_page_of_metrics(tmp_path: Path) -> None:
    metrics, clock = GatewayMetrics(), FakeClock()
    settings = config(tmp_path, iris={"labels": {"remember": 0}}, other={})
    labels = make_labels(settings, metrics, clock=clock)
    assert labels is not None
    labels.memory.offer(1, target("iris"), answer(3.0))
    await labels.memory.write()
    assert list((tmp_path / "predictions" / "iris").glob("*.predictions"))
    await labels.joiner.join([(0, GivenLabel(PredictionId(labels.memory.prefix, 1), 1.0))])
    page = exposition([("g1", snapshot(metrics.registry))]).decode()
    assert (
        'serve_app_loss_sum{family="iris",loss="absolute_error",replica="g1",variant="stable",version="v1"} 2' in page
    )


def test_forecasts_of_windows_take_no_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels: expected a family without windows"):
        config(tmp_path, tft={"labels": {}, "windows": {"metrics": [{"name": "cpu"}]}})
