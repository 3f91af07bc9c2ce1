"""What replicas report, for tests that follow them."""

from typing import Any

from serve_app.domain.signature import Signature
from serve_app.domain.status import LoadedVersion, ReplicaStatus
from tests import builders


def loaded(version: str = "v1", *, signature: Signature | None = None, **facts: Any) -> LoadedVersion:
    """Return what a replica says of a version that it holds."""
    known: dict[str, Any] = {
        "digest": "0" * 64, "created_at": "2026-01-30T09:00:00Z", "loaded_at_s": 1_769_763_600.0, "load_seconds": 0.5,
        "artifact_bytes": 1000, "signature": signature or builders.signature(), "engine": {"y": "fake"},
        "row_micros": 12.345, "runs_inline": True,
    }  # fmt: skip
    return LoadedVersion(version=version, **known | facts)


def report(*versions: str | LoadedVersion, replica_id: str = "r1", **facts: Any) -> ReplicaStatus:
    """Return the report of a replica that holds these versions."""
    known: dict[str, Any] = {"family": "forecaster", "pool": "cpu", "wanted": "current"}
    held = tuple(loaded(version) if isinstance(version, str) else version for version in versions)
    return ReplicaStatus(replica_id=replica_id, versions=held, **known | facts)
