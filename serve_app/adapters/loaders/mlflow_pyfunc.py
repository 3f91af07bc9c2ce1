"""Loads any model of MLflow as the Python function that its flavour makes of it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.adapters.loaders.estimators import Compute
from serve_app.adapters.loaders.mlflow_frames import frames_of
from serve_app.adapters.loaders.mlflow_signature import Inputs
from serve_app.adapters.loaders.mlmodel_file import DIRECTORY
from serve_app.domain.errors import BundleError


def loaded_pyfunc(files: Mapping[str, bytes], where: str) -> Any:
    """Have MLflow load the model from a private copy of its verified bytes; the copy is gone afterwards.

    Raises:
        BundleError: MLflow, or the model's own code, fails to load it.
    """
    # Here, because it takes two seconds and a hundred megabytes.
    import mlflow.pyfunc

    with tempfile.TemporaryDirectory(prefix="mlflow-model-") as directory:
        for path, content in files.items():
            if path.startswith(DIRECTORY):
                copy = Path(directory, path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content)
        try:
            return mlflow.pyfunc.load_model(str(Path(directory, DIRECTORY)), suppress_warnings=True)
        except Exception as error:  # loading runs foreign code, which may raise anything
            raise BundleError(
                where, [f"expected a model that MLflow can load, found one that fails: {type(error).__name__}: {error}"]
            ) from error


def pyfunc_computing(model: Any, inputs: Inputs) -> Compute:
    """Return what has the model predict float64 rows, given as the data frame or the tensor of its signature."""
    dtypes = [column.dtype for column in inputs.columns]
    if inputs.layout == "vector":
        return lambda rows: model.predict(rows[:, 0].astype(dtypes[0], copy=False))
    if inputs.layout == "tensor":
        return lambda rows: model.predict(rows.astype(dtypes[0], copy=False))
    framed = frames_of(inputs.names, dtypes)

    def compute(rows: NDArray[np.float64]) -> Any:
        return model.predict(framed(rows))

    return compute
