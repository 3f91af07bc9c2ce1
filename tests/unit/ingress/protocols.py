"""What the tests of the standard protocols share: signatures, splits, and bodies with some noise in them."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.domain.signature import Column, Signature
from serve_app.usecases.mirror_requests import MirrorLimits
from tests import builders
from tests.fakes.predict_client import row_sums
from tests.splits import canary_split
from tests.unit.ingress.serving import Server

COLUMNS = ("cpu", "ram", "load")
MIXED = Signature(
    inputs=(Column(name="cpu"), Column(name="ram", dtype="int64"), Column(name="load", dtype="bool")),
    outputs=(Column(name="total"), Column(name="class", dtype="int64"), Column(name="alarm", dtype="bool")),
)
WINDOWS = Signature(inputs=(Column(name="past", shape=(4, 3)),), outputs=(Column(name="next", shape=(2,)),))


def three(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Answer the outputs of `MIXED`, all in float64 as a replica sends them."""
    total = rows.sum(axis=1)
    return np.stack([total, np.floor(total), total > 3], axis=1)


def mixed_server() -> Server:
    """Return a server of a model with inputs and outputs of several types."""
    return Server({"v1": three}, signature=MIXED)


def single_server() -> Server:
    """Return a server of a model with one input."""
    return Server(signature=builders.signature(inputs=("cpu",), outputs=("y",)))


def split_server(weight: int, **facts: Any) -> Server:
    """Return a server whose split gives the canary `v2`, which answers one more, this weight."""
    models = {"v1": row_sums, "v2": lambda rows: row_sums(rows) + 1}
    server = Server(models, mirrored=MirrorLimits(max_lag_s=10.0))
    server.route("v1", generation=2, split=canary_split(weight, **facts))
    return server


numbers = st.integers(-(1 << 60), 1 << 60) | st.floats(allow_nan=False, allow_infinity=False, width=64)
tables = st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=6)
cells: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just([]) | st.just({})
)
lists = st.lists(st.lists(cells, max_size=4) | cells, max_size=4)
media_types = st.just(b"application/json") | st.just(b"application/json") | st.binary(max_size=30)
