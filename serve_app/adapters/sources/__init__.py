"""Where bundles come from, by the name that the configuration uses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from serve_app.adapters.sources.local_directory import LocalDirectorySource
from serve_app.usecases.ports import BundleSource


class BuildSource(Protocol):
    """Makes a source over the directory `root`; `manifest_name` is the name of the manifest in a bundle."""

    def __call__(self, root: Path, *, manifest_name: str) -> BundleSource:
        """Make the source; nothing is read yet."""
        ...


SOURCES: Mapping[str, BuildSource] = {"local_directory": LocalDirectorySource}
