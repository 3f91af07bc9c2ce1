"""TCP ports of this machine: is one free, who holds it, which ones to take."""

import random
import socket
from collections.abc import Iterator
from itertools import islice

import psutil

LOOPBACK = "127.0.0.1"

# Below the range from which systems take the ports of outgoing connections, and below Serve's own for replicas (30000).
FIRST_CHOSEN_PORT, LAST_CHOSEN_PORT = 20000, 29999


def is_free(port: int, *, host: str = LOOPBACK) -> bool:
    """Say whether a server could listen on `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: past connections are no obstacle
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def choose_free(count: int, *, taken: frozenset[int] = frozenset()) -> list[int]:
    """Return `count` different free ports, none of them in `taken`. They stay free only until somebody takes them."""
    candidates = random.sample(range(FIRST_CHOSEN_PORT, LAST_CHOSEN_PORT + 1), k=50 * count)
    chosen = list(islice((port for port in candidates if port not in taken and is_free(port)), count))
    if len(chosen) < count:
        raise OSError(
            f"expected {count} free ports between {FIRST_CHOSEN_PORT} and {LAST_CHOSEN_PORT}, found {len(chosen)}"
        )
    return chosen


def holder(port: int) -> str:
    """Name the process that listens on `port`, e.g. `python3 (pid 4711)`."""
    for pid in _listeners(port):
        try:
            return f"{psutil.Process(pid).name()} (pid {pid})"
        except psutil.NoSuchProcess:
            continue
    return "a process of another user"


def _listeners(port: int) -> Iterator[int]:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # macOS shows the connections of the whole machine to root only
        yield from _own_listeners(port)
        return
    for connection in connections:
        if connection.pid is not None and _listens(connection.status, connection.laddr, port):
            yield connection.pid


def _own_listeners(port: int) -> Iterator[int]:
    for process in psutil.process_iter():
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        if any(_listens(c.status, c.laddr, port) for c in connections):
            yield process.pid


def _listens(status: str, address: tuple[str, int] | tuple[()], port: int) -> bool:
    return status == psutil.CONN_LISTEN and address[1:] == (port,)
