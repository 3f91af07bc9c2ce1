"""What a model replica says of itself. These documents cross processes."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from serve_app.domain.signature import Signature
from serve_app.domain.temporal import TemporalShape


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LinkAddress(_Document):
    """Where a replica listens for batches, and the secret that it asks for."""

    host: str
    port: int
    secret: str


class LoadedVersion(_Document):
    """One version in the memory of a replica. Times are seconds since the epoch, sizes bytes.

    `temporal` is there for a model whose rows are windows. `device_bytes` is what the load left in the device's memory,
    `device_peak_bytes` the most that load and warm-up had there; both are 0 on a CPU.
    """

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
    temporal: TemporalShape | None = None
    device_bytes: int = 0
    device_peak_bytes: int = 0


class ReplicaStatus(_Document):
    """A replica, the wish in its `user_config`, all versions that it holds, and by digest why it refused others.

    `loading` maps the versions under way to the stage they are in. `no_room` says by digest why a version is left out
    until this replica may unload others for it, `unread` why one could not be read when it was last tried: the source
    is away, or this node does not have it yet. `device` is where models run, `device_note` why it is not the one that
    was asked for.
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
    device: str = "cpu"
    device_note: str | None = None
    no_room: dict[str, str] = {}
    unread: dict[str, str] = {}

    def holds(self, version: str) -> bool:
        """True when the version is loaded here."""
        return any(loaded.version == version for loaded in self.versions)

    def holds_bundle(self, version: str, digest: str) -> bool:
        """True when the version is loaded here from the very bundle with that digest."""
        return any(loaded.version == version and loaded.digest == digest for loaded in self.versions)
