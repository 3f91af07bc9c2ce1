"""The replica's end of the link: answers prediction calls on the event loop that it was started on."""

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, cast

import numpy as np
import orjson
import structlog
from numpy.typing import NDArray

from serve_app.adapters.link.frames import FrameReader, Kind, LinkError, frame, pack_array, unpack_predict
from serve_app.domain.errors import UnknownVersionError

HELLO_MAX_BYTES = 256
"""The longest frame that a connection may announce before it has said the secret."""
FAILED_MAX_CHARS = 500
Predict = Callable[[str, NDArray[np.float64]], NDArray[Any] | Awaitable[NDArray[Any]]]
log = structlog.get_logger(__name__)


class LinkServer:
    """Listens on a free port. A connection must send the secret first; `predict` answers its calls, in any order.

    `predict` returns the outputs, or an awaitable of them where it works in a thread. It may raise
    `UnknownVersionError`; any other exception is told to the caller as a failed prediction.
    """

    def __init__(self, predict: Predict, *, max_frame_bytes: int, hello_timeout_s: float = 5.0) -> None:
        self.secret = secrets.token_hex(32)
        self.predict = predict
        self.max_frame_bytes = max_frame_bytes
        self.hello_timeout_s = hello_timeout_s
        self.connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str) -> int:
        """Listen on `host` and return the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace_s: float) -> None:
        """Take no new connection, let the calls that are under way finish for up to `grace_s`, then close all."""
        if self._server is not None:
            self._server.close()
        running = [task for connection in self.connections for task in connection.tasks]
        if running:
            await asyncio.wait(running, timeout=grace_s)
        for connection in list(self.connections):
            connection.close()


class _Connection(asyncio.Protocol):
    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._reader = FrameReader(HELLO_MAX_BYTES)
        self._transport: asyncio.Transport | None = None
        self._trusted = False
        self._hello_timer: asyncio.TimerHandle | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self._unsent: list[bytes] | None = None
        """Answers to the calls that were read together, to be sent in one write; None while nothing is read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._server.connections.add(self)
        self._hello_timer = asyncio.get_running_loop().call_later(self._server.hello_timeout_s, self.close)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._forget_timer()
        self._server.connections.discard(self)
        self._transport = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._unsent = []
        try:
            for call_id, kind, body in self._reader.feed(data):
                if not self._trusted:
                    self._greet(kind, body)
                elif kind == Kind.PREDICT:
                    self._answer(call_id, *unpack_predict(body))
                else:
                    raise LinkError(f"expected a prediction call on the link, got a frame of kind {kind}")
        except LinkError as error:
            log.warning("link closed", reason=str(error))
            self.close()
        finally:
            answers, self._unsent = self._unsent, None
            if answers:
                self._send(b"".join(answers))

    def _greet(self, kind: int, body: memoryview) -> None:
        if kind != Kind.HELLO or not hmac.compare_digest(bytes(body), self._server.secret.encode()):
            raise LinkError("expected the secret of this replica first")
        self._trusted = True
        self._reader.max_frame_bytes = self._server.max_frame_bytes
        self._forget_timer()

    def _forget_timer(self) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()

    def _answer(self, call_id: int, version: str, rows: NDArray[np.float64]) -> None:
        try:
            outputs = self._server.predict(version, rows)
            if isinstance(outputs, np.ndarray):
                self._send_outputs(call_id, outputs)
                return
        except Exception as error:
            self._send_error(call_id, error)
            return
        task = asyncio.ensure_future(self._answer_later(call_id, outputs))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _answer_later(self, call_id: int, outputs: Awaitable[NDArray[Any]]) -> None:
        try:
            self._send_outputs(call_id, await outputs)
        except Exception as error:
            self._send_error(call_id, error)

    def _send_outputs(self, call_id: int, outputs: NDArray[Any]) -> None:
        answer = frame(call_id, Kind.ARRAY, pack_array(outputs))
        if len(answer) > self._server.max_frame_bytes:  # the other side would close the link on it
            raise ValueError(f"expected outputs of at most {self._server.max_frame_bytes} bytes, got {len(answer)}")
        self._send(answer)

    def _send_error(self, call_id: int, error: Exception) -> None:
        if isinstance(error, UnknownVersionError):
            self._send(frame(call_id, Kind.UNKNOWN, orjson.dumps(error.known)))
            return
        log.error("prediction failed", exc_info=error)
        text = " ".join(f"{type(error).__name__}: {error}".split())[:FAILED_MAX_CHARS]
        self._send(frame(call_id, Kind.FAILED, text.encode("utf-8", "replace")))

    def _send(self, data: bytes) -> None:
        if self._unsent is not None:
            self._unsent.append(data)
        elif self._transport is not None:
            self._transport.write(data)
