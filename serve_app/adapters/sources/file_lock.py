"""Locks between processes of one node, on files; the system frees them when their holder dies."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serve_app.domain.errors import SourceError

_LOOK_S = 0.02


class FileLock:
    """A held lock; taking it sets the file's time, which so tells of the last use."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> None:
        with suppress(OSError):  # somebody else's file
            os.utime(self._descriptor)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def try_lock(path: Path, *, exclusive: bool = True) -> FileLock | None:
    """Take a lock without waiting; None when somebody holds it.

    Raises:
        OSError: The file cannot be made or opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # enough for a lock where it is there already
        except FileNotFoundError:
            raise error from None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return FileLock(descriptor)


@contextmanager
def locked(path: Path, *, exclusive: bool, patience_s: float) -> Iterator[None]:
    """Hold a lock. Where no file can be made, a shared one is not needed: nobody changes anything there.

    Raises:
        SourceError: Another process holds it for longer than the patience lasts.
        OSError: It is to be exclusive, and the file cannot be made or opened.
    """
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            lock = try_lock(path, exclusive=exclusive)
        except OSError:
            if exclusive:
                raise
            yield
            return
        if lock is not None:
            with lock:
                yield
            return
        if time.monotonic() > give_up_s:
            raise SourceError(f"expected the lock {path} within {patience_s:g} s, found another process at work")
        time.sleep(_LOOK_S)  # flock itself cannot wait with a limit
