"""Computes scikit-learn tree ensembles through treelite, where it provably gives what scikit-learn gives.

Facts this rests on. A scikit-learn forest or gradient boosting casts its input to float32 and compares it with float64
thresholds; histogram boosting compares float64. Treelite compares what it gets, so the cast is done here. Treelite
sums a forest's trees in scikit-learn's order, so forests agree bit for bit. Boosted sums start from zero and add the
base score last, where scikit-learn starts from it, so they agree to the rounding of a float64 sum only.
"""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import treelite.sklearn
from numpy.typing import NDArray
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from treelite.core import _LIB, _check_call
from treelite.gtil.gtil import GTILConfig

from serve_app.adapters.beside_serving import breathe

FORESTS = (RandomForestRegressor, RandomForestClassifier, ExtraTreesRegressor, ExtraTreesClassifier)
HISTOGRAM_BOOSTED = (HistGradientBoostingRegressor, HistGradientBoostingClassifier)
BOOSTED = (GradientBoostingRegressor, GradientBoostingClassifier, *HISTOGRAM_BOOSTED)

BOOSTED_RTOL = 1e-6
"""How far a boosted regression may be from scikit-learn's, relative to the largest output of the trial."""

TRIAL_ROWS = 512

_ROWS_FOR_WHOLE_TREES = 40
"""From this batch size on, calling scikit-learn's own trees one by one beats treelite: it costs some 4 microseconds a
tree and little more a row, treelite some 0.1 microseconds a tree and row. Both give the same bits."""

Scores = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Predict = Callable[[NDArray[np.float64]], NDArray[Any]]


class NotEqualError(Exception):
    """Treelite cannot stand in for this model; the message says why."""


def is_tree_ensemble(model: Any) -> bool:
    """Say whether `model` is of a class that treelite may compute."""
    return type(model) in FORESTS or type(model) in BOOSTED


def casts_to_float32(model: Any) -> bool:
    """Say whether scikit-learn narrows the input of `model`, so that values beyond float32 are an error."""
    return type(model) in FORESTS or type(model) in (GradientBoostingRegressor, GradientBoostingClassifier)


def compiled(model: Any, samples: NDArray[np.float64]) -> Predict:
    """Return a function that predicts as `model` does: float64 (batch, n_features) -> (batch,).

    It is tried against `model.predict` on `samples` and on generated rows in the range of the trees' thresholds, half
    of them exactly on thresholds.

    Raises:
        NotEqualError: Treelite does not take the model, or an output differs.
    """
    try:
        few = _with_labels(model, _treelite_scores(model))
        breathe()
        many = _with_labels(model, _whole_tree_scores(model)) if type(model) in FORESTS else few
        rows = np.concatenate([samples, trial_rows(model)])
        breathe()
        expected = model.predict(rows)
        for predict in (few, many):
            breathe()
            _compare(model, expected, predict(rows))
    except NotEqualError:
        raise
    except Exception as error:  # treelite refuses what it does not know with exceptions of many kinds
        raise NotEqualError(f"treelite cannot take it: {type(error).__name__}: {error}") from error
    return lambda rows: few(rows) if len(rows) < _ROWS_FOR_WHOLE_TREES else many(rows)


def compiled_probabilities(model: Any, samples: NDArray[np.float64]) -> Predict:
    """Return a function equal to `model.predict_proba` of a forest: float64 (batch, n_features) -> (batch, n_classes).

    It is tried as `compiled` is, and must give scikit-learn's bits.

    Raises:
        NotEqualError: Treelite does not take the model, or an output differs.
    """
    if type(model) not in FORESTS:
        raise NotEqualError("probabilities are taken from forests only")
    try:
        few, many = _treelite_scores(model), _whole_tree_scores(model)
        breathe()
        rows = np.concatenate([samples, trial_rows(model)])
        expected = model.predict_proba(rows)
        breathe()
        if not all(np.array_equal(expected, scores(rows)) for scores in (few, many)):
            raise NotEqualError("expected scikit-learn's probabilities, found others")
    except NotEqualError:
        raise
    except Exception as error:  # as above
        raise NotEqualError(f"treelite cannot take it: {type(error).__name__}: {error}") from error
    return lambda rows: few(rows) if len(rows) < _ROWS_FOR_WHOLE_TREES else many(rows)


def trial_rows(model: Any, n_rows: int = TRIAL_ROWS) -> NDArray[np.float64]:
    """Generate rows, float64 (n_rows, n_features), that reach the trees' branches; the same for the same model."""
    thresholds: list[list[NDArray[np.float64]]] = [[] for _ in range(model.n_features_in_)]
    for features, values in _splits(model):
        for feature in np.unique(features):
            thresholds[feature].append(values[features == feature])
    random = np.random.default_rng(20260130)
    columns = []
    for parts in thresholds:
        known = np.unique(np.concatenate(parts)) if parts else np.zeros(1)
        known = known[np.isfinite(known)] if np.isfinite(known).any() else np.zeros(1)
        margin = 0.1 * (known[-1] - known[0]) + 1e-3
        uniform = random.uniform(known[0] - margin, known[-1] + margin, n_rows)
        on_threshold = random.choice(known, n_rows)
        columns.append(np.where(random.random(n_rows) < 0.5, uniform, on_threshold))
    return np.stack(columns, axis=1)


