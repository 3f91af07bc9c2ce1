"""The trial of a model of windows, with the limits that a family has by default."""

from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from serve_app.adapters.bundle_writer import write_bundle
from serve_app.adapters.loaders.tft.torch_loader import TorchLoader
from serve_app.adapters.trial import SubprocessTrial, TrialSettings
from serve_app.config import TrialConfig
from serve_app.config_sources import DirectoryConfig
from serve_app.domain.errors import TrialError
from serve_app.domain.manifest import Golden, Manifest
from serve_app.usecases.load_model import LoadPolicy
from serve_app.usecases.ports import TrialLimits
from serve_app.usecases.window_rows import pack_rows
from tests.builders import CREATED_AT
from tests.unit.adapters.loaders.tft.forecasters import bundle, end_times, files, forecaster, windows

LIMITS = TrialLimits(timeout_s=TrialConfig().timeout_s, memory_bytes=TrialConfig().memory_bytes)


@pytest.fixture
async def trial(tmp_path: Path) -> AsyncIterator[SubprocessTrial]:
    settings = TrialSettings(DirectoryConfig(root=str(tmp_path)), LoadPolicy("tft", "tft", "torch", ()))
    trial = SubprocessTrial({"tft": settings})
    yield trial
    await trial.close()


def _write(root: Path, version: str, *, seed: int) -> None:
    """Write the forecaster of a seed with the golden samples of the one of seed 0."""
    model = TorchLoader().load(bundle())
    rows = pack_rows(model.temporal, windows(3), end_times(3), ["web-01", "db-01", "a stranger"])
    golden = {"inputs": rows.tolist(), "outputs": model.predict(rows).tolist()}
    contents = files(forecaster(seed=seed)) | {"golden.json": orjson.dumps(golden)}
    manifest = Manifest.describing(
        contents, model_version=version, models_type="tft", created_at=CREATED_AT, family="tft", loader="torch",
        golden=Golden(rtol=1e-3, atol=1e-3),
    )  # fmt: skip
    write_bundle(root, manifest, contents)


async def test_forecaster_passes_with_the_default_limits_and_one_that_forecasts_otherwise_does_not(
    trial: SubprocessTrial, tmp_path: Path
) -> None:
    _write(tmp_path, "good", seed=0)
    _write(tmp_path, "other", seed=1)
    assert (await trial.run("tft", "good", LIMITS)).version == "good"
    with pytest.raises(TrialError, match=r"does not reproduce .* output 'forecast\[\d+\]'"):
        await trial.run("tft", "other", LIMITS)
