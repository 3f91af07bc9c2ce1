import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from serve_app.adapters.bundle_writer import write_bundle
from serve_app.adapters.loaders import LOADERS
from serve_app.adapters.loaders.tft.predictor import TftPredictor
from serve_app.adapters.loaders.tft.torch_loader import TorchLoader
from serve_app.domain.errors import BundleError, InvalidInputError
from serve_app.domain.manifest import Golden
from serve_app.usecases.check_golden import check_golden
from serve_app.usecases.ports import TemporalPredictor
from serve_app.usecases.window_rows import pack_forecasts, pack_rows, unpack_forecasts
from tests import builders
from tests.unit.adapters.loaders.tft import forecasters
from tests.unit.adapters.loaders.tft.forecasters import SERVERS, bundle, changed_config, end_times, files, windows

NAMES = ("web-02", "db-01", "a stranger", "web-01")


@pytest.fixture(scope="module")
def predictor() -> TftPredictor:
    return TorchLoader().load(bundle())


def _rows(predictor: TftPredictor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return pack_rows(predictor.temporal, windows(4), end_times(4), NAMES)


def _with_tensors(**changes: torch.Tensor | None) -> dict[str, bytes]:
    tensors: dict[str, Any] = {**load(files()["model.safetensors"]), **changes}
    return files() | {"model.safetensors": save({n: t for n, t in tensors.items() if t is not None})}


def test_loader_is_known_as_torch_and_needs_no_permission() -> None:
    assert isinstance(LOADERS["torch"], TorchLoader)
    assert not LOADERS["torch"].uses_pickle


def test_reloaded_model_predicts_what_was_saved_bit_for_bit(predictor: TftPredictor) -> None:
    expected = forecasters.forecaster().forecast(windows(4), end_times(4), np.array([2, 3, 0, 1]))
    np.testing.assert_array_equal(predictor.predict(_rows(predictor)), pack_forecasts(expected))


def test_golden_samples_hold_after_a_reload_and_catch_another_model(predictor: TftPredictor) -> None:
    rows = _rows(predictor)
    document = {"inputs": rows.tolist(), "outputs": predictor.predict(rows).tolist()}
    contents = files() | {"golden.json": json.dumps(document).encode()}
    golden = bundle(contents, golden=Golden())
    check_golden(TorchLoader().load(golden), golden)
    other = bundle(contents | {"model.safetensors": files(forecasters.forecaster(seed=1))["model.safetensors"]})
    with pytest.raises(Exception, match="does not reproduce"):
        check_golden(TorchLoader().load(other), golden)


def test_predictor_describes_itself(predictor: TftPredictor) -> None:
    assert predictor.signature == predictor.config.signature()
    assert predictor.servers == predictor.entities == SERVERS
    assert predictor.temporal == predictor.config.temporal(3)
    assert isinstance(predictor, TemporalPredictor)
    assert set(predictor.engine) == {"cpu_percent", "disk_io_mb_per_s"}
    assert predictor.engine["cpu_percent"].endswith("on cpu in float32")
    assert predictor.artifact_bytes == sum(map(len, files().values()))


def test_stranger_is_predicted_by_its_window(predictor: TftPredictor) -> None:
    rows = pack_rows(predictor.temporal, np.repeat(windows(1), 2, axis=0), end_times(2) * 0 + 1e9, ["x", "y"])
    forecasts = unpack_forecasts(predictor.temporal, predictor.predict(rows))
    np.testing.assert_array_equal(forecasts[0], forecasts[1])
    assert np.isfinite(forecasts).all()


def test_short_window_with_gaps_gives_finite_forecasts(predictor: TftPredictor) -> None:
    short = windows(2)[:, -3:].copy()
    short[0, 1] = np.nan
    rows = pack_rows(predictor.temporal, short, end_times(2), ["web-01", "stranger"])
    assert np.isfinite(predictor.predict(rows)).all()


def test_explanation_holds_shares_for_every_row(predictor: TftPredictor) -> None:
    explanation = predictor.explain(_rows(predictor))
    shapes = [part.shape for part in (explanation.static, explanation.past, explanation.future, explanation.attention)]
    assert shapes == [(4, 2), (4, 12, 7), (4, 4, 6), (4, 4, 16)]
    for part in (explanation.static, explanation.past, explanation.future, explanation.attention):
        np.testing.assert_allclose(part.sum(axis=-1), 1.0, rtol=1e-5)


def test_rows_of_another_width_are_refused(predictor: TftPredictor) -> None:
    with pytest.raises(InvalidInputError, match="expected rows of 26 values"):
        predictor.predict(np.zeros((1, 25)))


def _problems(contents: dict[str, bytes], **facts: Any) -> str:
    with pytest.raises(BundleError) as caught:
        TorchLoader().load(bundle(contents, **facts))
    return "\n".join(caught.value.problems)


def test_missing_files_and_wrong_ones_are_listed_together() -> None:
    problems = _problems({"config.json": changed_config(hidden_size=9, extra=1), "server_mapping.json": b'{"a": 2}'})
    assert "model.safetensors: expected it in the manifest, found none" in problems
    assert "config.json: extra: unknown key" in problems
    assert "server_mapping.json: expected the numbers 1 to 1" in problems


def test_config_that_is_no_json_is_refused() -> None:
    assert "config.json: expected JSON" in _problems(files() | {"config.json": b"{"})


def test_missing_unexpected_misshapen_and_mistyped_tensors_are_listed_together() -> None:
    contents = _with_tensors(
        **{
            "network.output.weight": None,
            "network.stranger": torch.zeros(1),
            "network.output.bias": torch.zeros(5),
            "normaliser.scale": torch.ones(4, 2, dtype=torch.float64),
            "normaliser.centre": torch.full((4, 2), torch.nan),
        }
    )
    problems = _problems(contents)
    assert "found none called network.output.weight" in problems
    assert "expected only the configuration's tensors, found network.stranger" in problems
    assert "network.output.bias: expected float32 (6,), found float32 (5,)" in problems
    assert "normaliser.scale: expected float32 (4, 2), found float64 (4, 2)" in problems
    assert "normaliser.centre: expected finite numbers" in problems


def test_more_servers_than_the_weights_know_are_refused() -> None:
    problems = _problems(files() | {"server_mapping.json": b'{"a": 1, "b": 2, "c": 3, "d": 4}'})
    assert "network.server_embedding.weight: expected float32 (5, 8), found float32 (4, 8)" in problems


@pytest.mark.parametrize("raw", [b"", b"junk", b"\xff" * 64, files()["model.safetensors"][:-8]])
def test_weights_that_are_no_safetensors_file_are_refused(raw: bytes) -> None:
    problems = _problems(files() | {"model.safetensors": raw})
    assert "model.safetensors: expected a safetensors file, found one that fails" in problems


def test_pickled_weights_are_refused_and_not_run(tmp_path: Any) -> None:
    path = tmp_path / "weights.pt"
    torch.save(load(files()["model.safetensors"]), path)
    assert "expected a safetensors file" in _problems(files() | {"model.safetensors": path.read_bytes()})


def test_signature_that_is_not_the_configurations_is_refused() -> None:
    assert "signature: expected the columns" in _problems(files(), signature=builders.signature())


@pytest.mark.parametrize(("threads", "used"), [(None, 1), (2, 2)])
def test_call_has_one_thread_unless_more_are_asked_for(threads: int | None, used: int, tmp_path: Path) -> None:
    made = bundle()
    version = write_bundle(tmp_path, made.manifest, made.files)
    code = (
        "import pathlib, torch\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from serve_app.adapters.bundle_reader import read_bundle\n"
        "from serve_app.adapters.loaders.tft.torch_loader import TorchLoader\n"
        f"loader = TorchLoader({'' if threads is None else f'threads={threads}'})\n"
        f"bundle = read_bundle(pathlib.Path({str(version)!r}))\n"
        "with ThreadPoolExecutor(1) as loading, ThreadPoolExecutor(1) as calling:\n"
        "    loading.submit(loader.load, bundle).result()\n"
        "    print(calling.submit(torch.get_num_threads).result())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    ran = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == str(used)


def test_known_loaders_do_not_import_torch_until_a_model_needs_it() -> None:
    code = "import sys, serve_app.adapters.loaders; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
