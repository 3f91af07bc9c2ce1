"""Reads `MLmodel` and the files beside it, in which MLflow writes down what a logged model is."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Json, ValidationError

from serve_app.domain.errors import BundleError
from serve_app.domain.validation import problems_of

DIRECTORY = "model/"
"""Where the files of the model lie in a bundle."""

MLMODEL = DIRECTORY + "MLmodel"
_MAX_BYTES = 4 << 20
_MAX_EXAMPLE_ROWS = 64


class _Part(BaseModel):
    """MLflow adds keys with every release: those that nobody reads here are none of our business."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]
"""A version such as 3.11, which YAML reads as a number where nobody quotes it."""


class SklearnFlavor(_Part):
    """How the scikit-learn estimator was saved."""

    pickled_model: str
    serialization_format: str = "pickle"
    sklearn_version: Text | None = None
    code: str | None = None


class PyfuncFlavor(_Part):
    """How MLflow loads the model as a Python function."""

    loader_module: str
    predict_fn: str = "predict"
    python_version: Text | None = None
    code: str | None = None


class PytorchFlavor(_Part):
    """Which release of torch saved the model."""

    pytorch_version: Text | None = None


class Flavors(_Part):
    """The ways to load the model that are of interest here."""

    python_function: PyfuncFlavor | None = None
    sklearn: SklearnFlavor | None = None
    pytorch: PytorchFlavor | None = None


class TensorSpec(_Part):
    """The type and the shape of an array, -1 where any length will do."""

    dtype: str
    shape: tuple[int, ...]


class ColumnSpec(_Part):
    """One input or output: a column of a data frame, or (`type: tensor`) an array."""

    type: str
    name: Text | None = None
    required: bool = True
    tensor: Annotated[TensorSpec | None, Field(alias="tensor-spec")] = None


class ModelSignature(_Part):
    """What goes in and out; each side a JSON text in the YAML file."""

    inputs: Json[tuple[ColumnSpec, ...]] | None = None
    outputs: Json[tuple[ColumnSpec, ...]] | None = None


class ExampleInfo(_Part):
    """Where the input example lies, and as what it was written."""

    artifact_path: str
    type: str = ""
    pandas_orient: str | None = None


class MlmodelFile(_Part):
    """The parsed `MLmodel`."""

    flavors: Flavors
    signature: ModelSignature | None = None
    saved_input_example_info: ExampleInfo | None = None
    mlflow_version: Text | None = None

    @classmethod
    def read(cls, files: Mapping[str, bytes], where: str) -> "MlmodelFile":
        """Read it from the files of a bundle; `where` names the bundle in messages.

        Raises:
            BundleError: There is none, or it is not what MLflow writes, with all problems.
        """
        raw = files.get(MLMODEL)
        if raw is None:
            raise BundleError(where, [f"expected a file {MLMODEL}, as MLflow writes it, found none"])
        if len(raw) > _MAX_BYTES:
            raise BundleError(where, [f"{MLMODEL}: expected at most {_MAX_BYTES} bytes, found {len(raw)}"])
        try:
            return cls.model_validate(yaml.safe_load(raw))
        except ValidationError as error:
            raise BundleError(where, [f"{MLMODEL}: {problem}" for problem in problems_of(error, cls)]) from error
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise BundleError(where, [f"{MLMODEL}: expected YAML, found: {error}"]) from error


class InputExample:
    """The rows that whoever logged the model added as an example, and the names of their columns."""

    def __init__(self, names: tuple[str, ...] | None, rows: list[list[Any]]) -> None:
        self.names = names
        self.rows = rows

    @classmethod
    def read(cls, files: Mapping[str, bytes], mlmodel: MlmodelFile) -> "InputExample | None":
        """Read it; None where there is none, or none that is a table."""
        info = mlmodel.saved_input_example_info
        raw = files.get(DIRECTORY + info.artifact_path) if info is not None else None
        if raw is None:
            return None
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError):
            return None
        names = None
        if isinstance(document, dict):
            columns = document.get("columns")
            names = tuple(map(str, columns)) if isinstance(columns, list) else None
            document = document.get("data", document.get("inputs"))
        if not isinstance(document, list) or not document or not all(isinstance(row, list) for row in document):
            return None
        return cls(names, document[:_MAX_EXAMPLE_ROWS])
