"""The gateway's end of the link: one connection to one replica, many calls on it at once."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from serve_app.adapters.link.frames import FrameReader, Kind, LinkError, frame, predict_frame, unpack_array
from serve_app.domain.errors import PredictionError, UnknownVersionError

Done = Callable[[NDArray[Any] | Exception], None]


class LinkClient(asyncio.Protocol):
    """Calls one replica. Not safe for threads: it lives on the event loop that opened it.

    `inflight` counts the calls whose answer is still out. Every call ends in exactly one `done`: with the outputs
    (batch, n_outputs), or with `PredictionError`, `UnknownVersionError` or `LinkError`.
    """

    def __init__(self, family: str, *, max_frame_bytes: int) -> None:
        self._family = family
        self._reader = FrameReader(max_frame_bytes)
        self._pending: dict[int, tuple[str, Done]] = {}
        self._ids = itertools.count(1)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []

    @classmethod
    async def open(
        cls, host: str, port: int, *, family: str, secret: str, max_frame_bytes: int, timeout_s: float
    ) -> "LinkClient":
        """Connect and say the secret.

        Raises:
            LinkError: Nobody listens there.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, client = await loop.create_connection(
                    lambda: cls(family, max_frame_bytes=max_frame_bytes), host, port
                )
        except OSError as error:  # TimeoutError is one
            raise LinkError(f"no replica answers at {host}:{port}") from error
        client._write(frame(0, Kind.HELLO, secret.encode()))
        return client

    @property
    def inflight(self) -> int:
        """Number of calls that wait for their answer."""
        return len(self._pending)

    @property
    def is_open(self) -> bool:
        """False once the connection is lost."""
        return self._transport is not None

    def call(self, version: str, rows: NDArray[np.float64], done: Done) -> None:
        """Send float64 rows (batch, n_inputs) to `version`; `done` is called later, on the same event loop.

        Raises:
            LinkError: The connection is lost; `done` is not called.
        """
        call_id = next(self._ids) & 0xFFFFFFFF
        self._write(predict_frame(call_id, version, rows))
        self._pending[call_id] = (version, done)

    def close(self) -> None:
        """Close the connection; calls that wait get a `LinkError`."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio calls this)."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Tell every waiting call (asyncio calls this)."""
        self._transport = None
        pending, self._pending = self._pending, {}
        for _, done in pending.values():
            done(LinkError(f"the replica of {self._family!r} went away during the call"))

    def data_received(self, data: bytes) -> None:
        """Hand every answer to the call it belongs to (asyncio calls this)."""
        try:
            for call_id, kind, body in self._reader.feed(data):
                waiting = self._pending.pop(call_id, None)
                if waiting is not None:
                    waiting[1](self._outcome(kind, body, waiting[0]))
        except LinkError:
            self.close()

    def _outcome(self, kind: int, body: memoryview, version: str) -> NDArray[Any] | Exception:
        """Read an answer; one that makes no sense is an outcome too, since its call waits for one."""
        if kind == Kind.ARRAY:
            try:
                return unpack_array(body)
            except LinkError as error:
                return error
        if kind == Kind.UNKNOWN:
            return UnknownVersionError(self._family, version, _names(body))
        if kind == Kind.FAILED:
            return PredictionError(str(body, "utf-8", "replace"))
        return LinkError(f"expected an answer on the link, got a frame of kind {kind}")

    def _write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            raise LinkError(f"the link to the replica of {self._family!r} is closed")
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(data)

    def _send(self) -> None:
        """Send what this turn of the event loop has brought, in one write: each costs as much as a hundred rows."""
        data, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.write(b"".join(data))


def _names(body: memoryview) -> list[str]:
    try:
        names = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
