"""Models as MLflow saves them, as bundles in memory."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # pandas ships no types

from serve_app.adapters.loaders.mlflow_settings import TREE_TYPES
from serve_app.usecases.ports import Bundle
from tests import builders
from tests.builders import INPUTS, rows

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints on import
    import mlflow
    import mlflow.pyfunc
    import mlflow.sklearn

FRAME = pd.DataFrame(rows(), columns=list(INPUTS))
NUMBERS = rows() @ np.arange(1.0, 4.0)
CLASSES = np.digitize(NUMBERS, np.quantile(NUMBERS, [0.3, 0.7]))


def saved(directory: Path, model: Any, *, example: Any = None, signature: Any = None, **options: Any) -> Bundle:
    """Have MLflow save a scikit-learn model; `signature` may be a pair of inputs and outputs to take it from."""
    options = {"serialization_format": "cloudpickle", "pip_requirements": ["scikit-learn"]} | options
    if options["serialization_format"] == "skops":
        options.setdefault("skops_trusted_types", list(TREE_TYPES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's advice on pickles and integer columns
        mlflow.sklearn.save_model(
            model, str(directory / "model"), signature=_signature(signature), input_example=example, **options
        )
    return bundle_at(directory)


def saved_function(directory: Path, model: Any, *, signature: Any = None, example: Any = None) -> Bundle:
    """Have MLflow save a Python function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        mlflow.pyfunc.save_model(
            str(directory / "model"),
            python_model=model,
            signature=_signature(signature),
            input_example=example,
            pip_requirements=["mlflow"],
        )
    return bundle_at(directory)


def loaded_by_mlflow(directory: Path) -> Any:
    """Return the model that was saved to `directory` as MLflow loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        return mlflow.pyfunc.load_model(str(directory / "model"))


def bundle_at(directory: Path, **changes: bytes) -> Bundle:
    """Return the files under `directory` as a bundle of the loader `mlflow`."""
    files = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    return builders.bundle(files | changes, loader="mlflow")


def changed(bundle: Bundle, path: str, old: str, new: str) -> Bundle:
    """Return a copy in which one file says something else."""
    text = bundle.files[path].decode()
    assert old in text
    return builders.bundle({**bundle.files, path: text.replace(old, new).encode()}, loader="mlflow")


def _signature(given: Any) -> Any:
    return mlflow.models.infer_signature(*given) if isinstance(given, tuple) else given
