"""What a registry source is told: which registry, which registered model, and how its version is chosen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Selector:
    """How the version of a registered model is chosen; `value` is the alias, stage or version, empty for `newest`."""

    kind: Literal["alias", "stage", "version", "newest"]
    value: str = ""

    def __str__(self) -> str:
        return self.value or self.kind


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """One family's place in a registry. It travels to every process that reads the source.

    Args:
        family: Whose bundles these are.
        models_type: What every manifest made of a registered version claims.
        tracking_uri: Address of the MLflow server; None: `MLFLOW_TRACKING_URI` of the environment.
        model: Name of the registered model.
        selector: How its current version is chosen.
        cache_dir: Where this node keeps its copies. One family to a directory: the copies name its `models_type`.
        max_cache_bytes: Size of all copies above which those not used for the longest time go.
        timeout_s: For one request, in seconds (MLflow takes whole ones: rounded up).
        artifacts_timeout_s: For all the files of one version, in seconds.
    """

    family: str
    models_type: str
    tracking_uri: str | None
    model: str
    selector: Selector
    cache_dir: Path
    max_cache_bytes: int = 10 << 30
    timeout_s: float = 10.0
    artifacts_timeout_s: float = 120.0
