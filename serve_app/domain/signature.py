"""What a model takes and gives: named, typed columns, and the check of a request against them."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.domain.errors import InvalidInputError, nearest

DType = Literal["float64", "float32", "int64", "int32", "bool", "string"]

InputLayout = Literal["named", "positional", "tensor", "vector", "exact", "free"]
"""How a model of MLflow names its inputs. In its terms: columns with names; columns without; one tensor of shape
(-1, n); one of shape (-1,); no signature, and an estimator that knows its columns' names; none, and one that does not.
"""

OutputLayout = Literal["values", "rows", "records"]
"""What MLflow's server answers with for each row: a value, a list, or an object (data frames)."""


TypedInput = tuple[int, str, DType]
"""Place, name and type of an input that does not take every float64."""


class Column(BaseModel):
    """One named value of a row, or a tensor of them.

    `shape` is that of one row's tensor; a row holds it flattened, row-major. Empty: one number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: DType = "float64"
    unit: str | None = None
    description: str | None = None
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(exclude_if=operator.not_)] = ()

    @property
    def width(self) -> int:
        """How many values of a row it takes."""
        return math.prod(self.shape)


class Signature(BaseModel):
    """The columns of a family: `inputs` in the order the model takes them, `outputs` in the order it gives them.

    The layouts are there for models of MLflow only; its protocol depends on them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]
    input_layout: InputLayout | None = None
    output_layout: OutputLayout | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Signature":
        for side, columns in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [column.name for column in columns]
            if not names:
                raise ValueError(f"{side} must name at least one column")
            if doubles := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{side} name a column twice: {', '.join(doubles)}")
        return self

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """Names of the input columns, in order."""
        return tuple(column.name for column in self.inputs)

    @cached_property
    def typed_inputs(self) -> tuple[TypedInput, ...]:
        """The inputs whose values need a closer look than that they are finite; none in most signatures."""
        return tuple((i, column.name, column.dtype) for i, column in enumerate(self.inputs) if column.dtype in _FITS)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the output columns, in order."""
        return tuple(column.name for column in self.outputs)

    @cached_property
    def input_width(self) -> int:
        """Values in a row: one for each input, and for each element of a tensor."""
        return sum(column.width for column in self.inputs)

    @cached_property
    def output_width(self) -> int:
        """Values in the answer to a row, counted as `input_width`."""
        return sum(column.width for column in self.outputs)

    @cached_property
    def has_tensors(self) -> bool:
        """True when a column is more than one number; rows of JSON cannot carry such a signature."""
        return any(column.shape for column in (*self.inputs, *self.outputs))

    def output_at(self, place: int) -> str:
        """Return the name of one value of an answer: `cpu`, or `forecast[3]` for an element of a tensor."""
        for column in self.outputs:
            if place < column.width:
                return f"{column.name}[{place}]" if column.shape else column.name
            place -= column.width
        raise IndexError(f"expected a place below {self.output_width}, found one beyond it")


def rows_of(
    instances: Any, input_names: Sequence[str], *, max_rows: int, typed: Sequence[TypedInput] = ()
) -> list[list[float]]:
    """Turn the rows of a request into lists of finite floats in the order of `input_names`.

    A row is a list of numbers, one for each input, or an object with exactly the inputs as keys. A single row given
    without the outer list is taken as one row. `typed` are the inputs that take less than any float64, from
    `Signature.typed_inputs`; without them nothing else is looked at.

    Raises:
        InvalidInputError: A row has the wrong length, a missing or unknown field, or a value that is no finite number.
    """
    if isinstance(instances, Mapping) or (isinstance(instances, list) and instances and _is_scalar(instances[0])):
        instances = [instances]
    if not isinstance(instances, list):
        raise InvalidInputError(f"expected a list of rows, got {json_kind(instances)}")
    if not instances:
        raise InvalidInputError("expected at least one row, got an empty list")
    if len(instances) > max_rows:
        raise InvalidInputError(f"expected at most {max_rows} rows in a request, got {len(instances)}")
    if typed:
        return [_typed_row(instance, i, input_names, typed) for i, instance in enumerate(instances)]
    return [_row(instance, i, input_names) for i, instance in enumerate(instances)]


def _typed_row(instance: Any, i: int, input_names: Sequence[str], typed: Sequence[TypedInput]) -> list[float]:
    """Check a row against the types, and then as any other: true and false become 1 and 0 where they may stand."""
    is_object = isinstance(instance, dict)
    values: Any = instance.copy() if isinstance(instance, dict | list) else instance
    for place, name, dtype in typed:
        at: Any = name if is_object else place
        if (is_object and name in values) or (isinstance(values, list) and place < len(values)):
            value = values[at]
            if dtype == "bool" and isinstance(value, bool):
                values[at] = int(value)
            elif type(value) in (int, float) and not _FITS[dtype](value):
                raise InvalidInputError(f"row {i}, field {name!r}: expected {_EXPECTED[dtype]}, got {json_kind(value)}")
    return _row(values, i, input_names)


def _row(instance: Any, i: int, input_names: Sequence[str]) -> list[float]:
    if isinstance(instance, list):
        if len(instance) != len(input_names):
            raise InvalidInputError(
                f"row {i}: expected {len(input_names)} values ({_some(input_names)}), got {len(instance)}"
            )
        values = instance
    elif isinstance(instance, dict):
        _check_fields(instance, i, input_names)
        values = [instance[name] for name in input_names]
    else:
        raise InvalidInputError(
            f"row {i}: expected a list of {len(input_names)} numbers or an object, got {json_kind(instance)}"
        )
    for value, name in zip(values, input_names, strict=True):
        if type(value) is not float and type(value) is not int:
            raise InvalidInputError(f"row {i}, field {name!r}: expected a number, got {json_kind(value)}")
        if not _is_finite(value):
            raise InvalidInputError(
                f"row {i}, field {name!r}: expected a finite number, got one beyond the range of float64"
            )
    return values


_FLOAT32_MAX = 3.4028234663852886e38
_FITS: Mapping[DType, Callable[[float], bool]] = {
    "float32": lambda value: abs(value) <= _FLOAT32_MAX or not _is_finite(value),  # what is not has its own message
    "int64": lambda value: value == value // 1 and -(1 << 53) <= value <= 1 << 53,
    "int32": lambda value: value == value // 1 and -(1 << 31) <= value < 1 << 31,
    "bool": lambda value: value in (0, 1),
}
_EXPECTED: Mapping[DType, str] = {
    "float32": "a number within the range of float32",
    "int64": "an integer of at most 2**53, beyond which float64 has gaps,",
    "int32": "an integer within the range of int32",
    "bool": "true, false, 1 or 0",
}


def _check_fields(instance: dict[str, Any], i: int, input_names: Sequence[str]) -> None:
    unknown = next((name for name in instance if name not in input_names), None)
    if unknown is not None:
        raise InvalidInputError(f"row {i}: unknown field {shortened(unknown)}{nearest(unknown, input_names)}")
    missing = [name for name in input_names if name not in instance]
    if missing:
        raise InvalidInputError(f"row {i}: missing field{'s' if len(missing) > 1 else ''} {_some(missing)}")


def shortened(text: str, most: int = 64) -> str:
    """Quote what a client sent for a message, at most `most` characters of it."""
    return repr(text if len(text) <= most else text[:most] + "…")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for float64
        return False


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, list | dict)


def _some(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … {len(names) - most} more"


def json_kind(value: Any) -> str:
    """Name the JSON type of `value`, with a short look at it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {shortened(value, 24)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "an object"
    text = str(value)
    return f"the number {text if len(text) <= 24 else text[:24] + '…'}"
