"""What a model of time says of itself, so that others can make its rows out of windows and read its answers."""

from pydantic import BaseModel, ConfigDict


class TemporalShape(BaseModel):
    """Windows in, quantiles out. Lengths are steps of `step_s` seconds; `mode` is the kind of model, such as `tft`.

    A row is `[entity_key, end_time_s, window]`, the window `max_encoder_length` steps of all metrics, oldest first,
    flattened, NaN for what was not observed. An answer is `(max_prediction_length, n_metrics, n_quantiles)`, flattened.
    `n_entities` is how many entities the model was trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: str
    metrics: tuple[str, ...]
    units: tuple[str, ...]
    max_encoder_length: int
    max_prediction_length: int
    step_s: int
    quantiles: tuple[float, ...]
    n_entities: int


class KeptWindows(BaseModel):
    """What the operator keeps for a family: metrics, steps of `step_s` seconds, `length` of them.

    `warm_up_steps` are enough to be predicted from; None: as many as the model takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: tuple[str, ...]
    step_s: int
    length: int
    warm_up_steps: int | None = None

    def needed_steps(self, shape: TemporalShape) -> int:
        """Return how many steps an entity needs to be predicted by a model."""
        most = shape.max_encoder_length
        return most if self.warm_up_steps is None else min(self.warm_up_steps, most)

    def problems_with(self, shape: TemporalShape) -> list[str]:
        """Return why these windows are none for a model; nothing where they are."""
        problems = []
        if missing := [name for name in shape.metrics if name not in self.metrics]:
            kept = ", ".join(self.metrics)
            problems.append(f"the model takes {', '.join(missing)}, which the windows do not keep ({kept})")
        if shape.step_s != self.step_s:
            problems.append(f"the model takes steps of {shape.step_s} s, the windows have steps of {self.step_s} s")
        if (needed := self.needed_steps(shape)) > self.length:
            problems.append(f"the model takes {needed} steps, the windows keep {self.length}")
        return problems
