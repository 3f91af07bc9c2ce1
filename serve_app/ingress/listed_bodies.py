"""Bodies that hold one thing or many of its kind: an object, a list, a list under a key, an object a line (NDJSON)."""

from typing import Any, Final

import orjson

from serve_app.domain.errors import InvalidInputError, NotJsonError
from serve_app.domain.signature import json_kind, shortened

NDJSON_TYPES: Final = (b"application/x-ndjson", b"application/ndjson", b"application/jsonl")


def read_items(body: bytes, content_type: bytes, *, noun: str, most: int) -> list[Any]:
    """Return the parsed things of a body, at least one and at most `most`; the key of a list is the plural of `noun`.

    Raises:
        NotJsonError: The body, or a line of it, is no JSON document.
        InvalidInputError: It is no list of things, or has none or too many.
    """
    kind = content_type.partition(b";")[0].strip().lower()
    items = _lines(body) if kind in NDJSON_TYPES else _items(_parsed(body, "a body"), noun)
    if not items:
        raise InvalidInputError(f"expected at least one {noun}, got none")
    if len(items) > most:
        raise InvalidInputError(f"expected at most {most} {noun}s in a request, got {len(items)}")
    return items


def _lines(body: bytes) -> list[Any]:
    return [_parsed(line, f"line {i}") for i, line in enumerate(body.splitlines()) if line.strip()]


def _parsed(text: bytes, what: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise NotJsonError(f"{what}: expected JSON, got {len(text)} bytes that are none: {error}") from None


def _items(document: Any, noun: str) -> list[Any]:
    key = f"{noun}s"
    if isinstance(document, dict) and key in document:
        if len(document) > 1:
            other = next(name for name in document if name != key)
            raise InvalidInputError(f"expected {key!r} alone, got {shortened(other)} beside it")
        document = document[key]
    elif isinstance(document, dict):
        return [document]
    if not isinstance(document, list):
        raise InvalidInputError(f"expected a {noun} or a list of {noun}s, got {json_kind(document)}")
    return document
