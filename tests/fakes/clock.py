"""A clock that a test holds in its hand."""


class FakeClock:
    """Stands still until `advance` is called."""

    def __init__(self, now_s: float = 1_769_763_600.0) -> None:
        self._now_s = now_s
        self._monotonic_s = 0.0

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return self._now_s

    def monotonic_s(self) -> float:
        """Seconds that never go back."""
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_s += seconds
        self._monotonic_s += seconds
