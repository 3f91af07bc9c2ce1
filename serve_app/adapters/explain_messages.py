"""What a replica and its process that explains tell each other: frames of a length and a pickle, one each way a job."""

import pickle
import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_LENGTH: Final = struct.Struct("<Q")
HEAD_BYTES: Final = _LENGTH.size


@dataclass(frozen=True, slots=True)
class Job:
    """One output to explain. `model` is a pickled `ExplainedModel`, None where `key` was sent before."""

    key: str
    model: bytes | None
    rows: NDArray[np.float64]
    places: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class ModelWanted:
    """The answer to a job whose model is not kept; any other answer is `Shares`, or a `CannotExplainError`."""


def framed(message: Any) -> bytes:
    """Return the bytes of a message."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """Return how many bytes follow the first `HEAD_BYTES` of a frame."""
    return int(_LENGTH.unpack(head)[0])
