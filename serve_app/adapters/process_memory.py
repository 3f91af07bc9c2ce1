"""Gives freed memory back to the system: past the garbage collector's frozen objects and the allocator's arenas."""

import ctypes
import gc
import sys
import threading


class ProcessMemory:
    """Keeps what is older than the first model out of garbage collection. Make it before any model is loaded.

    Collecting after a release then looks at models and requests only, which takes a millisecond, where all that Ray,
    torch and scikit-learn bring along takes some hundred, with the interpreter locked. If somebody else freezes objects
    later (Ray does at the end of a replica's start unless `RAY_SERVE_FREEZE_GC_ON_STARTUP=0`), a model may be among
    them, and reference cycles in it would stay for ever; so the first release after that pays for one full collection.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trim = _malloc_trim()
        self._freeze()

    def give_back(self) -> None:
        """Collect reference cycles of models that were dropped, and return free pages. Call it in a thread."""
        with self._lock:
            if self._is_frozen_by_others():
                gc.unfreeze()
                self._freeze()
            else:
                gc.collect()
        if self._trim is not None:
            self._trim(0)  # a foreign call: the interpreter goes on meanwhile

    def _freeze(self) -> None:
        gc.collect()
        gc.freeze()
        self._witness: list[object] = []  # the collector knows it until somebody freezes

    def _is_frozen_by_others(self) -> bool:
        # Counting the frozen objects, as `gc.get_freeze_count` does, takes 30 ms; those that are not are few.
        return not any(known is self._witness for known in gc.get_objects())


def _malloc_trim() -> "ctypes._NamedFuncPointer | None":
    """Return glibc's `malloc_trim`; None where the C library has no such thing."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:  # musl
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim
