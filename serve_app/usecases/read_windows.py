"""From the table of windows to what a model takes: its metrics, its length, and who can be predicted at all."""

from collections.abc import Sequence

import numpy as np

from serve_app.domain.errors import PredictionError
from serve_app.domain.temporal import TemporalShape
from serve_app.domain.windows import WindowRules
from serve_app.usecases.keep_windows import WindowTable
from serve_app.usecases.window_ports import FleetWindows


def check_fit(shape: TemporalShape, rules: WindowRules, *, warm_up_steps: int | None = None) -> int:
    """Return how many steps an entity needs to be predicted.

    Raises:
        PredictionError: The model takes metrics that are not kept, other steps, or more of them than are kept.
    """
    missing = [name for name in shape.metrics if name not in rules.names]
    if missing:
        raise PredictionError(
            f"the model takes {', '.join(missing)}, which the windows do not keep ({', '.join(rules.names)})"
        )
    if shape.step_s != rules.step_s:
        raise PredictionError(f"the model takes steps of {shape.step_s} s, the windows have steps of {rules.step_s} s")
    needed = shape.max_encoder_length if warm_up_steps is None else min(warm_up_steps, shape.max_encoder_length)
    if needed > rules.length:
        raise PredictionError(f"the model takes {needed} steps, the windows keep {rules.length}")
    return needed


def read_windows(
    table: WindowTable,
    rules: WindowRules,
    shape: TemporalShape,
    *,
    entities: Sequence[str] | None = None,
    warm_up_steps: int | None = None,
) -> FleetWindows:
    """Return the windows of `entities` (None: of all) that can be predicted from, and what the others lack.

    Raises:
        PredictionError: The model does not fit the windows that are kept.
    """
    needed = check_fit(shape, rules, warm_up_steps=warm_up_steps)
    wanted = table.entities if entities is None else tuple(dict.fromkeys(entities))
    lacking = table.lacks(wanted, needed_steps=needed)
    ready = tuple(name for name in wanted if name not in lacking)
    steps = min(shape.max_encoder_length, rules.length)
    windows = table.windows(ready, length=steps)
    columns = [rules.names.index(name) for name in shape.metrics]
    is_same = columns == list(range(len(rules.names)))
    return FleetWindows(
        revision=table.revision,
        entities=ready,
        values=windows.values if is_same else np.ascontiguousarray(windows.values[:, :, columns]),
        end_times_s=(windows.newest_step * rules.step_s).astype(np.float64),
        lacking={name: str(lack) for name, lack in lacking.items()},
    )
