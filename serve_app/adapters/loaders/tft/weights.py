"""The weights of a forecaster as a safetensors file, and back, strictly. It is a header of JSON and raw numbers."""

from collections.abc import Mapping, Sequence

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from serve_app.adapters.loaders.tft.forecaster import TftForecaster

_MOST_NAMES = 8


def weights_bytes(forecaster: TftForecaster) -> bytes:
    """Return the file of all tensors, on the CPU, by their names."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in forecaster.state_dict().items()})


def put_weights(forecaster: TftForecaster, raw: bytes) -> list[str]:
    """Fill the forecaster from a file, or change nothing and list all that does not fit."""
    try:
        found = load(raw)
    except (SafetensorError, ValueError) as error:
        return [f"expected a safetensors file, found one that fails: {error}"]
    wanted = forecaster.state_dict()
    if problems := _problems(wanted, found):
        return problems
    forecaster.load_state_dict(found)
    return []


def _problems(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    problems = []
    if missing := [name for name in wanted if name not in found]:
        problems.append(f"expected all of the configuration's tensors, found none called {_some(missing)}")
    if strangers := [name for name in found if name not in wanted]:
        problems.append(f"expected only the configuration's tensors, found {_some(strangers)}")
    for name in sorted(wanted.keys() & found.keys()):
        expected, tensor = wanted[name], found[name]
        if expected.shape != tensor.shape or expected.dtype != tensor.dtype:
            problems.append(f"{name}: expected {_form(expected)}, found {_form(tensor)}")
        elif not bool(tensor.isfinite().all()):
            problems.append(f"{name}: expected finite numbers, found one that is not")
    return problems


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown}, … {len(names) - _MOST_NAMES} more"
