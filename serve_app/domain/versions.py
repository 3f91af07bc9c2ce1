"""Names of versions: an immutable id within a family that is also the name of a directory.

A family on a registry may serve other models than its own: their versions are named `<model>:<version>`, the model's
name percent-encoded where it holds anything but letters, digits, '.', '_', '~' and '-'.
"""

import re
from datetime import UTC, datetime
from typing import NewType
from urllib.parse import quote, unquote

ModelVersion = NewType("ModelVersion", str)

CURRENT = "current"
RESERVED = frozenset({CURRENT, "staging"})

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MODEL = re.compile(r"[A-Za-z0-9._~%-]{1,3072}")
_STAMP = re.compile(r"(?<!\d)(\d{8})[_T-]?(\d{6})(?!\d)")


def problem_with_version(text: str) -> str | None:
    """Say in one sentence why `text` cannot name a version, with expected and found; None when it can."""
    if not _SAFE.fullmatch(text):
        shown = text if len(text) <= 160 else text[:160] + "…"
        return (
            "expected a version of 1 to 128 letters, digits, '.', '_' or '-' that starts with a letter or a digit, "
            f"found {shown!r}"
        )
    if text.lower() in RESERVED:
        return f"expected a version that is none of the reserved names {', '.join(sorted(RESERVED))}, found {text!r}"
    return None


def parse_version(text: str) -> ModelVersion:
    """Return `text` as a version, of the family's own model or, as `<model>:<version>`, of another.

    Raises:
        ValueError: It is not safe as the name of a directory, or is a reserved name.
    """
    if problem := problem_with_qualified(text):
        raise ValueError(problem)
    return ModelVersion(text)


def problem_with_qualified(text: str) -> str | None:
    """Say why `text` is neither a version nor `<model>:<version>`; None when it is one of them."""
    quoted, colon, number = text.rpartition(":")
    if colon and (not _MODEL.fullmatch(quoted) or quote(unquote(quoted), safe="") != quoted):
        shown = quoted if len(quoted) <= 160 else quoted[:160] + "…"
        return f"expected a percent-encoded name of a model before the ':', found {shown!r}"
    return problem_with_version(number)


def qualified_version(model: str, version: str) -> ModelVersion:
    """Name a version of another model than the family's own: `qualified_version("iris b", "3")` is `iris%20b:3`."""
    return parse_version(f"{quote(model, safe='')}:{version}")


def split_version(text: str) -> tuple[str | None, str]:
    """Return model (None: the family's own) and version of a name."""
    quoted, colon, number = text.rpartition(":")
    return (unquote(quoted) if colon else None), number


def version_at(now: datetime) -> ModelVersion:
    """Name a version after a moment, to the minute in UTC: `v2026-01-30T0900Z`."""
    return ModelVersion(now.astimezone(UTC).strftime("v%Y-%m-%dT%H%MZ"))


def stamp_in(name: str) -> datetime | None:
    """Read the timestamp in a directory's name such as `tft_model_20250130_143000`, taken as UTC; None without one."""
    for day, time in _STAMP.findall(name):
        try:
            return datetime.strptime(day + time, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        except ValueError:  # digits, but no date
            continue
    return None
