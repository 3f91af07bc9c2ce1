"""Asks for each of many keys once, over several connections, and keeps by which version each was answered."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import cast
from urllib.parse import urlsplit

import uvloop

from tests.traffic import read_answer


class UnansweredError(Exception):
    """A request was not answered with 200."""


def versions_by_key(url: str, body: bytes, keys: Sequence[str], *, header: str, connections: int) -> list[str]:
    """Ask once for each key, which stands in `header`, and return the versions that answered, in the keys' order.

    Raises:
        UnansweredError: A request was answered with anything but 200, or its connection was cut.
    """
    return uvloop.run(_ask_all(url, body, keys, header=header, connections=connections))


async def _ask_all(url: str, body: bytes, keys: Sequence[str], *, header: str, connections: int) -> list[str]:
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{header}: "
    ).encode()
    versions = [""] * len(keys)
    left = iter(range(len(keys)))
    loop = asyncio.get_running_loop()
    asking = [_Asking(head, b"\r\n\r\n" + body, keys, left, versions) for _ in range(min(connections, len(keys)))]
    for one in asking:
        await loop.create_connection(lambda one=one: one, host, port)  # type: ignore[misc]  # bound at once
    await asyncio.gather(*(one.done for one in asking))
    return versions


class _Asking(asyncio.Protocol):
    """One connection, which takes the next key when it has its answer."""

    def __init__(self, head: bytes, tail: bytes, keys: Sequence[str], left: Iterator[int], versions: list[str]) -> None:
        self._head, self._tail, self._keys, self._left, self._versions = head, tail, keys, left, versions
        self._i = -1
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if (answer := read_answer(self._received)) is None:
            return
        self._received = b""
        status, self._versions[self._i], _, _ = answer
        if status == 200:
            self._next()
        else:
            self._fail(f"key {self._keys[self._i]!r} was answered with {status}")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._fail(f"the connection was cut while key {self._keys[self._i]!r} was asked for: {exc}")

    def _next(self) -> None:
        assert self._transport is not None, "asyncio calls connection_made first"
        i = next(self._left, None)
        if i is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._i = i
        self._transport.write(self._head + self._keys[i].encode() + self._tail)

    def _fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(UnansweredError(reason))
        if self._transport is not None:
            self._transport.abort()
