"""What every loader of scikit-learn estimators does to them: calm them down, compute them by the quickest engine."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.adapters.loaders.tree_engine import NotEqualError, compiled, compiled_probabilities, is_tree_ensemble
from serve_app.domain.signature import DType

Compute = Callable[[NDArray[np.float64]], NDArray[Any]]


def use_one_thread(model: Any) -> None:
    """Stop `model` from starting threads: for a few rows they cost more, and they sum a forest in a varying order."""
    if hasattr(model, "n_jobs"):
        model.n_jobs = 1


def forget_names(model: Any) -> None:
    """Let a model that was fitted on a data frame take arrays without a warning each time; names are checked."""
    for part in (model, *np.asarray(getattr(model, "estimators_", ()), dtype=object).ravel()):
        if "feature_names_in_" in getattr(part, "__dict__", {}):
            del part.feature_names_in_


def columns_wanted(model: Any) -> tuple[str, ...] | None:
    """Return the names of a data frame's columns where the model insists on one; call it after `forget_names`."""
    names = getattr(model, "feature_names_in_", None)
    return None if names is None else tuple(map(str, names))


def through_trees(model: Any, samples: NDArray[np.float64], *, method: str = "predict") -> tuple[Compute | None, str]:
    """Return what computes `model.<method>` through treelite, or None and the reason why not.

    It was tried against scikit-learn on `samples`, float64 (n, n_features), and on generated rows.
    """
    if not is_tree_ensemble(model):
        return None, "no tree ensemble"
    if method not in ("predict", "predict_proba"):
        return None, f"{method} is left to it"
    try:
        return (compiled if method == "predict" else compiled_probabilities)(model, samples), ""
    except NotEqualError as error:
        return None, str(error)


def dtype_of_labels(model: Any) -> DType:
    """Say of which type the outputs of `predict` are."""
    classes = getattr(model, "classes_", None)
    return "float64" if classes is None else dtype_of_kind(np.asarray(classes).dtype.kind)


def dtype_of_kind(kind: str) -> DType:
    """Say which type of column holds values of numpy's `kind` of dtype; text where nothing else does."""
    return "int64" if kind in "iu" else "float64" if kind == "f" else "bool" if kind == "b" else "string"


def array_type(dtypes: set[DType]) -> type[np.generic]:
    """Choose the type that holds all columns: int64 for whole numbers alone, object where there is text or truth."""
    if dtypes == {"int64"}:
        return np.int64
    return np.float64 if dtypes <= {"int64", "float64"} else np.object_