def _splits(model: Any) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yield of each tree the features and the thresholds of its inner nodes."""
    if type(model) in HISTOGRAM_BOOSTED:
        for stage in model._predictors:
            for tree in stage:
                inner = tree.nodes[tree.nodes["is_leaf"] == 0]
                yield inner["feature_idx"].astype(np.int64), inner["num_threshold"]
        return
    for estimator in np.asarray(model.estimators_, dtype=object).ravel():
        inner = estimator.tree_.children_left >= 0
        yield estimator.tree_.feature[inner], estimator.tree_.threshold[inner]


def _treelite_scores(model: Any) -> Scores:
    """Call treelite's inference directly: its Python wrapper costs four times what a row of 100 trees does."""
    ensemble = treelite.sklearn.import_model(model)
    if ensemble.input_type != "float64" or ensemble.output_type != "float64":
        raise NotEqualError(f"expected a float64 treelite model, found {ensemble.input_type}/{ensemble.output_type}")
    if ensemble.num_feature != model.n_features_in_:
        raise NotEqualError(f"expected {model.n_features_in_} features, found {ensemble.num_feature} in treelite")
    # One thread: a row costs microseconds, and the replicas share the machine. Raw margins: labels are taken from them.
    config = GTILConfig(nthread=1, predict_type="default" if type(model) in FORESTS else "raw")
    trial = treelite.gtil.predict(ensemble, np.zeros((1, ensemble.num_feature)), nthread=1)
    n_scores = trial.size
    narrows = casts_to_float32(model)
    call = _LIB["TreeliteGTILPredict"]  # an own function object: setting its types leaves treelite's alone
    call.restype = ctypes.c_int
    call.argtypes = [*[ctypes.c_void_p] * 2, ctypes.c_char_p, ctypes.c_uint64, *[ctypes.c_void_p] * 2]
    handle, config_handle = ensemble.handle, config.handle

    # `ensemble` and `config` own the handles; the default arguments keep them alive as long as the function.
    def scores(rows: NDArray[np.float64], _owners: tuple[Any, Any] = (ensemble, config)) -> NDArray[np.float64]:
        rows = rows.astype(np.float32, order="C").astype(np.float64) if narrows else np.ascontiguousarray(rows)
        out = np.zeros((len(rows), n_scores))
        _check_call(call(handle, rows.ctypes.data, b"float64", len(rows), out.ctypes.data, config_handle))
        return out

    return scores


def _whole_tree_scores(forest: Any) -> Scores:
    """Sum the outputs of scikit-learn's own trees, in its order, without the thread pool around each call."""
    trees = [estimator.tree_ for estimator in forest.estimators_]

    def scores(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        narrow = rows.astype(np.float32, order="C")
        total = np.zeros((len(rows), trees[0].value.shape[2]))
        for tree in trees:
            total += tree.predict(narrow)
        total /= len(trees)
        return total

    return scores


def _with_labels(model: Any, scores: Scores) -> Predict:
    """Turn scores into what `model.predict` gives: the value, or the label of the highest score."""
    classes = getattr(model, "classes_", None)
    if classes is None:
        return lambda rows: scores(rows)[:, 0]
    if len(classes) == 2 and type(model) in BOOSTED:  # at exactly 0 the two kinds of boosting choose differently
        is_second = np.greater if type(model) in HISTOGRAM_BOOSTED else np.greater_equal
        return lambda rows: classes[is_second(scores(rows)[:, 0], 0.0).astype(np.int64)]
    return lambda rows: classes[scores(rows).argmax(axis=1)]


def _compare(model: Any, expected: NDArray[Any], found: NDArray[Any]) -> None:
    """Demand equal bits, or for boosted regressions a difference within `BOOSTED_RTOL`."""
    if expected.shape != found.shape:
        raise NotEqualError(f"expected outputs of shape {expected.shape}, found {found.shape}")
    if np.array_equal(expected, found):
        return
    n_wrong = int((expected != found).sum())
    if hasattr(model, "classes_"):
        raise NotEqualError(f"expected scikit-learn's labels, found {n_wrong} of {len(expected)} different")
    worst = float(np.abs(expected - found).max())
    allowed = BOOSTED_RTOL * float(np.abs(expected).max()) if type(model) in BOOSTED else 0.0
    if not worst <= allowed:
        raise NotEqualError(
            f"expected scikit-learn's outputs within {allowed:g}, found {n_wrong} of {len(expected)} different, "
            f"by up to {worst:g}"
        )
