"""The memory of a GPU of a few bytes."""

import threading

from serve_app.usecases.ports import DeviceMemory


class FakeDeviceMemory(DeviceMemory):
    """Memory of `total` bytes. Whoever loads calls `take`; what was taken comes free with the returned object."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._lock = threading.Lock()
        self._taken = self._before = self._peak = 0
        self.most_taken = 0
        self.others = 0
        """What other processes use."""

    def free_bytes(self) -> int:
        """See `DeviceMemory.free_bytes`."""
        with self._lock:
            return self._total - self._taken - self.others

    def total_bytes(self) -> int:
        """See `DeviceMemory.total_bytes`."""
        return self._total

    def begin(self) -> None:
        """See `DeviceMemory.begin`."""
        with self._lock:
            self._before = self._peak = self._taken

    def used(self) -> tuple[int, int]:
        """See `DeviceMemory.used`."""
        with self._lock:
            return self._taken - self._before, self._peak - self._before

    def take(self, n_bytes: int) -> None:
        """Lie `n_bytes` there, or fewer where it is negative."""
        with self._lock:
            self._taken += n_bytes
            self._peak = max(self._peak, self._taken)
            self.most_taken = max(self.most_taken, self._taken)
