"""The device that the models of a pool run on: chosen once, in one place, and never silently another one.

Only a pool that wants CUDA imports torch for it; the other families need neither torch nor its seconds.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from serve_app.usecases.ports import DeviceMemory

Kind = Literal["cpu", "cuda"]
Precision = Literal["float32", "tf32", "bf16"]

CUDA_LOADERS: Final = frozenset({"torch"})
"""Loaders whose models can run on a GPU."""

GOLDEN_SLACK: Final[dict[Precision, float]] = {"float32": 0.0, "tf32": 0.005, "bf16": 0.03}
"""Share of an output's largest value. Measured for bf16, on forecasters with random weights: up to 0.009."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where models run and how exactly. `note` says why it is not what was asked for; `memory` is None on a CPU."""

    kind: Kind = "cpu"
    precision: Precision = "float32"
    note: str | None = None
    memory: DeviceMemory | None = None
    is_fallback: bool = False

    @property
    def golden_slack(self) -> float:
        """By how much golden samples, computed in float32, may be missed; see `check_golden`."""
        return GOLDEN_SLACK[self.precision]


CPU: Final = Device()


def choose_device(*, wants_cuda: bool, precision: Precision, loader: str, num_gpus: float) -> Device:
    """Choose the device of a pool whose family has this loader. May import torch, which takes seconds.

    On a CPU everything is computed in float32, for oneDNN has no LSTM in bf16 for most processors.
    """
    why = _why_not_cuda(loader, num_gpus) if wants_cuda else None
    if wants_cuda and why is None:
        return Device("cuda", precision, memory=CudaMemory())
    notes = [f"expected cuda, {why}: runs on cpu"] if why else []
    if precision != "float32":
        notes.append(f"{precision} is for cuda, a cpu computes in float32")
    return Device(note="; ".join(notes) or None, is_fallback=wants_cuda)


def _why_not_cuda(loader: str, num_gpus: float) -> str | None:
    """Say why models cannot run on a GPU of this process; None: they can."""
    if loader not in CUDA_LOADERS:
        return f"but models of the loader {loader} know the cpu only"
    try:
        import torch
    except ImportError:
        return "found no torch here"
    if torch.cuda.is_available():
        return None
    hint = " (num_gpus is 0, and Ray shows a replica only the GPUs that it reserves)" if num_gpus == 0 else ""
    return f"found no CUDA here{hint}"


class CudaMemory:
    """The memory of the GPU that this process uses; implements `DeviceMemory`.

    Predictions made while a version loads count into its peak: that is what it needs beside the one that answers.
    """

    def __init__(self) -> None:
        self._before_bytes = 0

    def free_bytes(self) -> int:
        """See `DeviceMemory.free_bytes`; what other processes use is not free."""
        import torch

        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info()[0])

    def total_bytes(self) -> int:
        """See `DeviceMemory.total_bytes`."""
        import torch

        return int(torch.cuda.mem_get_info()[1])

    def begin(self) -> None:
        """See `DeviceMemory.begin`."""
        import torch

        self._before_bytes = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def used(self) -> tuple[int, int]:
        """See `DeviceMemory.used`."""
        import torch

        kept, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        return max(kept - self._before_bytes, 0), max(peak - self._before_bytes, 0)


def give_back_device_memory() -> None:
    """Return what torch keeps of the GPU's memory for later, so that another process, or a candidate, can have it."""
    import torch

    torch.cuda.empty_cache()


def set_precision(precision: Precision) -> None:
    """Set how exactly this process multiplies float32 matrices on CUDA; `bf16` is a matter of each pass."""
    import torch

    exactness = "tf32" if precision == "tf32" else "ieee"
    backends: Any = torch.backends  # torch's own types do not know all of these
    backends.cuda.matmul.fp32_precision = exactness
    backends.cudnn.conv.fp32_precision = exactness
    backends.cudnn.rnn.fp32_precision = exactness  # torch's own default is tf32 here
