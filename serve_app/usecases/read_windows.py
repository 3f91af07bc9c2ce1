"""From the table of windows to what a model takes: its metrics, its length, and who can be predicted at all."""

from collections.abc import Sequence

import numpy as np

from serve_app.domain.errors import PredictionError
from serve_app.domain.temporal import KeptWindows, TemporalShape
from serve_app.domain.windows import WindowRules
from serve_app.usecases.keep_windows import WindowTable
from serve_app.usecases.window_ports import FleetWindows


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
    kept = KeptWindows(metrics=rules.names, step_s=rules.step_s, length=rules.length, warm_up_steps=warm_up_steps)
    if problems := kept.problems_with(shape):
        raise PredictionError("; ".join(problems))
    needed = kept.needed_steps(shape)
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
