"""What a model replica says of itself. These documents cross processes."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from serve_app.domain.signature import Signature


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LinkAddress(_Document):
    """Where a replica listens for batches, and the secret that it asks for."""

    host: str
    port: int
    secret: str


class LoadedVersion(_Document):
    """One version in the memory of a replica. Times are seconds since the epoch, sizes bytes."""

    version: str
    digest: str
    created_at: str
    loaded_at_s: float
    load_seconds: float
    artifact_bytes: int
    signature: Signature
    engine: dict[str, str]
    row_micros: float
    runs_inline: bool
    metrics: dict[str, Any] = {}
    training: dict[str, Any] = {}


class ReplicaStatus(_Document):
    """A replica, the wish in its `user_config`, all versions that it holds, and by digest why it refused others.

    `loading` maps the versions under way to the stage they are in.
    """

    replica_id: str
    family: str
    pool: str
    wanted: str
    versions: tuple[LoadedVersion, ...] = ()
    loading: dict[str, str] = {}
    failed: dict[str, str] = {}
    last_error: str | None = None
    link: LinkAddress | None = None

    def holds(self, version: str) -> bool:
        """True when the version is loaded here."""
        return any(loaded.version == version for loaded in self.versions)

    def holds_bundle(self, version: str, digest: str) -> bool:
        """True when the version is loaded here from the very bundle with that digest."""
        return any(loaded.version == version and loaded.digest == digest for loaded in self.versions)
