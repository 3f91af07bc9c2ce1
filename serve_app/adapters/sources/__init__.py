"""Where bundles come from."""

from pathlib import Path

from serve_app.adapters.sources.local_directory import LocalDirectorySource
from serve_app.config_sources import DirectoryConfig, SourceConfig
from serve_app.usecases.ports import BundleSource


def make_source(config: SourceConfig, *, family: str, models_type: str) -> BundleSource:
    """Make the source of a family, its paths as they stand in `config`; nothing is read yet."""
    if isinstance(config, DirectoryConfig):
        return LocalDirectorySource(Path(config.root), manifest_name=config.manifest_name)
    from serve_app.adapters.sources.mlflow_registry import MlflowRegistrySource
    from serve_app.adapters.sources.registry_settings import RegistrySettings, Selector

    kind, value = config.selector
    return MlflowRegistrySource(
        RegistrySettings(
            family=family,
            models_type=models_type,
            tracking_uri=config.tracking_uri,
            model=config.model,
            selector=Selector(kind, value),
            cache_dir=Path(config.cache_dir or ""),
            max_cache_bytes=config.max_cache_bytes,
            timeout_s=config.timeout_s,
            artifacts_timeout_s=config.artifacts_timeout_s,
        )
    )
