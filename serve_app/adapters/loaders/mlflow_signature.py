"""Turns the signature that MLflow recorded into ours: the columns of the input and how they are named."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.adapters.loaders.mlmodel_file import ColumnSpec, InputExample, MlmodelFile
from serve_app.domain.errors import BundleError, InvalidInputError
from serve_app.domain.mlflow_schema import Table, enforced_rows
from serve_app.domain.signature import Column, DType, InputLayout

_COLUMN_TYPES: dict[str, DType] = {
    "double": "float64", "float": "float32", "long": "int64", "integer": "int32", "boolean": "bool",
}  # fmt: skip
_TENSOR_TYPES: dict[str, DType] = {name: name for name in ("float64", "float32", "int64", "int32", "bool")}
_SERVED = "only numbers and booleans are served"


@dataclass(frozen=True, slots=True)
class Inputs:
    """The columns that a model takes, and how its signature names them."""

    columns: tuple[Column, ...]
    layout: InputLayout

    @property
    def names(self) -> list[str]:
        """Names of the columns, in order."""
        return [column.name for column in self.columns]

    def rows_of(self, example: InputExample | None) -> NDArray[np.float64]:
        """Return the rows of an example, float64 (n, n_inputs); none where it does not fit."""
        empty = np.empty((0, len(self.columns)))
        if example is None:
            return empty
        table = Table(example.names or (tuple(self.names) if self.layout == "named" else None), example.rows)
        try:
            rows = enforced_rows(table, self.columns, max_rows=len(example.rows), layout=self.layout)
        except InvalidInputError:
            return empty
        return np.array(rows)


def inputs_of(mlmodel: MlmodelFile, example: InputExample | None, estimator: Any, where: str) -> Inputs:
    """Return the inputs that the signature records, or else those that the estimator was fitted on.

    `estimator` is None where the model is no scikit-learn one.

    Raises:
        BundleError: Nobody knows the inputs, or one of them is neither number nor boolean.
    """
    specs = mlmodel.signature.inputs if mlmodel.signature is not None else None
    if specs is None:
        return _fitted_inputs(estimator, where)
    if not specs:
        raise BundleError(where, ["signature.inputs: expected at least one, found none"])
    if any(spec.tensor is not None or spec.type == "tensor" for spec in specs):
        return _tensor_inputs(specs, example, where)
    if problems := [_problem(spec, i) for i, spec in enumerate(specs) if spec.type not in _COLUMN_TYPES]:
        raise BundleError(where, problems)
    is_named = all(spec.name is not None for spec in specs)
    names = [spec.name if is_named and spec.name is not None else f"feature_{i}" for i, spec in enumerate(specs)]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise BundleError(where, [f"signature.inputs: expected each name once, found {', '.join(doubles)} more often"])
    columns = [Column(name=name, dtype=_COLUMN_TYPES[spec.type]) for name, spec in zip(names, specs, strict=True)]
    return Inputs(tuple(columns), "named" if is_named else "positional")


def _problem(spec: ColumnSpec, i: int) -> str:
    return f"signature.inputs: {_SERVED}, found {spec.type!r} for {spec.name or f'input {i}'!r}"


def _tensor_inputs(specs: Sequence[ColumnSpec], example: InputExample | None, where: str) -> Inputs:
    """Return the columns of one tensor of shape (-1, n) or (-1,)."""
    tensor = specs[0].tensor
    expected = "signature.inputs: expected columns, or one tensor without a name of shape (-1, n)"
    if tensor is None or len(specs) > 1 or specs[0].name is not None:
        raise BundleError(
            where, [f"{expected}, found {len(specs)} inputs, of which one is a tensor, or one with a name"]
        )
    if tensor.shape != (-1,) and (len(tensor.shape) != 2 or tensor.shape[0] != -1 or tensor.shape[-1] < 1):
        raise BundleError(where, [f"{expected}, found one of shape {tensor.shape}"])
    if tensor.dtype not in _TENSOR_TYPES:
        raise BundleError(where, [f"signature.inputs: {_SERVED}, found a tensor of {tensor.dtype}"])
    width = 1 if len(tensor.shape) == 1 else tensor.shape[-1]
    names = example.names if example is not None and example.names is not None else ()
    if len(set(names)) != width:
        names = tuple(f"feature_{i}" for i in range(width))
    columns = tuple(Column(name=name, dtype=_TENSOR_TYPES[tensor.dtype]) for name in names)
    return Inputs(columns, "vector" if tensor.shape == (-1,) else "tensor")


def _fitted_inputs(estimator: Any, where: str) -> Inputs:
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None:
        return Inputs(tuple(Column(name=str(name)) for name in names), "exact")
    width = getattr(estimator, "n_features_in_", None)
    if width is None:
        raise BundleError(
            where, ["expected a signature in MLmodel, for nothing else says which inputs the model takes, found none"]
        )
    return Inputs(tuple(Column(name=f"feature_{i}") for i in range(width)), "free")


def output_names_of(mlmodel: MlmodelFile, width: int) -> tuple[str, ...] | None:
    """Return the names that the signature gives to `width` outputs; None where it gives none."""
    specs = mlmodel.signature.outputs if mlmodel.signature is not None else None
    names = tuple(spec.name for spec in specs or () if spec.name is not None)
    return names if len(names) == width == len(set(names)) else None
