"""The bytes on a link.

A frame is `uint32 length, uint32 call_id, uint8 kind, body`, little-endian; `length` counts what follows it.

    HELLO    body = the secret of the replica; must be the first frame of a connection
    PREDICT  body = uint8 n, n bytes of version (UTF-8), array
    ARRAY    body = array: the outputs of the call with this id
    FAILED   body = UTF-8 text: the model raised on these rows
    UNKNOWN  body = UTF-8 JSON list: the versions that are loaded; the one asked for is not

An array is `uint8 dtype, uint8 ndim, ndim x uint32, data`; the data are row-major, or a JSON list for dtype `JSON`.
"""

import enum
import math
import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from serve_app.domain.errors import UnavailableError

_HEAD: Final = struct.Struct("<IIB")
_LENGTH: Final = struct.Struct("<I")
_JSON: Final = 255
_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    0: np.dtype("<f8"),
    1: np.dtype("<i8"),
    2: np.dtype("<f4"),
    3: np.dtype("?"),
}
_CODES: Final = {dtype: code for code, dtype in _DTYPES.items()}
FRAME_SLACK_BYTES: Final = 1 << 20
"""What a frame may be larger than the rows or outputs in it: version, shape, and outputs that travel as JSON."""


class Kind(enum.IntEnum):
    """What a frame carries."""

    HELLO = 0
    PREDICT = 1
    ARRAY = 2
    FAILED = 3
    UNKNOWN = 4


class LinkError(UnavailableError):
    """The connection is lost, or what came over it is no frame. The call may be tried on another replica."""


def frame(call_id: int, kind: Kind, body: bytes) -> bytes:
    """Build one frame."""
    return _HEAD.pack(5 + len(body), call_id, kind) + body


def pack_array(array: NDArray[Any]) -> bytes:
    """Encode an array; dtypes other than float64, int64, float32 and bool travel as JSON.

    Raises:
        TypeError: It holds something that JSON cannot say, such as bytes.
    """
    code = _CODES.get(array.dtype, _JSON)
    data = array.tobytes() if code != _JSON else orjson.dumps(array.ravel().tolist(), option=orjson.OPT_SERIALIZE_NUMPY)
    return struct.pack(f"<BB{array.ndim}I", code, array.ndim, *array.shape) + data


def unpack_array(body: memoryview) -> NDArray[Any]:
    """Decode an array; the result is a view of `body` where it can be.

    Raises:
        LinkError: The body is no array.
    """
    try:
        code, ndim = body[0], body[1]
        shape = struct.unpack_from(f"<{ndim}I", body, 2)
        data = body[2 + 4 * ndim :]
        if code == _JSON:
            values = orjson.loads(data)
            if not isinstance(values, list) or len(values) != math.prod(shape):
                raise ValueError("the values do not fill the shape")
            return np.fromiter(values, dtype=object, count=len(values)).reshape(shape)
        return np.frombuffer(data, dtype=_DTYPES[code]).reshape(shape)
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise LinkError(f"expected an array on the link, got {len(body)} bytes that are none") from error


def predict_frame(call_id: int, version: str, rows: NDArray[np.float64]) -> bytes:
    """Build the frame that asks `version` for the outputs of `rows`."""
    name = version.encode()
    return frame(call_id, Kind.PREDICT, bytes((len(name),)) + name + pack_array(rows))


def unpack_predict(body: memoryview) -> tuple[str, NDArray[np.float64]]:
    """Take version and rows out of the body of a PREDICT frame.

    Raises:
        LinkError: The body is no prediction call.
    """
    if not body or len(body) <= body[0]:
        raise LinkError(f"expected a prediction call on the link, got {len(body)} bytes that are none")
    end = 1 + body[0]
    return str(body[1:end], "utf-8", "replace"), unpack_array(body[end:])


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self, max_frame_bytes: int) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, int, memoryview]]:
        """Yield `(call_id, kind, body)` for each frame that `data` completes.

        Raises:
            LinkError: A frame announces fewer bytes than its own head or more than the limit.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        view, at, end = memoryview(data), 0, len(data)
        while end - at >= 4:
            (length,) = _LENGTH.unpack_from(data, at)
            if not 5 <= length <= self.max_frame_bytes:
                raise LinkError(f"expected a frame of 5 to {self.max_frame_bytes} bytes, got one of {length}")
            if end - at < 4 + length:
                break
            _, call_id, kind = _HEAD.unpack_from(data, at)
            yield call_id, kind, view[at + 9 : at + 4 + length]
            at += 4 + length
        if at < end:
            self._rest = data[at:]
