"""Shapley values of one model's outputs, by the package shap. For a process that serves nothing (`explain_worker`).

Importing shap takes seconds and 100 MB, and its tree code holds the interpreter for as long as it computes: seconds for
a batch on a big forest. So none of this runs where predictions are made.

Every result is checked against the model itself: contributions that do not add up are thrown away, and the next
method is tried. The last fits every model.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.errors import CannotExplainError
from serve_app.usecases.explanation import ADDITIVE_TOLERANCE, Explained, Method, worst_gap

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

MAX_BACKGROUND_ROWS = 32
"""Rows that a model-agnostic method compares with. It predicts each coalition of features for each of them."""

KERNEL_SEED = 20260130
_LINEAR_MODULES = ("sklearn.linear_model", "sklearn.svm")


@dataclass(frozen=True, slots=True)
class Shares:
    """What explains one number a row: all float64, (batch,), and `contributions` (batch, n_features)."""

    explained: Explained
    method: Method
    values: Floats
    base: Floats
    contributions: Floats


@dataclass(slots=True)
class ExplainedModel:
    """One output of a bundle as it is computed: scaler_x, the model, scaler_y. It travels between processes.

    `background` are rows as they come in requests, float64 (n, n_features), to compare with. `columns` are names that
    the model insists on.
    """

    model: Any
    scaler_x: Any = None
    scaler_y: Any = None
    background: Floats | None = None
    columns: tuple[str, ...] | None = None
    _explainers: dict[str, Any] = field(default_factory=dict)

    def shares(self, rows: Floats, places: Places | None) -> Shares:
        """Explain the predictions of rows, float64 (batch, n_features).

        `places` int64 (batch,) are those of the predicted labels among the model's classes; None for a regression.

        Raises:
            CannotExplainError: No method fits.
        """
        inner = _Function(self.model, self.columns)
        is_split = self.scaler_x is None or _is_per_feature(self.scaler_x, rows)
        unscale = None if self.scaler_y is None else _affine(self.scaler_y)
        if is_split and (self.scaler_y is None or unscale is not None):
            scaled, background = self._scaled(rows), self.background
            background = None if background is None else self._scaled(background)
            found = self._first_that_adds_up(inner, scaled, background, places)
            return found if unscale is None else _in_unit_of_target(found, *unscale)
        whole = _Function(_Chain(self.scaler_x, inner, self.scaler_y), None)
        return _checked(_by_kernel(whole, rows, self.background, places))

    def _scaled(self, rows: Floats) -> Floats:
        return rows if self.scaler_x is None else np.asarray(self.scaler_x.transform(rows), dtype=np.float64)

    def _first_that_adds_up(
        self, function: "_Function", rows: Floats, background: Floats | None, places: Places | None
    ) -> Shares:
        for shares in self._exact(function, rows, background, places):
            if worst_gap(shares.values, shares.base, shares.contributions) <= ADDITIVE_TOLERANCE:
                return shares
        return _checked(_by_kernel(function, rows, background, places))

    def _exact(
        self, function: "_Function", rows: Floats, background: Floats | None, places: Places | None
    ) -> Iterator[Shares]:
        import shap

        module = type(self.model).__module__
        if module.startswith(("sklearn.ensemble", "sklearn.tree")):
            explainer = self._made("tree", lambda: shap.TreeExplainer(self.model))
            if explainer is not None:
                raw = explainer.shap_values(rows, check_additivity=False)
                yield from _readings(raw, explainer.expected_value, Method.TREE_SHAP, function, rows, places)
        elif module.startswith(_LINEAR_MODULES) and hasattr(self.model, "coef_") and background is not None:
            masker = shap.maskers.Independent(background, max_samples=len(background))
            explainer = self._made("linear", lambda: shap.LinearExplainer(self.model, masker))
            if explainer is not None:
                raw = explainer.shap_values(rows)
                yield from _readings(raw, explainer.expected_value, Method.LINEAR_SHAP, function, rows, places)

    def _made(self, kind: str, make: Callable[[], Any]) -> Any:
        """Make an explainer once; None where shap does not take the model."""
        if kind not in self._explainers:
            try:
                self._explainers[kind] = make()
            except Exception:  # shap refuses what it does not know with exceptions of many kinds
                self._explainers[kind] = None
        return self._explainers[kind]


class _Function:
    """The numbers that a model gives, of the kinds that can be explained."""

    def __init__(self, model: Any, columns: tuple[str, ...] | None) -> None:
        self._model = model
        self._columns = columns

    def kinds(self, places: Places | None) -> list[Explained]:
        """Return what can be explained, the most telling first."""
        if places is None:
            return [Explained.VALUE]
        known = {Explained.PROBABILITY: "predict_proba", Explained.SCORE: "decision_function"}
        return [kind for kind, method in known.items() if hasattr(self._model, method)]

    def all(self, kind: Explained, rows: Floats) -> Floats:
        """Return float64 (batch, n_classes); one column for a regression, and for a score of two classes."""
        method = {"value": "predict", "probability": "predict_proba", "score": "decision_function"}[kind]
        given: Any = rows
        if self._columns is not None:
            import pandas as pd  # type: ignore[import-untyped]  # it ships no types

            given = pd.DataFrame(rows, columns=self._columns)
        return np.asarray(getattr(self._model, method)(given), dtype=np.float64).reshape(len(rows), -1)


class _Chain:
    """Scalers and model as one, for methods that look at nothing but inputs and outputs."""

    def __init__(self, scaler_x: Any, inner: _Function, scaler_y: Any) -> None:
        self._scaler_x, self._inner, self._scaler_y = scaler_x, inner, scaler_y

    def __getattr__(self, name: str) -> Any:
        kinds = {"predict": "value", "predict_proba": "probability", "decision_function": "score"}
        if name not in kinds or not hasattr(self._inner._model, name):
            raise AttributeError(name)

        def compute(rows: Floats) -> Floats:
            scaled = rows if self._scaler_x is None else np.asarray(self._scaler_x.transform(rows))
            found = self._inner.all(Explained(kinds[name]), scaled)
            return found if self._scaler_y is None else np.asarray(self._scaler_y.inverse_transform(found))

        return compute


def _readings(
    raw: Any,
    expected: Any,
    method: Method,
    function: _Function,
    rows: Floats,
    places: Places | None,
    kinds: list[Explained] | None = None,
) -> Iterator[Shares]:
    """Yield what shap's arrays may mean; whether they do is for the sum to show."""
    values = np.asarray(raw, dtype=np.float64)
    values = values.reshape(*values.shape[:2], -1)
    base = np.broadcast_to(np.asarray(expected, dtype=np.float64).reshape(1, -1), (len(rows), values.shape[2]))
    for kind in kinds or function.kinds(places):
        numbers = function.all(kind, rows)
        if numbers.shape[1] == values.shape[2]:
            yield Shares(
                kind, method, _picked(numbers, places), _picked(base, places),
                np.stack([_picked(values[:, i], places) for i in range(values.shape[1])], axis=1),
            )  # fmt: skip


