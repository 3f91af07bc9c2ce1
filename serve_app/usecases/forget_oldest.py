"""Keeps what is remembered bounded."""

from typing import Any


def forget_oldest(remembered: dict[Any, Any], *, most: int) -> None:
    """Drop what was put in first until at most `most` entries are left."""
    while len(remembered) > most:
        del remembered[next(iter(remembered))]
