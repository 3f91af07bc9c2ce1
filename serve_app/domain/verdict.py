"""What the measurements of a rollout add up to."""

from enum import StrEnum


class Verdict(StrEnum):
    """A pass continues, a fail aborts, an inconclusive waits for more, an error (no data, source down) is counted."""

    PASS = "pass"  # noqa: S105  # no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"
