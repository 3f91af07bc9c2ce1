"""How a family follows its source: modes, intervals, retries, and the pin that overrules them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from serve_app.domain.status import ReplicaStatus

CURRENT = "current"
RETRY_DELAYS_S = (5.0, 10.0, 30.0, 60.0)
"""Waiting times after a source could not be read; the last one repeats."""
RETRY_JITTER = 0.1
"""Share by which a waiting time is longer or shorter by chance, so that servers do not come back all at once."""


class ReloadMode(StrEnum):
    """What may bring a new version. A pin in `user_config` works in every mode."""

    NONE = "none"
    POLL = "poll"
    ENDPOINT = "endpoint"


@dataclass(frozen=True, slots=True)
class FollowRule:
    """The mode, and the seconds between two looks at the source."""

    mode: ReloadMode
    interval_s: float

    @property
    def polls(self) -> bool:
        """True when what the source calls current is followed without a call."""
        return self.mode is ReloadMode.POLL

    @property
    def takes_calls(self) -> bool:
        """True when an admin call may change the version; polling does not forbid it."""
        return self.mode is not ReloadMode.NONE


def pin_of(statuses: Sequence[ReplicaStatus]) -> str | None:
    """Return the version that `user_config` pins, or None when it says `"current"` or replicas disagree."""
    wishes = {status.wanted for status in statuses}
    if len(wishes) != 1:
        return None
    wish = wishes.pop()
    return None if wish == CURRENT else wish


def agree(statuses: Sequence[ReplicaStatus]) -> bool:
    """True when all replicas have the same wish; for some seconds, while Serve passes on a new one, they have not."""
    return len({status.wanted for status in statuses}) == 1


def asked_interval_s(facts: Mapping[str, Any], rule: FollowRule) -> float:
    """Return the interval that a manifest's `sidecar.poll_interval_seconds` asks for, else the rule's."""
    sidecar = facts.get("sidecar")
    return float(sidecar["poll_interval_seconds"]) if sidecar else rule.interval_s


def retry_delay_s(n_failed: int, *, dice: float) -> float:
    """Return the seconds to wait after `n_failed` failures before this one; `dice` is uniform in [0, 1)."""
    delay_s = RETRY_DELAYS_S[min(n_failed, len(RETRY_DELAYS_S) - 1)]
    return delay_s * (1 - RETRY_JITTER + 2 * RETRY_JITTER * dice)
