"""AppConfig and its parts: what an application is made of, read once from the `args` of a Serve config file.

Everything here is static: changing it restarts the application. What may change while it runs is in the `user_config`
of a deployment (`ReplicaUserConfig`). Every model is frozen and refuses keys that it does not know.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve_app.domain.errors import ConfigError, nearest
from serve_app.domain.validation import problems_of

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PoolConfig(_Part):
    """One deployment of a family: replicas on one kind of hardware, named `<family>-<name>`."""

    name: Name = "cpu"
    num_replicas: Annotated[int, Field(ge=1, description="replicas; 1, since on 2 cores one gave more than two")] = 1
    num_cpus: Annotated[
        float, Field(ge=0, description="CPUs that Ray reserves for a replica; 0.5 packs a small node")
    ] = 0.5
    num_gpus: Annotated[float, Field(ge=0, description="GPUs (may be a fraction) reserved for a replica")] = 0.0


class SourceConfig(_Part):
    """Where the bundles of a family come from."""

    kind: Literal["local_directory"] = "local_directory"
    root: Annotated[str, Field(description="directory of the versions; a relative one lies under state_dir")]
    manifest_name: Annotated[str, Field(description="name of the manifest in a bundle (S0: MODELS_MANIFEST)")] = (
        "manifest.json"
    )


class FamilyConfig(_Part):
    """Models with one signature and one purpose."""

    models_type: Annotated[str, Field(description="must equal the manifest's models_type (S0: MODELS_TYPE)")]
    loader: Annotated[str, Field(description="the loader for a manifest that names none")] = "sklearn_targets"
    source: SourceConfig
    pools: Annotated[tuple[PoolConfig, ...], Field(min_length=1)] = (PoolConfig(),)
    required: Annotated[bool, Field(description="whether /ready waits for this family")] = True
    load_timeout_s: Annotated[
        float, Field(gt=0, description="deadline of one load, in seconds; 120 is ample for 1 GB")
    ] = 120.0

    @model_validator(mode="after")
    def _pool_names_are_unique(self) -> "FamilyConfig":
        names = [pool.name for pool in self.pools]
        if len(set(names)) != len(names):
            raise ValueError(f"pool names must differ, found {', '.join(names)}")
        return self


class LimitsConfig(_Part):
    """Bounds that keep one client from hurting the others. A request above one is refused at once, never truncated."""

    max_body_bytes: Annotated[
        int, Field(gt=0, description="4 MiB: thousands of rows, far below a replica's memory")
    ] = 4 << 20
    max_rows_per_request: Annotated[
        int, Field(gt=0, description="rows in one request; 4096 predict in well under 1 s")
    ] = 4096
    max_batch_rows: Annotated[
        int, Field(gt=0, description="rows in one call to a replica; 1024 keeps a call short")
    ] = 1024
    max_batch_bytes: Annotated[int, Field(gt=0, description="bytes of rows in one call to a replica")] = 8 << 20
    max_inflight_calls: Annotated[
        int, Field(gt=0, description="calls out at once to one replica; 2 keeps it busy while an answer travels")
    ] = 2
    max_queued_requests: Annotated[
        int, Field(gt=0, description="requests that wait per family; above: 503 at once")
    ] = 2000
    request_timeout_s: Annotated[float, Field(gt=0, description="longest wait for an answer, in seconds")] = 30.0


class SecurityConfig(_Part):
    """What the operator allows. A bundle cannot widen it."""

    allow_pickle_loaders: Annotated[
        tuple[str, ...], Field(description="loaders that may run code from a bundle, e.g. sklearn_targets (joblib)")
    ] = ()


class GatewayConfig(_Part):
    """The HTTP ingress."""

    num_replicas: Annotated[int, Field(ge=1, description="replicas; 1, since on 2 cores one gave more than two")] = 1
    num_cpus: Annotated[float, Field(ge=0, description="CPUs that Ray reserves for a replica")] = 0.5
    pull_interval_s: Annotated[float, Field(gt=0, description="how often the replicas are asked what they hold")] = 1.0


class LoggingConfig(_Part):
    """Log lines go to stderr: JSON, or coloured text where stderr is a terminal."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: Annotated[bool, Field(description="one line for each request; off, for it costs throughput")] = False


class AppConfig(_Part):
    """The whole application."""

    state_dir: Annotated[
        str, Field(description="directory of what this server writes; `serve-app` makes it absolute")
    ] = ".serve-app"
    default_family: Annotated[
        Name | None, Field(description="answers `/predict/`; default: the only or first family")
    ] = None
    families: Annotated[dict[Name, FamilyConfig], Field(min_length=1)]
    gateway: GatewayConfig = GatewayConfig()
    limits: LimitsConfig = LimitsConfig()
    security: SecurityConfig = SecurityConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _default_family_exists(self) -> "AppConfig":
        name = self.default_family
        if name is not None and name not in self.families:
            raise ValueError(f"default_family: {name!r} is no family{nearest(name, self.families)}")
        return self

    @classmethod
    def parse(cls, document: Any) -> "AppConfig":
        """Read a document.

        Raises:
            ConfigError: With one sentence for every wrong key or value.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ConfigError(problems_of(error, cls)) from error

    @property
    def default_family_name(self) -> str:
        """The family that answers where a route names none."""
        return self.default_family or next(iter(self.families))

    def source_root(self, family: str) -> Path:
        """Directory of a family's versions; a relative one lies under the state directory."""
        return Path(self.state_dir, self.families[family].source.root)


class ReplicaUserConfig(_Part):
    """The `user_config` of a model deployment: the wish that `reconfigure` records."""

    manifest_version: Annotated[str, Field(description="a version to pin, or 'current' to follow the source")] = (
        "current"
    )

    @classmethod
    def parse(cls, document: Any) -> "ReplicaUserConfig":
        """Read a document; None gives the defaults.

        Raises:
            ConfigError: With one sentence for every wrong key or value.
        """
        try:
            return cls.model_validate(document or {})
        except ValidationError as error:
            raise ConfigError(problems_of(error, cls)) from error
