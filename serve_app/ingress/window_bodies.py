"""Windows that come in a request: `{"windows": [{"server": …, "end_time": …, "values": [[…], …]}, …]}`.

A window names its server (`server`, `server_name` or `entity`) and the time of its last step (`end_time`, `timestamp`,
`time` or `at`: RFC 3339, or seconds since the epoch). Its `values` are the steps, oldest first, each a list of the
metrics in the model's order, or an object by their names. Null, or a name that is left out, was not observed; so is a
step that is null. There may be fewer steps than the model looks back on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.errors import InvalidInputError, nearest
from serve_app.domain.signature import json_kind, shortened
from serve_app.domain.temporal import TemporalShape
from serve_app.ingress.observation_bodies import ENTITY_KEYS, TIME_KEYS, read_entity, read_time

WINDOWS_KEY: Final = "windows"
VALUES_KEY: Final = "values"
END_TIME_KEYS: Final = ("end_time", *TIME_KEYS)
FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_KNOWN: Final = frozenset({*ENTITY_KEYS, *END_TIME_KEYS, VALUES_KEY})
_NUMBERS: Final = frozenset({float, int, type(None)})


@dataclass(frozen=True, slots=True)
class WindowsGiven:
    """The windows of a request: whose they are, and when their last step was, float64 (n,), seconds since the epoch.

    `windows` is float32 (n, steps of the longest, n_metrics), NaN for what was not observed and before shorter ones.
    """

    entities: tuple[str, ...]
    end_times_s: NDArray[np.float64]
    windows: NDArray[np.float32]


def read_windows(document: Any, shape: TemporalShape, *, max_windows: int) -> WindowsGiven:
    """Read what a parsed body has under `windows`; what else it has is left to the caller.

    Raises:
        InvalidInputError: A window does not have the form or does not fit the model, or there are too many.
    """
    if not isinstance(document, dict) or WINDOWS_KEY not in document:
        raise InvalidInputError(f"expected an object with {WINDOWS_KEY!r}, got {json_kind(document)} without it")
    items = document[WINDOWS_KEY]
    if not isinstance(items, list):
        raise InvalidInputError(f"{WINDOWS_KEY!r}: expected a list of windows, got {json_kind(items)}")
    if not 0 < len(items) <= max_windows:
        raise InvalidInputError(f"{WINDOWS_KEY!r}: expected 1 to {max_windows} windows, got {len(items)}")
    read = [_window(item, f"window {i}", shape) for i, item in enumerate(items)]
    longest = max(len(values) for _, _, values in read)
    windows = np.full((len(read), longest, len(shape.metrics)), np.nan, dtype=np.float32)
    for window, (_, _, values) in zip(windows, read, strict=True):
        window[longest - len(values) :] = values
    return WindowsGiven(
        entities=tuple(entity for entity, _, _ in read),
        end_times_s=np.array([end_time_s for _, end_time_s, _ in read]),
        windows=windows,
    )


def _window(item: Any, where: str, shape: TemporalShape) -> tuple[str, float, NDArray[np.float64]]:
    if not isinstance(item, dict):
        raise InvalidInputError(f"{where}: expected an object, got {json_kind(item)}")
    unknown = next((key for key in item if key not in _KNOWN), None)
    if unknown is not None:
        raise InvalidInputError(f"{where}: unknown field {shortened(unknown)}{nearest(unknown, sorted(_KNOWN))}")
    entity = read_entity(item, where)
    end_time_s = read_time(item, END_TIME_KEYS, where)
    steps = item.get(VALUES_KEY)
    if not isinstance(steps, list) or not 0 < len(steps) <= shape.max_encoder_length:
        expected = f"{where}: {VALUES_KEY!r}: expected a list of 1 to {shape.max_encoder_length} steps"
        raise InvalidInputError(f"{expected}, got {json_kind(steps)}")
    values = _quickly(steps, len(shape.metrics))
    if values is None:
        values = np.array([_step(step, f"{where}, step {i}", shape.metrics) for i, step in enumerate(steps)])
    if np.isnan(values).all():
        raise InvalidInputError(f"{where}: {VALUES_KEY!r}: expected at least one observed value, got none")
    return entity, end_time_s, values


def _quickly(steps: Sequence[Any], n_metrics: int) -> NDArray[np.float64] | None:
    """Convert steps that are all good lists; None for any others, which `_step` reads or refuses one by one.

    A fleet's windows are millions of numbers, and this is ten times as fast.
    """
    if any(type(step) is not list or len(step) != n_metrics for step in steps):
        return None
    if not _NUMBERS.issuperset(map(type, chain.from_iterable(steps))):
        return None
    try:
        values = np.array(steps, dtype=np.float64)
    except OverflowError:
        return None
    return None if (np.abs(values) > FLOAT32_MAX).any() else values


def _step(step: Any, where: str, metrics: Sequence[str]) -> list[float]:
    if step is None:
        return [np.nan] * len(metrics)
    if isinstance(step, Mapping):
        unknown = next((name for name in step if name not in metrics), None)
        if unknown is not None:
            raise InvalidInputError(f"{where}: unknown metric {shortened(unknown)}{nearest(unknown, metrics)}")
        return [_value(step.get(name), where, name) for name in metrics]
    if not isinstance(step, list):
        raise InvalidInputError(f"{where}: expected a list of numbers, an object or null, got {json_kind(step)}")
    if len(step) != len(metrics):
        raise InvalidInputError(f"{where}: expected {len(metrics)} values ({', '.join(metrics)}), got {len(step)}")
    return [_value(value, where, name) for value, name in zip(step, metrics, strict=True)]


def _value(value: Any, where: str, name: str) -> float:
    if value is None:
        return np.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError(f"{where}, {name!r}: expected a number or null, got {json_kind(value)}")
    if not abs(value) <= FLOAT32_MAX:
        raise InvalidInputError(f"{where}, {name!r}: expected a number within the range of float32")
    return float(value)
