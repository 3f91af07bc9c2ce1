"""Loads MLflow's scikit-learn flavour straight from its bytes, without MLflow, and computes it."""

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from serve_app.adapters.beside_serving import BreathingFile
from serve_app.adapters.loaders.estimators import Compute, forget_names, through_trees, use_one_thread
from serve_app.adapters.loaders.mlflow_frames import frames_of
from serve_app.adapters.loaders.mlflow_settings import MlflowLoaderSettings
from serve_app.adapters.loaders.mlflow_signature import Inputs
from serve_app.adapters.loaders.mlmodel_file import DIRECTORY, SklearnFlavor
from serve_app.adapters.loaders.skops_import import skops_functions
from serve_app.adapters.loaders.tree_check import tree_problem
from serve_app.adapters.loaders.tree_engine import casts_to_float32
from serve_app.domain.errors import BundleError, PredictionError

METHODS = ("predict", "predict_proba", "predict_log_proba", "predict_joint_log_proba", "decision_function", "transform")
"""What of an estimator may be called by the name that the model gives."""

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def deserialized(files: Mapping[str, bytes], flavor: SklearnFlavor, settings: MlflowLoaderSettings, where: str) -> Any:
    """Return the estimator, from the verified bytes of its file.

    Raises:
        BundleError: The file is not there, its format is not allowed here, or it holds no estimator.
    """
    path = DIRECTORY + flavor.pickled_model
    if path not in files:
        raise BundleError(where, [f"expected the estimator in {path}, as MLmodel says, found no such file"])
    check_format(flavor.serialization_format, settings, where)
    try:
        if flavor.serialization_format == "skops":
            return _from_skops(files[path], settings)
        return _READERS[flavor.serialization_format](files[path])
    except _UntrustedError as error:
        raise BundleError(where, [f"{path}: {error}"]) from error
    except Exception as error:  # unpickling runs foreign code, which may raise anything
        problem = f"expected a file in the format {flavor.serialization_format}, found one that fails"
        raise BundleError(where, [f"{path}: {problem}: {type(error).__name__}: {error}"]) from error


def check_format(found: str, settings: MlflowLoaderSettings, where: str) -> None:
    """Refuse a format that does not exist, or that the operator does not allow.

    Raises:
        BundleError: It is one of these.
    """
    if found not in (*settings.formats, "skops", "pyfunc", *_READERS):
        known = ", ".join(("skops", *_READERS))
        raise BundleError(where, [f"MLmodel: expected one of the formats {known}, found {found!r}"])
    if found not in settings.formats:
        allowed = ", ".join(settings.formats) or "none"
        problem = f"expected a format that the configuration allows for models of MLflow ({allowed}), found {found!r}"
        raise BundleError(where, [problem])


class _UntrustedError(Exception):
    """The file holds types that the operator does not trust, or trees that do not hold together."""


def _from_skops(raw: bytes, settings: MlflowLoaderSettings) -> Any:
    get_untrusted_types, loads = skops_functions()
    untrusted = sorted(set(get_untrusted_types(data=raw)) - set(settings.trusted_types))
    if untrusted:
        raise _UntrustedError(
            "expected only types that skops or the configuration trusts, found " + ", ".join(untrusted)
        )
    estimator = loads(raw, trusted=list(settings.trusted_types))
    if problem := tree_problem(estimator):
        raise _UntrustedError(problem)
    return estimator


# All three are pickle; only joblib writes it in a way of its own. That they may run code is for `check_format`.
_READERS: Mapping[str, Callable[[bytes], Any]] = {
    "pickle": pickle.loads,
    "cloudpickle": pickle.loads,
    "joblib": lambda raw: joblib.load(BreathingFile(raw)),
}


def fit_problems(estimator: Any, inputs: Inputs, method: str) -> list[str]:
    """List why an estimator cannot answer with this method for these inputs."""
    problems = []
    if method not in METHODS:
        problems.append(f"MLmodel: expected one of the predict_fn {', '.join(METHODS)}, found {method!r}")
    elif not callable(getattr(estimator, method, None)):
        problems.append(f"expected an estimator with {method}(), found a {type(estimator).__name__}")
    n_features = getattr(estimator, "n_features_in_", None)
    if n_features is not None and n_features != len(inputs.columns):
        problems.append(f"signature.inputs: expected {n_features} as the estimator, found {len(inputs.columns)}")
    fitted = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
    if fitted and inputs.layout == "named" and fitted != inputs.names:
        problems.append(
            f"signature.inputs: expected the columns that the estimator was fitted on, in their order "
            f"({', '.join(fitted)}), found {', '.join(inputs.names)}"
        )
    return problems


def computing(estimator: Any, inputs: Inputs, samples: NDArray[np.float64], *, method: str) -> tuple[Compute, str]:
    """Return what computes `estimator.<method>` on float64 rows, and which engine does."""
    use_one_thread(estimator)
    forget_names(estimator)
    compute, reason = through_trees(estimator, samples, method=method)
    if compute is None:
        return _by_scikit_learn(estimator, inputs, method), f"scikit-learn: {reason}"
    return _guarded(compute, estimator, inputs), "treelite"


def _guarded(compute: Compute, forest: Any, inputs: Inputs) -> Compute:
    """Refuse what scikit-learn's own checks would: treelite has none."""
    takes_nan = _takes_nan(forest)
    most = _FLOAT32_MAX if casts_to_float32(forest) else float(np.finfo(np.float64).max)

    def guarded(rows: NDArray[np.float64]) -> NDArray[Any]:
        if not np.abs(rows).max(initial=0.0) <= most:  # NaN is not at most anything, either
            wrong = np.abs(rows) > most
            if not takes_nan:
                wrong |= np.isnan(rows)
            if wrong.any():
                row, column = np.argwhere(wrong)[0].tolist()
                raise PredictionError(
                    f"row {row}, field {inputs.names[column]!r}: expected a number that the model can take, "
                    f"got {float(rows[row, column]):g}"
                )
        return compute(rows)

    return guarded


def _takes_nan(forest: Any) -> bool:
    try:
        forest.predict(np.full((1, forest.n_features_in_), np.nan))
    except ValueError:
        return False
    return True


def _by_scikit_learn(estimator: Any, inputs: Inputs, method: str) -> Compute:
    """Call the estimator with what MLflow would give it: the types of the signature, and names where it needs them."""
    call = getattr(estimator, method)
    names = getattr(estimator, "feature_names_in_", None)
    dtypes = [column.dtype for column in inputs.columns]
    if names is None and len(set(dtypes)) == 1:
        return lambda rows: call(rows.astype(dtypes[0], copy=False))
    framed = frames_of([str(name) for name in names] if names is not None else inputs.names, dtypes)
    # An estimator without names would warn at each frame that has some.
    return (lambda rows: call(framed(rows))) if names is not None else (lambda rows: call(framed(rows).to_numpy()))
