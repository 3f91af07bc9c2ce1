"""What `config.json` of a Temporal Fusion Transformer says: which metrics, how far back, how far ahead, how big."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.domain.signature import Column, Signature
from serve_app.domain.temporal import TemporalShape

KnownFeature = Literal["time_of_day_sin", "time_of_day_cos", "time_of_week_sin", "time_of_week_cos"]
KNOWN_FEATURES: tuple[KnownFeature, ...] = (
    "time_of_day_sin",
    "time_of_day_cos",
    "time_of_week_sin",
    "time_of_week_cos",
)

_Quantile = Annotated[float, Field(gt=0, lt=1)]


class Metric(BaseModel):
    """One observed and forecast quantity.

    `transform` is applied before normalisation: `log1p` for what is never negative and has rare large values.
    `minimum` and `maximum`, in the metric's unit, bound the forecasts; None bounds nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    unit: str | None = None
    transform: Literal["none", "log1p"] = "none"
    minimum: Annotated[float, Field(allow_inf_nan=False)] | None = None
    maximum: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _range_fits(self) -> Self:
        low = -math.inf if self.minimum is None else self.minimum
        if self.maximum is not None and self.maximum <= low:
            raise ValueError(f"expected a maximum above the minimum {low:g}, found {self.maximum:g}")
        if self.transform == "log1p" and low < 0:
            raise ValueError("expected a minimum of at least 0 for the transform 'log1p'")
        return self


class TftConfig(BaseModel):
    """The parsed `config.json`. Lengths are in steps of `step_seconds`.

    Sizes default to what trains in minutes on two cores. `season_steps` is the distance to the same time of the season
    before, one day by default: what was measured then is a known input of each future step. It must lie within the
    window; None leaves it out. Normalisation is per server: centre and scale of each metric, fitted on the training
    time, are tensors of the weights file (`normaliser.*`); those of an unknown server are taken from its window.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["temporal_fusion_transformer"] = "temporal_fusion_transformer"
    max_encoder_length: Annotated[int, Field(ge=2, le=4096)] = 288
    max_prediction_length: Annotated[int, Field(ge=1, le=1024)] = 96
    step_seconds: Annotated[int, Field(ge=1, le=86_400)] = 300
    season_steps: Annotated[int, Field(ge=1)] | None = 288
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1, max_length=64)]
    known_features: tuple[KnownFeature, ...] = KNOWN_FEATURES
    hidden_size: Annotated[int, Field(ge=4, le=1024)] = 16
    attention_heads: Annotated[int, Field(ge=1, le=16)] = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    quantiles: Annotated[tuple[_Quantile, ...], Field(min_length=1, max_length=32)] = (0.1, 0.5, 0.9)
    normalisation: Literal["server"] = "server"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        problems = []
        if doubles := sorted({name for name in self.metric_names if self.metric_names.count(name) > 1}):
            problems.append(f"expected each metric once, found twice: {', '.join(doubles)}")
        if not self.known_features or len(set(self.known_features)) < len(self.known_features):
            problems.append("expected at least one known feature and none twice")
        if list(self.quantiles) != sorted(set(self.quantiles)):
            problems.append(f"expected ascending quantiles, found {self.quantiles}")
        if self.hidden_size % self.attention_heads:
            problems.append(
                f"expected a hidden_size that {self.attention_heads} attention heads divide, found {self.hidden_size}"
            )
        season = self.season_steps
        if season is not None and not self.max_prediction_length <= season <= self.max_encoder_length:
            problems.append(
                f"expected season_steps from max_prediction_length ({self.max_prediction_length}) to "
                f"max_encoder_length ({self.max_encoder_length}), found {season}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics, in order."""
        return tuple(metric.name for metric in self.metrics)

    @property
    def past_variables(self) -> tuple[str, ...]:
        """What each step of the window holds: the metrics, whether they were observed, the known features."""
        return (*self.metric_names, "observed", *self.known_features)

    @property
    def future_variables(self) -> tuple[str, ...]:
        """What is known of each future step: the metrics a season before, if there is one, and the known features."""
        lagged = () if self.season_steps is None else tuple(f"{name}_season_before" for name in self.metric_names)
        return (*lagged, *self.known_features)

    @property
    def static_variables(self) -> tuple[str, ...]:
        """What is known of a server: who it is, and where its metrics lie beside the fleet's."""
        return ("server", "level")

    def signature(self) -> Signature:
        """Return the columns of a row and of its answer; `usecases/window_rows.py` packs and unpacks them."""
        window = (self.max_encoder_length, len(self.metrics))
        forecast = (self.max_prediction_length, len(self.metrics), len(self.quantiles))
        return Signature(
            inputs=(
                Column(name="server_key", dtype="int64"),
                Column(name="end_time_s", unit="s"),
                Column(name="window", dtype="float32", shape=window),
            ),
            outputs=(Column(name="forecast", dtype="float32", shape=forecast),),
        )

    def temporal(self, n_servers: int) -> TemporalShape:
        """Return what a model of this configuration says of itself when it was trained on so many servers."""
        return TemporalShape(
            mode="tft",
            metrics=self.metric_names,
            units=tuple(metric.unit or "" for metric in self.metrics),
            max_encoder_length=self.max_encoder_length,
            max_prediction_length=self.max_prediction_length,
            step_s=self.step_seconds,
            quantiles=self.quantiles,
            n_entities=n_servers,
        )
