from pathlib import Path
from typing import Any

import pytest

from serve_app.adapters.prometheus_metrics import GatewayMetrics, exposition, snapshot
from serve_app.adapters.request_files import RecordedFiles
from serve_app.config import AppConfig
from serve_app.deployments.record_wiring import make_mirror, make_recorder
from serve_app.domain.errors import ConfigError
from tests.fakes.clock import FakeClock
from tests.labelled import answer, target


def config(state_dir: Path, **families: dict[str, Any]) -> AppConfig:
    base = {"models_type": "sklearn", "source": {"root": "models"}}
    return AppConfig.parse(
        {"state_dir": str(state_dir), "families": {name: {**base, **changes} for name, changes in families.items()}}
    )


def test_nothing_is_recorded_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert make_recorder(config(tmp_path, iris={}), GatewayMetrics(), clock=FakeClock()) is None


async def test_a_request_goes_to_the_disk_and_to_the_page_of_metrics(tmp_path: Path) -> None:
    metrics = GatewayMetrics()
    settings = config(tmp_path, iris={"record": {"sample": 100, "redact": ["x"]}}, other={})
    recorder = make_recorder(settings, metrics, clock=FakeClock())
    assert recorder is not None
    for family in ("iris", "other"):
        recorder.offer(target(family), [[7.5]], answer(3.0), 0.01)
    await recorder.write()
    ((head, request),) = RecordedFiles(tmp_path / "record" / "iris")
    assert (head.redacted, request.rows, request.outputs) == (("x",), [[0.0]], [[3.0]])
    assert not (tmp_path / "record" / "other").exists()
    page = exposition([("g1", snapshot(metrics.registry))]).decode()
    assert 'serve_app_recorded_requests_total{family="iris",outcome="kept",replica="g1"} 1' in page


def test_mirror_has_the_bounds_of_each_family(tmp_path: Path) -> None:
    shadow = {
        "at_once": 7,
        "timeout_s": 0.5,
        "max_lag_s": 0.1,
        "rtol": 0.2,
        "atol": 0.3,
        "keeps_inputs": True,
        "busy_share": 0.5,
    }
    mirror = make_mirror(config(tmp_path, iris={"shadow": shadow}, other={}), GatewayMetrics())
    limits = mirror.limits_of("iris")
    assert (limits.at_once, limits.timeout_s, limits.max_lag_s, limits.rtol, limits.atol, limits.keeps_inputs) == (
        7, 0.5, 0.1, 0.2, 0.3, True,
    )  # fmt: skip
    assert (mirror.limits_of("other").at_once, mirror.limits_of("other").keeps_inputs) == (2, False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"record": {}, "windows": {"metrics": [{"name": "cpu"}]}}, "record: expected a family without windows"),
        ({"record": {"redact": ["a", "a"]}}, "expected names that differ"),
        ({"record": {"sample": 0}}, "families.iris.record.sample"),
        ({"record": {"max_request": 5}}, "max_requests"),
        ({"record": {"max_requests": 5}}, "families.iris.record.max_requests"),
        ({"shadow": {"at_once": 0}}, "families.iris.shadow.at_once"),
        ({"shadow": {"keep_inputs": True}}, "keeps_inputs"),
        ({"shadow": {"rtol": float("nan")}}, "families.iris.shadow.rtol"),
    ],
)
def test_settings_that_cannot_be_gone_by_are_refused_with_their_path(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, iris=changes)
