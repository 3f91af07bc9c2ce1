"""Stands in for kube-proxy: one address that leads each new connection to one of a Service's endpoints, in turn.

A connection that is open stays with its Pod, as on Kubernetes. With no endpoint a connection is refused.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from itertools import count

from tests.rehearsal.kuberay_pods import SERVE_PORT
from tests.rehearsal.network import PodNetwork

_CHUNK = 1 << 16


class ServiceProxy:
    """Runs in a thread; a context manager."""

    address = f"http://{PodNetwork.gateway}:{SERVE_PORT}"

    def __init__(self, endpoints: Callable[[], Sequence[str]]) -> None:
        self._endpoints = endpoints
        self._turns = count()
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)

    def __enter__(self) -> "ServiceProxy":
        self._thread.start()
        assert self._listens.wait(10), "the stand-in of the Service does not listen"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self) -> None:
        async def listen() -> asyncio.Server:
            return await asyncio.start_server(self._connected, PodNetwork.gateway, SERVE_PORT)

        server = self._loop.run_until_complete(listen())
        self._listens.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._end_connections())

    async def _end_connections(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.01)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        endpoints = self._endpoints()
        if not endpoints:
            writer.transport.abort()
            return
        try:
            address = endpoints[next(self._turns) % len(endpoints)]
            far_reader, far_writer = await asyncio.open_connection(address, SERVE_PORT)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._open |= pair
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        self._open -= pair


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes until the one side or the other ends."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
