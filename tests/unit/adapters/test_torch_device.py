"""The device of a pool; the tests that need CUDA run where there is one, and say so elsewhere."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from serve_app.adapters.loaders.tft.torch_loader import TorchLoader
from serve_app.adapters.torch_device import CPU, CudaMemory, Device, Precision, choose_device, give_back_device_memory
from tests.unit.adapters.loaders.tft.forecasters import bundle, end_times, windows

has_cuda = torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(not has_cuda, reason="needs a GPU with CUDA; not tested on this machine")
without_cuda = pytest.mark.skipif(has_cuda, reason="this machine has CUDA: nothing to fall back from")


def chosen(*, wants_cuda: bool, precision: Precision = "float32", loader: str = "torch", num_gpus: float = 1) -> Device:
    return choose_device(wants_cuda=wants_cuda, precision=precision, loader=loader, num_gpus=num_gpus)


def test_pool_on_the_cpu_has_nothing_to_say() -> None:
    assert chosen(wants_cuda=False) == CPU


def test_lower_precision_is_for_cuda_and_the_cpu_says_so() -> None:
    device = chosen(wants_cuda=False, precision="bf16")
    assert (device.kind, device.precision, device.is_fallback) == ("cpu", "float32", False)
    assert device.note == "bf16 is for cuda, a cpu computes in float32"


@without_cuda
def test_without_cuda_the_pool_runs_on_the_cpu_and_says_so() -> None:
    device = chosen(wants_cuda=True, precision="bf16")
    assert (device.kind, device.precision, device.memory, device.is_fallback) == ("cpu", "float32", None, True)
    assert device.note == (
        "expected cuda, found no CUDA here: runs on cpu; bf16 is for cuda, a cpu computes in float32"
    )


@without_cuda
def test_gpu_that_was_not_reserved_is_the_likely_reason() -> None:
    assert "num_gpus is 0" in (chosen(wants_cuda=True, num_gpus=0).note or "")


def test_loader_that_knows_the_cpu_only_is_named() -> None:
    device = chosen(wants_cuda=True, loader="sklearn_targets")
    assert device.note == "expected cuda, but models of the loader sklearn_targets know the cpu only: runs on cpu"


def test_torch_is_imported_only_where_cuda_is_wanted_for_it() -> None:
    code = (
        "import sys; from serve_app.adapters.torch_device import choose_device as choose\n"
        "choose(wants_cuda=False, precision='bf16', loader='torch', num_gpus=0)\n"
        "choose(wants_cuda=True, precision='bf16', loader='sklearn_targets', num_gpus=1)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_forecasts_on_cuda_are_those_of_the_cpu_within_the_slack(precision: Precision) -> None:
    device = chosen(wants_cuda=True, precision=precision)
    assert (device.kind, device.note) == ("cuda", None)
    servers = np.array([1, 2, 0, 3])
    expected, found = (
        TorchLoader(one).load(bundle()).forecaster.forecast(windows(4), end_times(4), servers) for one in (CPU, device)
    )
    assert found.dtype == np.float32
    allowed = max(device.golden_slack, 1e-4) * np.abs(expected).max(axis=0)
    assert (np.abs(found - expected) <= allowed).all()


@needs_cuda
def test_memory_of_a_model_is_measured_and_comes_back() -> None:
    memory = CudaMemory()
    free_before = memory.free_bytes()
    memory.begin()
    held = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    passing = torch.empty(32 << 20, dtype=torch.uint8, device="cuda")
    del passing
    kept, peak = memory.used()
    assert (kept >> 20, peak >> 20) == (64, 96)
    assert memory.free_bytes() <= free_before - (64 << 20) < memory.total_bytes()
    del held
    give_back_device_memory()
    assert memory.free_bytes() >= free_before - (2 << 20)
