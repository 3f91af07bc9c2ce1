"""Small models as MLflow saves them, one for each way in which a signature may name inputs and outputs."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression
from starlette.types import ASGIApp

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing MLflow warns of its own type hints
    import mlflow.pyfunc
    import mlflow.sklearn
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.pyfunc import scoring_server
    from mlflow.types.schema import ColSpec, Schema, TensorSpec

IRIS = ["sepal length", "sepal width", "petal length", "petal width"]
_RNG = np.random.default_rng(7)
_X = _RNG.normal(2.0, 2.0, size=(120, 4))
_Y = (_X[:, 0] > 2.0).astype(int) + (_X[:, 2] > 3.0)


def halves(model_input):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201  # MLflow makes a signature of hints
    """Answer a data frame of two columns, of different types."""
    total = model_input.sum(axis=1)
    return pd.DataFrame({"half": total / 2, "is_large": (total > 4).astype("int64")})


def _forest_on_named_columns(path: Path) -> None:
    frame = pd.DataFrame(_X, columns=IRIS)
    forest = RandomForestClassifier(5, random_state=1).fit(frame, np.array(["setosa", "versicolor", "virginica"])[_Y])
    _save(path, forest, infer_signature(frame, forest.predict(frame)))


def _forest_on_mixed_types(path: Path) -> None:
    frame = pd.DataFrame({"a": _X[:, 0], "b": (_X[:, 1] * 3).astype("int64"), "c": _X[:, 2] > 2})
    frame["f"], frame["i"] = _X[:, 3].astype("float32"), (_X[:, 0] * 5).astype("int32")
    forest = RandomForestRegressor(5, random_state=1).fit(frame, _X.sum(axis=1))
    _save(path, forest, infer_signature(frame, forest.predict(frame)))


def _two_targets_on_a_tensor(path: Path) -> None:
    model = LinearRegression().fit(_X, _X[:, :2] * [2.0, 3.0])
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("float64"), (-1, 4))]), Schema([TensorSpec(np.dtype("float64"), (-1, 2))])
    )
    _save(path, model, signature)


def _line_on_one_column(path: Path) -> None:
    frame = pd.DataFrame({"x": _X[:, 0]})
    _save(path, LinearRegression().fit(frame, _X[:, 0] * 2.0), infer_signature(frame, _X[:, 0]))


def _line_without_a_signature(path: Path) -> None:
    _save(path, LinearRegression().fit(_X, _X[:, 0] * 2.0), None)


def _line_on_columns_without_names(path: Path) -> None:
    signature = ModelSignature(Schema([ColSpec("double")] * 4), Schema([ColSpec("double")]))
    _save(path, LinearRegression().fit(_X, _X[:, 0] * 2.0), signature)


def _function_with_a_frame_as_answer(path: Path) -> None:
    frame = pd.DataFrame(_X[:, :2], columns=["p", "q"])
    answer: Any = halves(frame)  # type: ignore[no-untyped-call]
    mlflow.pyfunc.save_model(
        str(path), python_model=halves, signature=infer_signature(frame, answer), pip_requirements=[]
    )


def _save(path: Path, model: Any, signature: ModelSignature | None) -> None:
    mlflow.sklearn.save_model(
        model, str(path), signature=signature, serialization_format="cloudpickle", pip_requirements=[]
    )


SAVERS: dict[str, Callable[[Path], None]] = {
    "forest on named columns": _forest_on_named_columns,
    "forest on mixed types": _forest_on_mixed_types,
    "two targets on a tensor": _two_targets_on_a_tensor,
    "line on one column": _line_on_one_column,
    "line without a signature": _line_without_a_signature,
    "line on columns without names": _line_on_columns_without_names,
    "function with a frame as answer": _function_with_a_frame_as_answer,
}


def scoring_app(directory: Path) -> ASGIApp:
    """Return MLflow's own scoring server around a saved model."""
    app: ASGIApp = scoring_server.init(mlflow.pyfunc.load_model(str(directory)))
    return app


def save(name: str, path: Path) -> Path:
    """Save a model into a new directory and return it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns of integers that may be missing, of names, of its own future
        SAVERS[name](path)
    return path
