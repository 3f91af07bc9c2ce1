"""Names of versions: an immutable id within a family that is also the name of a directory."""

import re
from datetime import UTC, datetime
from typing import NewType

ModelVersion = NewType("ModelVersion", str)

CURRENT = "current"
RESERVED = frozenset({CURRENT, "staging"})

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
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
    """Return `text` as a version.

    Raises:
        ValueError: It is not safe as the name of a directory, or is a reserved name.
    """
    if problem := problem_with_version(text):
        raise ValueError(problem)
    return ModelVersion(text)


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