def _picked(numbers: Floats, places: Places | None) -> Floats:
    """Return the numbers of the predicted classes; where one column stands for two classes, the first's is negative."""
    if places is None:
        return numbers[:, 0].copy()
    if numbers.shape[1] == 1:
        return np.where(places == 1, numbers[:, 0], -numbers[:, 0])
    return numbers[np.arange(len(numbers)), places]


def _by_kernel(function: _Function, rows: Floats, background: Floats | None, places: Places | None) -> Shares:
    import shap

    kinds = function.kinds(places)
    if not kinds:
        raise CannotExplainError(
            "this model gives labels only, neither probabilities nor scores, which could be explained"
        )
    if background is None or not len(background):
        raise CannotExplainError("this model can only be explained beside golden inputs, and its bundle has none")
    kind = kinds[0]
    np.random.seed(KERNEL_SEED)  # shap draws from this one: the same rows get the same answer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explainer = shap.KernelExplainer(lambda few: function.all(kind, few), background[:MAX_BACKGROUND_ROWS])
        raw = explainer.shap_values(rows, silent=True, l1_reg=False)
    return next(_readings(raw, explainer.expected_value, Method.KERNEL_SHAP, function, rows, places, [kind]))


def _checked(shares: Shares) -> Shares:
    gap = worst_gap(shares.values, shares.base, shares.contributions)
    if not gap <= ADDITIVE_TOLERANCE:
        raise CannotExplainError(
            f"the contributions were expected to add up to the prediction within {ADDITIVE_TOLERANCE:g}, "
            f"found a relative difference of {gap:.1g}"
        )
    return shares


def _is_per_feature(scaler: Any, rows: Floats) -> bool:
    """Say whether each scaled column depends on its own column only, so that it may bear its name."""
    row = rows[:1]
    moved = np.repeat(row, row.shape[1], axis=0) + np.diag(np.maximum(1.0, np.abs(row[0])))
    before, after = np.asarray(scaler.transform(row)), np.asarray(scaler.transform(moved))
    if after.shape != moved.shape:
        return False
    others = ~np.eye(len(moved), dtype=bool)
    return bool((after == np.broadcast_to(before, after.shape))[others].all())


def _affine(scaler: Any) -> tuple[float, float] | None:
    """Return factor and shift of a scaler that has nothing else, in its backward direction."""
    at = np.array([0.0, 1.0, -3.0, 17.0])
    back = np.asarray(scaler.inverse_transform(at.reshape(-1, 1)), dtype=np.float64).ravel()
    shift, factor = float(back[0]), float(back[1] - back[0])
    return (factor, shift) if np.allclose(back, shift + factor * at, rtol=1e-9, atol=1e-9 * abs(factor)) else None


def _in_unit_of_target(shares: Shares, factor: float, shift: float) -> Shares:
    return Shares(
        shares.explained,
        shares.method,
        shares.values * factor + shift,
        shares.base * factor + shift,
        shares.contributions * factor,
    )
