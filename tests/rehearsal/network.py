"""A network of the rehearsal's own: a bridge inside a network namespace that only this process and its Pods are in.

Nothing of it is visible from outside and nothing has to be removed: namespace, bridge and cables go when the last
process in it ends, also after a crash.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000
_NETWORK: Final = "10.88.0"
TOOLS: Final = ("ip", "unshare", "nsenter", "setpriv", "mount", "chroot")


class NoNamespacesError(Exception):
    """Pods cannot be isolated here; the message says why and what would help."""


class PodNetwork:
    """Hands out addresses, and plugs the network namespace of a process into the bridge."""

    gateway: Final = f"{_NETWORK}.1"

    def __init__(self) -> None:
        self._hosts = count(10)

    def new_address(self) -> str:
        """Return an address that nobody has had."""
        return f"{_NETWORK}.{next(self._hosts)}"

    def plug_in(self, pid: int, address: str) -> None:
        """Give a process that is alone in its network namespace a cable to the bridge."""
        cable = f"v{address.rpartition('.')[2]}"
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _ip("link", "set", cable, "master", "pods", "up")
        for command in (
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", self.gateway),
        ):
            subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *command], check=True)


@contextmanager
def pod_network() -> Iterator[PodNetwork]:
    """Move this thread, and whatever it starts, into a network of its own for as long as the context lasts.

    Raises:
        NoNamespacesError: It cannot be made here.
    """
    check_tools()
    libc = ctypes.CDLL(None, use_errno=True)
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET):
            raise NoNamespacesError(f"no network namespace can be made: {os.strerror(ctypes.get_errno())}; be root")
        try:
            _make_bridge()
            yield PodNetwork()
        finally:
            libc.setns(outside, _CLONE_NEWNET)
    finally:
        os.close(outside)


def _make_bridge() -> None:
    try:
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "pods", "type", "bridge")
        _ip("addr", "add", f"{PodNetwork.gateway}/24", "dev", "pods")
        _ip("link", "set", "pods", "up")
        _ip("link", "add", "tried", "type", "veth", "peer", "name", "tried-too")
        _ip("link", "del", "tried")
    except subprocess.CalledProcessError as error:
        raise NoNamespacesError(f"no bridge or cable can be made: {error}; the kernel needs bridge and veth") from error


def check_tools() -> None:
    """Check that Pods can be isolated.

    Raises:
        NoNamespacesError: A tool is missing, or this user may not.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise NoNamespacesError(f"missing: {', '.join(missing)} (Debian: apt-get install iproute2 util-linux)")
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "--mount-proc", "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        raise NoNamespacesError(f"unshare is refused ({tried.stderr.strip()}); be root, or allow user namespaces")


def namespace_of(pid: int, kind: str) -> str:
    """Return the identity of a namespace of a process."""
    return str(Path("/proc", str(pid), "ns", kind).readlink())


def _ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True)
