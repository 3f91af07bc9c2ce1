"""The bodies of the Open Inference Protocol: tensors in, tensors out.

The protocol: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md.
Left out, and refused: the extensions for binary tensors and for shared memory. Answers are JSON, also to whoever asks
for binary outputs: clients of such servers read both.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
from numpy.typing import NDArray

from serve_app.domain.errors import InvalidInputError, NotJsonError, nearest
from serve_app.domain.signature import Column, DType, Signature, json_kind, rows_of, shortened
from serve_app.ingress.dialect import Dialect, Rows
from serve_app.ingress.protocol_bodies import (
    check_asked,
    check_entity,
    error_response,
    object_of,
    rows_of_columns,
    values_of,
)
from serve_app.ingress.wire import MAX_ENTITY_CHARACTERS
from serve_app.usecases.route_request import Target

DATATYPE_OF: Final[Mapping[DType, str]] = {
    "float64": "FP64", "float32": "FP32", "int64": "INT64", "int32": "INT32", "bool": "BOOL", "string": "BYTES",
}  # fmt: skip
_WHOLE: Final = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})
DATATYPES: Final = _WHOLE | {"BOOL", "BYTES", "FP16", "FP32", "FP64"}
_BINARY: Final = b'"binary_data_size"'
_BINARY_AT_MOST: Final = 1 << 16
"""Bytes of a body that are searched for the sign of binary tensors: their description comes first."""
_BINARY_REFUSED: Final = "binary tensors are not read: expected 'data' in the JSON of each input"
_Kind = TypeVar("_Kind")


def described(column: Column) -> dict[str, Any]:
    """Return the metadata of one input or output."""
    return {"name": column.name, "datatype": DATATYPE_OF[column.dtype], "shape": [-1, *column.shape]}


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One input of a request; `values` are flat, row-major."""

    name: str
    shape: list[int]
    values: list[Any]


class Inferring:
    """One request: what it wants of its answer is kept from reading to writing. `version` is that of its path."""

    __slots__ = ("_id", "_outputs", "_version")

    def __init__(self, version: str | None) -> None:
        self._version = version
        self._id: str | None = None
        self._outputs: frozenset[str] | None = None

    def read(self, body: bytes, content_type: bytes, target: Target, max_rows: int) -> Rows:
        """Return the rows that the tensors of a body are."""
        check_asked(content_type, target, self._version)
        document = _document_of(body)
        self._id = _optional(document, "id", str, "a string")
        parameters = _optional(document, "parameters", dict, "an object")
        check_entity(parameters or {})
        self._outputs = _wanted(document, target.signature)
        inputs = document.get("inputs")
        if type(inputs) is not list or not inputs:
            got = "none" if inputs is None else json_kind(inputs)
            raise InvalidInputError(f"'inputs': expected a list of tensors, got {got}")
        rows = _rows(inputs, target.input_names)
        return rows_of(rows, target.input_names, max_rows=max_rows, typed=target.signature.typed_inputs)

    def write(self, outputs: NDArray[Any], target: Target) -> bytes:
        """Write outputs (n_rows, n_outputs) as a tensor for each that is wanted."""
        document: dict[str, Any] = {"model_name": target.family, "model_version": target.version}
        if self._id is not None:
            document["id"] = self._id
        document["outputs"] = [
            {
                "name": column.name,
                "datatype": DATATYPE_OF[column.dtype],
                "shape": [len(values)],
                "data": values_of(column, values),
            }
            for column, values in zip(target.signature.outputs, outputs.T, strict=True)
            if self._outputs is None or column.name in self._outputs
        ]
        return orjson.dumps(document)


def infer_dialect(version: str | None) -> Dialect:
    """Return how one request for a version, None for whichever answers, is read and answered."""
    inferring = Inferring(version)
    return Dialect(inferring.read, inferring.write, error_response, _entity_of)


def _entity_of(body: bytes) -> str | None:
    """Return `parameters.entity`; what is wrong with a body, `read` says."""
    if b'"entity"' not in body:
        return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    parameters = document.get("parameters") if type(document) is dict else None
    entity = parameters.get("entity") if type(parameters) is dict else None
    return entity[:MAX_ENTITY_CHARACTERS] if isinstance(entity, str) else None


def _document_of(body: bytes) -> dict[str, Any]:
    try:
        return object_of(body)
    except NotJsonError:
        if _BINARY in body[:_BINARY_AT_MOST]:
            raise InvalidInputError(_BINARY_REFUSED) from None
        raise


