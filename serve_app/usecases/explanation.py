"""What a prediction rests on: contributions of features, or what a temporal model looked at; and the ports to ask."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

ADDITIVE_TOLERANCE = 1e-6
"""How far base and contributions may be from the number they explain, relative to the largest of all of them."""


class Explained(StrEnum):
    """Which number is explained. A score is a classifier's own, before it becomes a probability or a label."""

    VALUE = "value"
    PROBABILITY = "probability"
    SCORE = "score"


class Method(StrEnum):
    """How contributions are computed; all are Shapley values. `kernel_shap` tries the model out and fits any of them.

    It is exact up to 11 features, estimated beyond; it and `linear_shap` compare with the golden inputs of the bundle.
    """

    TREE_SHAP = "tree_shap"
    LINEAR_SHAP = "linear_shap"
    KERNEL_SHAP = "kernel_shap"


@dataclass(frozen=True, slots=True)
class OutputContributions:
    """The contributions to one output of a batch.

    `predictions` (batch,) are those of `Predictor.predict` for the same rows. `values` float64 (batch,) are the numbers
    explained: the predictions themselves, or for labels the probability or score of the label that was predicted.
    `base` float64 (batch,) is what the model gives when it knows no feature; `contributions` float64 (batch,
    n_features) what each adds. `base + contributions.sum(axis=1)` is `values` within `ADDITIVE_TOLERANCE`.
    """

    predictions: NDArray[Any]
    explained: Explained
    method: Method
    values: NDArray[np.float64]
    base: NDArray[np.float64]
    contributions: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Contributions:
    """What each feature adds, in the unit of each output; `features` are the names of the inputs, in order."""

    features: tuple[str, ...]
    outputs: Mapping[str, OutputContributions]


@dataclass(frozen=True, slots=True)
class TemporalWeights:
    """What a temporal model looked at. All shares are float32 and sum to 1 over their last axis.

    Attributes:
        static_names: Of the last axis of `static`; `past_names` and `future_names` likewise.
        static: (batch, n_static), of what is known of the entity.
        past: (batch, encoder_length, n_past), of what was seen at each step of the window.
        future: (batch, prediction_length, n_future), of what is known of each future step.
        attention: (batch, prediction_length, encoder_length + prediction_length), of each future step over the window
            and the future; 0 for steps after it.
    """

    static_names: tuple[str, ...]
    past_names: tuple[str, ...]
    future_names: tuple[str, ...]
    static: NDArray[np.float32]
    past: NDArray[np.float32]
    future: NDArray[np.float32]
    attention: NDArray[np.float32]


Explanation = Contributions | TemporalWeights


@runtime_checkable
class Explaining(Protocol):
    """A predictor that can say what its predictions rest on. Blocking, slow, and safe to call from several threads."""

    def explain(self, rows: NDArray[np.float64]) -> Explanation:
        """Explain the predictions of these rows, float64 (batch, input_width).

        Raises:
            CannotExplainError: Not this model, or not here; the message says why, and what to do.
            InvalidInputError: The rows are none that it predicts.
            PredictionError: The model raised on these rows.
            UnavailableError: It took too long, or there is no room for it now.
        """
        ...


class ExplainClient(Protocol):
    """Reaches the replicas of one pool for explanations. Picks a replica by itself and never retries."""

    async def explain(self, version: str, rows: NDArray[np.float64]) -> Explanation:
        """Have the version explain its predictions of float64 rows (batch, input_width).

        Raises:
            UnknownVersionError: The replica that was asked does not hold the version; another may.
            UnavailableError: No replica answered, or not in time.
            ServeAppError: As `Explaining.explain`.
        """
        ...


def worst_gap(values: NDArray[np.float64], base: NDArray[np.float64], contributions: NDArray[np.float64]) -> float:
    """Return how far sums are from what they explain, relative to the largest number of all; `inf` for NaN."""
    sums = base + contributions.sum(axis=1)
    scale = max(1e-12, *(float(np.abs(part).max(initial=0.0)) for part in (values, base, contributions)))
    gap = float(np.abs(sums - values).max(initial=0.0)) / scale
    return gap if np.isfinite(gap) else float("inf")
