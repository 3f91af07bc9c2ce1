"""The name of one bundle, with the digest that proves it."""

from pydantic import BaseModel, ConfigDict


class VersionRef(BaseModel):
    """One bundle: its version, and the sha256 (hex) of its manifest, which proves that it is the same one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    digest: str
