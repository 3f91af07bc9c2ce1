from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from serve_app.adapters.link.frames import (
    FrameReader,
    Kind,
    LinkError,
    frame,
    pack_array,
    predict_frame,
    unpack_array,
    unpack_predict,
)

MAX_BYTES = 1 << 16
Frames = list[tuple[int, int, bytes]]

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
numeric: st.SearchStrategy[np.dtype[Any]] = st.sampled_from(
    [np.dtype("<f8"), np.dtype("<i8"), np.dtype("<f4"), np.dtype("?")]
)
as_json: st.SearchStrategy[np.dtype[Any]] = st.sampled_from(
    [np.dtype("<i4"), np.dtype("<u2"), np.dtype(">f8"), np.dtype("<u8"), np.dtype("<U8")]
)
valid_frames = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(list(Kind)), st.binary(max_size=60)), max_size=6
)


def read(reader: FrameReader, *pieces: bytes) -> Frames:
    return [(call_id, kind, bytes(body)) for piece in pieces for call_id, kind, body in reader.feed(piece)]


def well_formed(array: NDArray[Any]) -> bool:
    """False for NaN, which JSON has no word for, and for text that is no UTF-8."""
    values = array.ravel().tolist()
    try:
        return bool(orjson.loads(orjson.dumps(values)) == values)
    except TypeError:
        return False


@settings(max_examples=50)
@given(numeric.flatmap(lambda dtype: hnp.arrays(dtype, shapes)))
def test_numbers_come_back_bit_for_bit(array: NDArray[Any]) -> None:
    back = unpack_array(memoryview(pack_array(array)))
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@settings(max_examples=50)
@given(as_json.flatmap(lambda dtype: hnp.arrays(dtype, shapes)).filter(well_formed))
def test_labels_and_other_numbers_come_back_as_python_values(array: NDArray[Any]) -> None:
    back = unpack_array(memoryview(pack_array(array)))
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()


def test_numpy_scalars_in_an_object_array_come_back_as_python_values() -> None:
    array = np.array([[np.float64(0.5), np.int64(3), np.str_("a"), "b", None]], dtype=object)
    assert unpack_array(memoryview(pack_array(array))).tolist() == [[0.5, 3, "a", "b", None]]


def test_column_of_a_larger_table_is_packed_in_row_order() -> None:
    table = np.arange(12.0).reshape(3, 4)
    assert unpack_array(memoryview(pack_array(table[:, 1:3]))).tolist() == [[1, 2], [5, 6], [9, 10]]


def test_value_that_json_cannot_say_is_refused_by_the_sender() -> None:
    with pytest.raises(TypeError):
        pack_array(np.array([b"\xff"], dtype=object))


@settings(max_examples=50)
@given(st.text(max_size=60), hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2)))
def test_prediction_call_comes_back(version: str, rows: NDArray[np.float64]) -> None:
    if len(version.encode("utf-8", "replace")) > 255:
        return
    ((call_id, kind, body),) = FrameReader(MAX_BYTES).feed(predict_frame(7, version, rows))
    name, back = unpack_predict(body)
    assert (call_id, kind, name, back.tobytes(), back.shape) == (7, Kind.PREDICT, version, rows.tobytes(), rows.shape)


@settings(max_examples=50)
@given(valid_frames, st.data())
def test_any_cut_of_the_stream_gives_the_same_frames(frames: Frames, data: st.DataObject) -> None:
    stream = b"".join(frame(call_id, Kind(kind), body) for call_id, kind, body in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(FrameReader(MAX_BYTES), *pieces) == frames


def test_stream_that_comes_byte_by_byte_gives_the_same_frames() -> None:
    stream = frame(1, Kind.ARRAY, b"abc") + frame(2, Kind.FAILED, b"")
    pieces = [stream[i : i + 1] for i in range(len(stream))]
    assert read(FrameReader(MAX_BYTES), *pieces) == [(1, Kind.ARRAY, b"abc"), (2, Kind.FAILED, b"")]


@pytest.mark.parametrize("length", [0, 4, MAX_BYTES + 1, 2**32 - 1])
def test_frame_of_an_impossible_length_is_refused_before_its_bytes_come(length: int) -> None:
    with pytest.raises(LinkError, match=f"expected a frame of 5 to {MAX_BYTES} bytes, got one of {length}"):
        read(FrameReader(MAX_BYTES), length.to_bytes(4, "little"))


def test_frames_before_an_impossible_one_are_still_read() -> None:
    frames = FrameReader(MAX_BYTES).feed(frame(1, Kind.ARRAY, b"x") + b"\xff" * 9)
    call_id, kind, body = next(frames)
    assert (call_id, kind, bytes(body)) == (1, Kind.ARRAY, b"x")
    with pytest.raises(LinkError):
        next(frames)


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_garbage_in_the_stream_raises_nothing_but_link_errors(pieces: list[bytes]) -> None:
    reader = FrameReader(1 << 10)
    try:
        read(reader, *pieces)
    except LinkError:
        return


header = st.builds(
    lambda code, shape: bytes((code, len(shape))) + b"".join(n.to_bytes(4, "little") for n in shape),
    st.sampled_from([0, 1, 2, 3, 4, 255]),
    st.lists(st.integers(0, 3) | st.just(2**32 - 1), max_size=70),
)
json_bodies = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
).map(orjson.dumps)


@settings(max_examples=100)
@given(st.binary(max_size=80) | st.tuples(header, st.binary(max_size=40) | json_bodies).map(b"".join))
def test_garbage_for_an_array_raises_nothing_but_link_errors(body: bytes) -> None:
    for unpack in (unpack_array, unpack_predict):
        try:
            unpack(memoryview(body))
        except LinkError:
            continue


@pytest.mark.parametrize("values", [b"5", b"{}", b'{"a":1}', b"[1]", b"[1,2,3]", b"not json"])
def test_values_that_do_not_fill_the_shape_are_refused(values: bytes) -> None:
    with pytest.raises(LinkError):
        unpack_array(memoryview(bytes((255, 1)) + (2).to_bytes(4, "little") + values))


def test_lists_as_values_stay_lists() -> None:
    body = bytes((255, 1)) + (2).to_bytes(4, "little") + b"[[1,2],[3,4]]"
    assert unpack_array(memoryview(body)).tolist() == [[1, 2], [3, 4]]
