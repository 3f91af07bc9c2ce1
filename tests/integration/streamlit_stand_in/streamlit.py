"""Stands in for Streamlit, which no other test needs: each call is a line on stdout, and every button is pressed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager


def _tell(kind: str, text: str) -> None:
    print(json.dumps([kind, text]))  # noqa: T201


def button(label: str) -> bool:
    """Press it."""
    _tell("button", label)
    return True


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Turn while the block runs."""
    _tell("spinner", text)
    yield


def success(text: str) -> None:
    """Show."""
    _tell("success", text)


def error(text: str) -> None:
    """Show."""
    _tell("error", text)


def info(text: str) -> None:
    """Show."""
    _tell("info", text)
