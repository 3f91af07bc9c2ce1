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
