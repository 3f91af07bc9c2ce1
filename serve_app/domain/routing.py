"""Which version answers: the rule by which a gateway follows what the replicas report."""

from collections import Counter
from collections.abc import Sequence

from serve_app.domain.status import ReplicaStatus


def choose_version(statuses: Sequence[ReplicaStatus], previous: str | None) -> str | None:
    """Return the version to route to, given every routable replica of a pool.

    A version is taken up only when all replicas serve it, so that no answer comes from a version that another replica
    does not have yet. Until then the previous one stays while any replica holds it. With neither, the version that
    most replicas serve is better than none.
    """
    active = [status.active for status in statuses if status.active is not None]
    if not active:
        return previous if any(previous and status.holds(previous) for status in statuses) else None
    if len(active) == len(statuses) and len(set(active)) == 1:
        return active[0]
    if previous is not None and any(status.holds(previous) for status in statuses):
        return previous
    return Counter(active).most_common(1)[0][0]
