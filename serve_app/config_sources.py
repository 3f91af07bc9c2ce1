"""`families.<name>.source`: where the bundles of a family come from."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from serve_app.config_part import Part
from serve_app.domain.naming import Named, NamingRule, parse_named

DEFAULT_ALIAS = "champion"
_DIRECTORY = "local_directory"


class DirectoryConfig(Part):
    """Bundles in a directory of this machine, or of a volume that all nodes mount."""

    kind: Literal["local_directory"] = "local_directory"
    root: Annotated[str, Field(description="directory of the versions; a relative one lies under state_dir")]
    manifest_name: Annotated[str, Field(description="name of the manifest in a bundle (S0: MODELS_MANIFEST)")] = (
        "manifest.json"
    )


class RegistryConfig(Part):
    """Versions of a model that is registered with MLflow. Each is copied once to every node that serves it."""

    kind: Literal["mlflow_registry"] = "mlflow_registry"
    tracking_uri: Annotated[
        str | None, Field(description="of the MLflow server; default: MLFLOW_TRACKING_URI of the environment")
    ] = None
    model: Annotated[str, Field(min_length=1, description="name of the registered model (S3: MLFLOW_MODEL_NAME)")]
    alias: Annotated[str | None, Field(min_length=1, description="follow this alias; the default is champion")] = None
    stage: Annotated[
        str | None, Field(min_length=1, description="follow the newest version in this stage (S3: MLFLOW_MODEL_STAGE)")
    ] = None
    version: Annotated[
        str | None, Field(pattern=r"^[0-9]+$", description="serve this version only (S3: MLFLOW_MODEL_VERSION)")
    ] = None
    newest: Annotated[bool, Field(description="follow the highest version that is ready")] = False
    cache_dir: Annotated[
        str | None,
        Field(description="local copies (S3: MODEL_CACHE_DIR); relative: under state_dir; default mlflow/<family>"),
    ] = None
    max_cache_bytes: Annotated[int, Field(gt=0, description="bytes of local copies; live versions never count out")] = (
        10 << 30
    )
    timeout_s: Annotated[float, Field(gt=0, description="of one request to the registry; it is asked again later")] = 10
    artifacts_timeout_s: Annotated[float, Field(gt=0, description="of the copy of one version; 120 s is 1 GB")] = 120
    other_models: Annotated[
        bool,
        Field(
            description="let requests name other models of the registry; off, for clients then choose what is loaded"
        ),
    ] = False
    allowed_models: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(description="patterns of the other models that may be named (`team-*`); empty: every model"),
    ] = ()
    preload: Annotated[
        tuple[str, ...],
        Field(description="<model> or <model>:<version>, loaded at start; least used ones leave memory as any other"),
    ] = ()
    demand_wait_s: Annotated[
        float,
        Field(gt=0, le=300, description="seconds a request waits for a version that has to be loaded; then 503"),
    ] = 10

    @model_validator(mode="after")
    def _has_one_selector(self) -> "RegistryConfig":
        given = [name for name in ("alias", "stage", "version") if getattr(self, name) is not None]
        given += ["newest"] if self.newest else []
        if len(given) > 1:
            raise ValueError(f"expected one of alias, stage, version and newest, found {' and '.join(given)}")
        return self

    @model_validator(mode="after")
    def _names_are_served(self) -> "RegistryConfig":
        if self.allowed_models and not self.other_models:
            raise ValueError("allowed_models: expected other_models to be true as well")
        for text in self.preload:
            model, version = parse_named(text)
            if model == self.model and version is None:
                raise ValueError(f"preload: expected a version, {model}:<version>; the model itself is loaded anyway")
            if model != self.model and not self.naming.offers(model):
                raise ValueError(
                    f"preload: expected {model!r} to be a model that other_models and allowed_models allow"
                )
        return self

    @property
    def naming(self) -> NamingRule:
        """What requests may name."""
        return NamingRule(self.model, self.other_models, self.allowed_models)

    @property
    def preloaded(self) -> tuple[Named, ...]:
        """What is loaded at start."""
        named = (parse_named(text) for text in self.preload)
        return tuple(Named(None if model == self.model else model, version) for model, version in named)

    @property
    def selector(self) -> tuple[Literal["alias", "stage", "version", "newest"], str]:
        """How the current version is chosen: the kind, and its value."""
        if self.stage is not None:
            return "stage", self.stage
        if self.version is not None:
            return "version", self.version
        return ("newest", "") if self.newest else ("alias", self.alias or DEFAULT_ALIAS)


def _kind_of(value: Any) -> str:
    """Return the kind of a source; one that names none is a directory."""
    kind = value.get("kind", _DIRECTORY) if isinstance(value, dict) else getattr(value, "kind", _DIRECTORY)
    return str(kind)


SourceConfig = Annotated[
    Annotated[DirectoryConfig, Tag("local_directory")] | Annotated[RegistryConfig, Tag("mlflow_registry")],
    Discriminator(_kind_of),
]
"""Where the bundles of a family come from."""
