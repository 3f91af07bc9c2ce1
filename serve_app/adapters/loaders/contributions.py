"""How predictors of scikit-learn models answer `Explaining.explain`: they ask the process that explains."""

import itertools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.adapters.explain_process import ExplainProcess
from serve_app.adapters.shap_values import ExplainedModel, Shares
from serve_app.domain.errors import CannotExplainError
from serve_app.usecases.explanation import (
    ADDITIVE_TOLERANCE,
    Contributions,
    Explained,
    OutputContributions,
    worst_gap,
)

_numbers = itertools.count(1)


class ExplainedOutputs:
    """The models of one predictor as they are explained, by the names of their outputs, in order.

    Holds no state between calls; any number of threads may ask at once.
    """

    def __init__(self, process: ExplainProcess, models: Mapping[str, ExplainedModel]) -> None:
        self._process = process
        self._models = dict(models)
        self._key = f"{os.getpid()}-{next(_numbers)}"  # of this load: a version that is loaded again is sent again
        self._places = {name: _places_of(model) for name, model in models.items()}

    def explain(self, features: tuple[str, ...], rows: NDArray[np.float64], predictions: NDArray[Any]) -> Contributions:
        """Explain predictions (batch, n_outputs) of rows, float64 (batch, n_features); see `Explaining.explain`."""
        outputs = {}
        for column, (name, model) in enumerate(self._models.items()):
            labels, known = predictions[:, column], self._places[name]
            places = None if known is None else np.array([known[label] for label in labels.tolist()], dtype=np.int64)
            try:
                shares = self._process.shares(f"{self._key}/{name}", model, rows, places)
                outputs[name] = _of_output(labels, shares)
            except CannotExplainError as error:
                raise CannotExplainError(f"output {name!r}: {error}") from error
        return Contributions(features, outputs)


def _places_of(model: ExplainedModel) -> dict[Any, int] | None:
    """Return where each label stands among the classes; None for what gives no labels."""
    classes = getattr(model.model, "classes_", None)
    if classes is None or model.scaler_y is not None:
        return None
    return {label: place for place, label in enumerate(np.asarray(classes).tolist())}


def _of_output(predictions: NDArray[Any], shares: Shares) -> OutputContributions:
    """Put both together, if they fit: what explains a value must add up to what was predicted, not to a like of it."""
    values = predictions.astype(np.float64) if shares.explained is Explained.VALUE else shares.values
    gap = worst_gap(values, shares.base, shares.contributions)
    if not gap <= ADDITIVE_TOLERANCE:
        raise CannotExplainError(
            f"the contributions were expected to add up to the prediction within {ADDITIVE_TOLERANCE:g}, "
            f"found a relative difference of {gap:.1g}"
        )
    return OutputContributions(predictions, shares.explained, shares.method, values, shares.base, shares.contributions)
