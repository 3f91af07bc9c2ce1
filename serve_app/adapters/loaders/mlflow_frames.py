"""Data frames in and out of a model: rows of floats become what it was fitted on, its answer becomes rows again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.adapters.loaders.estimators import array_type, dtype_of_kind
from serve_app.domain.signature import DType, OutputLayout


def frames_of(names: Sequence[str], dtypes: Sequence[DType]) -> Callable[[NDArray[np.float64]], Any]:
    """Return a function that makes float64 rows, (batch, len(names)), a data frame with these names and types."""
    # Here, because only what wants data frames needs it; and pandas ships no types.
    import pandas as pd  # type: ignore[import-untyped]

    def framed(rows: NDArray[np.float64]) -> Any:
        if len(set(dtypes)) == 1:
            return pd.DataFrame(rows.astype(dtypes[0], copy=False), columns=list(names))
        return pd.DataFrame({name: rows[:, i].astype(dtypes[i]) for i, name in enumerate(names)})

    return framed


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model gave for a batch: its form, the names it used, if any, and its columns."""

    layout: OutputLayout
    names: tuple[str, ...] | None
    columns: tuple[NDArray[Any], ...]

    @property
    def dtypes(self) -> tuple[DType, ...]:
        """Types of the columns."""
        return tuple(dtype_of_kind(column.dtype.kind) for column in self.columns)

    @classmethod
    def of(cls, raw: Any) -> "Answer":
        """Take apart an array, a data frame, a series or a list, as MLflow's scoring server would write them.

        Raises:
            ValueError: It is something else, or of more than two dimensions.
        """
        if type(raw).__module__.partition(".")[0] == "pandas":
            return cls._of_pandas(raw)
        if isinstance(raw, list) and raw and all(isinstance(row, dict) for row in raw):
            names = tuple(raw[0])
            if any(tuple(row) != names for row in raw):
                raise ValueError("expected records with the same fields, found some with others")
            columns = tuple(np.asarray([row[name] for row in raw]) for name in names)
            return cls("records", tuple(map(str, names)), columns)
        if not isinstance(raw, np.ndarray | list):
            raise ValueError(f"expected an array, a data frame or a list, found a {type(raw).__name__}")
        values = np.asarray(raw)
        if values.ndim == 1:
            return cls("values", None, (values,))
        if values.ndim == 2:
            return cls("rows", None, tuple(values.T))
        raise ValueError(f"expected outputs of one or two dimensions, found {values.ndim}")

    @classmethod
    def _of_pandas(cls, raw: Any) -> "Answer":
        if hasattr(raw, "columns"):
            names = tuple(map(str, raw.columns))
            return cls("records", names, tuple(raw.iloc[:, i].to_numpy() for i in range(len(names))))
        return cls("records", ("0" if raw.name is None else str(raw.name),), (raw.to_numpy(),))

    def stacked(self, output_type: type[np.generic]) -> NDArray[Any]:
        """Return the columns side by side as `output_type`, (batch, n_outputs).

        Raises:
            ValueError: A column cannot be of that type without a loss.
        """
        out = np.empty((len(self.columns[0]) if self.columns else 0, len(self.columns)), dtype=output_type)
        for i, column in enumerate(self.columns):
            if output_type is not np.object_ and not np.can_cast(column.dtype, output_type, "same_kind"):
                raise ValueError(f"expected outputs that are {output_type.__name__}, found {column.dtype}")
            out[:, i] = column
        return out


def output_type_of(answer: Answer) -> type[np.generic]:
    """Return the type that holds all columns of an answer."""
    return array_type(set(answer.dtypes))
