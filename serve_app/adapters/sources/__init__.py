"""Where bundles come from, by the name that the configuration uses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from serve_app.adapters.sources.local_directory import LocalDirectorySource
from serve_app.usecases.ports import BundleSource


class MakeSource(Protocol):
    """Makes a source over `root`, whose manifests have the given name."""

    def __call__(self, root: Path, *, manifest_name: str) -> BundleSource:
        """Make it; nothing is read yet."""
        ...


SOURCES: Mapping[str, MakeSource] = {"local_directory": LocalDirectorySource}
