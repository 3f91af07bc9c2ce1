"""The bodies of `POST /observations`: one record, a list, `{"records": […]}`, or a record a line (NDJSON).

A record names its server (`server`, `server_name` or `entity`) and its time (`timestamp`, `time` or `at`: RFC 3339, or
seconds since the epoch), and has its measurements under `metrics` (or `values`) or beside these; `units` is optional.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from serve_app.domain.errors import InvalidInputError
from serve_app.domain.signature import json_kind, shortened
from serve_app.domain.windows import Record
from serve_app.ingress.listed_bodies import read_items

ENTITY_KEYS: Final = ("server", "server_name", "entity")
TIME_KEYS: Final = ("timestamp", "time", "at")
VALUES_KEYS: Final = ("metrics", "values")
UNITS_KEY: Final = "units"
MAX_ENTITY_CHARACTERS: Final = 256


def read_records(body: bytes, content_type: bytes, metrics: Sequence[str], *, max_records: int) -> list[Record]:
    """Read the records of a body; `metrics` are the names that may stand beside server and time.

    Raises:
        NotJsonError: The body, or a line of it, is no JSON document.
        InvalidInputError: A record does not have the form, or there are too many.
    """
    items = read_items(body, content_type, noun="record", most=max_records)
    known = frozenset(metrics)
    return [_record(item, f"record {i}", known) for i, item in enumerate(items)]


def _record(item: Any, where: str, known: frozenset[str]) -> Record:
    if not isinstance(item, dict):
        raise InvalidInputError(f"{where}: expected an object, got {json_kind(item)}")
    entity = read_entity(item, where)
    at_s = read_time(item, TIME_KEYS, where)
    values = _values(item, where, known)
    units = item.get(UNITS_KEY)
    if units is not None and not (isinstance(units, dict) and all(isinstance(unit, str) for unit in units.values())):
        raise InvalidInputError(f"{where}: 'units': expected an object of strings, got {json_kind(units)}")
    return Record(entity, at_s, values, units)


def _one(item: Mapping[str, Any], keys: Sequence[str], where: str) -> Any:
    given = [key for key in keys if key in item]
    if len(given) != 1:
        found = " and ".join(repr(key) for key in given) or "none of them"
        raise InvalidInputError(f"{where}: expected one of {', '.join(keys)}, got {found}")
    return item[given[0]]


def read_entity(item: Mapping[str, Any], where: str) -> str:
    """Return the server that an object names; `where` is its place, for messages.

    Raises:
        InvalidInputError: It names none, or more than one, or what it names is no printable text of some length.
    """
    entity = _one(item, ENTITY_KEYS, where)
    if not isinstance(entity, str) or not 0 < len(entity) <= MAX_ENTITY_CHARACTERS or not entity.isprintable():
        expected = f"{where}: expected a server's name of 1 to {MAX_ENTITY_CHARACTERS} printable characters"
        raise InvalidInputError(f"{expected}, got {json_kind(entity)}")
    return entity


def read_time(item: Mapping[str, Any], keys: Sequence[str], where: str) -> float:
    """Return the time that an object has under one of `keys`, in seconds since the epoch; without a zone it is UTC.

    Raises:
        InvalidInputError: It has none, or several, or one that is no time.
    """
    value = _one(item, keys, where)
    if isinstance(value, int | float) and not isinstance(value, bool) and _is_usable(value):
        return float(value)
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            pass
    expected = f"{where}: expected a time as RFC 3339 or as seconds since the epoch"
    raise InvalidInputError(f"{expected}, got {json_kind(value)}")


def _is_usable(value: float) -> bool:
    """Say whether a number of seconds lies in the years that dates have."""
    try:
        return math.isfinite(value) and 0 <= value < 253_402_300_800
    except OverflowError:
        return False


def _values(item: Mapping[str, Any], where: str, known: frozenset[str]) -> dict[str, float]:
    nested = [key for key in VALUES_KEYS if key in item]
    read: Callable[[str], Any]
    if nested:
        inside = _one(item, VALUES_KEYS, where)
        if not isinstance(inside, dict):
            raise InvalidInputError(f"{where}: {nested[0]!r}: expected an object, got {json_kind(inside)}")
        names, read = list(inside), inside.__getitem__
    else:
        names, read = [name for name in item if name in known], item.__getitem__
    if not names:
        raise InvalidInputError(f"{where}: expected at least one of {', '.join(sorted(known))}, got none")
    values: dict[str, float] = {}
    for name in names:
        value = read(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInputError(f"{where}, {shortened(name)}: expected a number, got {json_kind(value)}")
        try:
            values[name] = float(value)
        except OverflowError:
            raise InvalidInputError(f"{where}, {shortened(name)}: expected a number within float64") from None
    return values