def _optional(document: Mapping[str, Any], key: str, kind: type[_Kind], said: str) -> _Kind | None:
    value = document.get(key)
    if value is None or isinstance(value, kind):
        return value
    raise InvalidInputError(f"{key!r}: expected {said}, got {json_kind(value)}")


def _wanted(document: Mapping[str, Any], signature: Signature) -> frozenset[str] | None:
    """Return the names of the outputs that a request chooses; None for all."""
    chosen = _optional(document, "outputs", list, "a list of outputs")
    if not chosen:
        return None
    known = signature.output_names
    for i, output in enumerate(chosen):
        name = output.get("name") if type(output) is dict else None
        if not isinstance(name, str):
            raise InvalidInputError(f"'outputs', {i}: expected an object with 'name', got {json_kind(output)}")
        if name not in known:
            raise InvalidInputError(f"unknown output {shortened(name)}{nearest(name, known)}")
    return frozenset(output["name"] for output in chosen)


def _rows(inputs: list[Any], input_names: Sequence[str]) -> list[list[Any]]:
    """Lay out tensors: one of shape [n, n_inputs], or one for each input of shape [n] or [n, 1]."""
    tensors = [_tensor(value, i) for i, value in enumerate(inputs)]
    if len(tensors) == 1 and _is_matrix(tensors[0], input_names):
        values, width = tensors[0].values, len(input_names)
        return [values[at : at + width] for at in range(0, len(values), width)]
    columns: dict[str, list[Any]] = {}
    for tensor in tensors:
        if tensor.name in columns:
            raise InvalidInputError(f"input {shortened(tensor.name)}: expected once, got twice")
        if tensor.shape[1:] not in ([], [1]):
            raise InvalidInputError(f"input {shortened(tensor.name)}: expected shape [n] or [n, 1], got {tensor.shape}")
        columns[tensor.name] = tensor.values
    return rows_of_columns(columns, input_names)


def _is_matrix(tensor: _Tensor, input_names: Sequence[str]) -> bool:
    """Say whether the only tensor of a request holds all inputs; its name matters only where it could be a column."""
    width = len(input_names)
    if tensor.shape[1:] == [width]:
        return True
    if tensor.name in input_names:
        return False
    if width == 1 and len(tensor.shape) == 1:
        return True
    raise InvalidInputError(
        f"input {shortened(tensor.name)}: expected shape [n, {width}], or an input for each column, got {tensor.shape}"
    )


def _tensor(value: Any, i: int) -> _Tensor:
    if type(value) is not dict:
        raise InvalidInputError(f"'inputs', {i}: expected an object, got {json_kind(value)}")
    name, datatype, shape = value.get("name"), value.get("datatype"), value.get("shape")
    if not isinstance(name, str):
        raise InvalidInputError(f"'inputs', {i}: expected 'name', a string, got {json_kind(name)}")
    where = f"input {shortened(name)}"
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        known = ", ".join(sorted(DATATYPES))
        raise InvalidInputError(f"{where}: expected a datatype of {known}, got {json_kind(datatype)}")
    if not (type(shape) is list and all(type(size) is int and size >= 0 for size in shape)):
        raise InvalidInputError(f"{where}: expected 'shape', a list of sizes, got {json_kind(shape)}")
    if len(shape) not in (1, 2):
        raise InvalidInputError(f"{where}: expected a shape of one or two sizes, got {len(shape)}")
    parameters = _optional(value, "parameters", dict, "an object")
    data = value.get("data")
    if type(data) is not list:
        if parameters and ("binary_data_size" in parameters or "shared_memory_region" in parameters):
            raise InvalidInputError(f"{where}: {_BINARY_REFUSED}")
        raise InvalidInputError(f"{where}: expected 'data', a list, got {json_kind(data)}")
    values = _flat(data, shape, where)
    if datatype in _WHOLE:
        for one in values:
            if type(one) is float and not one.is_integer():
                raise InvalidInputError(f"{where}: expected integers, as {datatype} says, got {json_kind(one)}")
    return _Tensor(name, shape, values)


def _flat(data: list[Any], shape: list[int], where: str) -> list[Any]:
    """Return the values of a tensor, row-major, whether they came so or as lists of lists."""
    if len(shape) == 2 and data and type(data[0]) is list:
        if len(data) != shape[0] or any(type(row) is not list or len(row) != shape[1] for row in data):
            raise InvalidInputError(f"{where}: expected data of shape {shape}, got lists of another shape")
        return list(itertools.chain.from_iterable(data))
    if len(data) != math.prod(shape):
        raise InvalidInputError(f"{where}: expected {math.prod(shape)} values for shape {shape}, got {len(data)}")
    return data
