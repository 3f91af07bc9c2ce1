"""Bundles on this machine: `<root>/<version>/…` with a link `<root>/current`, or `<root>` itself a bundle."""

import hashlib
import os
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path

from serve_app.adapters.bundle_reader import DEFAULT_MAX_BYTES, read_bundle, read_manifest_bytes, resolved
from serve_app.domain.errors import BundleError, ManifestError, SourceError, VersionNotFoundError
from serve_app.domain.manifest import MANIFEST_NAME, Manifest
from serve_app.domain.source_status import SourceStatus
from serve_app.domain.versions import CURRENT, RESERVED, problem_with_version, stamp_in
from serve_app.usecases.ports import Bundle, BundleRef


class LocalDirectorySource:
    """A `BundleSource` over one directory.

    What is current: the target of `<root>/current`; without that link, `<root>` itself if it holds a manifest; else the
    newest version, by the timestamp in the directory's name (`tft_model_20250130_143000`) or by `created_at`. Links are
    followed anew at every call, so a mount or a link that flips is seen at once.
    """

    def __init__(self, root: Path, *, manifest_name: str = MANIFEST_NAME, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._root = root
        self._manifest_name = manifest_name
        self._max_bytes = max_bytes

    def current(self) -> BundleRef | None:
        """Return what is current, even if its manifest is broken (then under the directory's name), or None."""
        directory = self._current_directory()
        return None if directory is None else self._ref(directory, is_current=True)

    def find(self, version: str) -> BundleRef:
        """Return one version; its manifest may be broken as long as the directory has the version's name."""
        directory = self._directory_of(version)
        return self._ref(directory, is_current=directory == self._current_directory())

    def chosen(self, model: str) -> BundleRef:
        """Say that there is none: a directory holds the versions of one model.

        Raises:
            VersionNotFoundError: Always.
        """
        raise VersionNotFoundError(str(self._root), model, ())

    def remembered(self) -> BundleRef | None:
        """Return None: a directory that cannot be read has no copy elsewhere."""
        return None

    def keep(self, versions: Collection[str]) -> None:
        """Do nothing: the directory belongs to who fills it."""

    def status(self) -> SourceStatus:
        """Return the kind alone; a directory is read anew at every call."""
        return SourceStatus(kind="local_directory")

    def versions(self) -> Sequence[BundleRef]:
        """List the bundles with a readable manifest, newest first."""
        current = self._current_directory()
        found = sorted(self._readable(), key=lambda entry: (_age_key(*entry), entry[0].name), reverse=True)
        return [self._ref(directory, is_current=directory == current) for directory, _ in found]

    def directories(self) -> list[Path]:
        """List every directory with a manifest, readable or not, links followed, in the order of their names."""
        root = resolved(self._root)
        try:
            names = sorted(path.name for path in root.iterdir() if path.is_dir())
        except OSError as error:
            raise SourceError(f"cannot list {self._root}: {error.strerror}") from error
        candidates = [root, *(root / name for name in names if name not in RESERVED and not name.startswith("."))]
        if (root / CURRENT).is_dir():  # its target may lie elsewhere
            candidates.append(root / CURRENT)
        return list(dict.fromkeys(path.resolve() for path in candidates if (path / self._manifest_name).exists()))

    def fetch(self, version: str) -> Bundle:
        """Read and verify one version, or `"current"`."""
        if version == CURRENT:
            directory = self._current_directory()
            if directory is None:
                raise SourceError(f"expected a bundle in {self._root}, found none")
        else:
            directory = self._directory_of(version)
        return read_bundle(directory, manifest_name=self._manifest_name, max_bytes=self._max_bytes)

    def _current_directory(self) -> Path | None:
        root = resolved(self._root)
        link = root / CURRENT
        if link.is_symlink() or link.is_dir():
            return resolved(link)
        if (root / self._manifest_name).exists():
            return root
        newest = max(self._readable(), key=lambda entry: (_age_key(*entry), entry[0].name), default=None)
        return None if newest is None else newest[0]

    def _directory_of(self, version: str) -> Path:
        if problem := problem_with_version(version):
            raise SourceError(problem)
        named = resolved(self._root) / version
        if (named / self._manifest_name).exists() and self._claimed(named) in (None, version):
            return resolved(named)
        known = {manifest.model_version: directory for directory, manifest in self._readable()}
        if version not in known:
            raise VersionNotFoundError(str(self._root), version, sorted(known))
        return known[version]

    def _claimed(self, directory: Path) -> str | None:
        """Return the version that the manifest names; None where it cannot be read, so that reading it says why."""
        manifest = self._manifest(directory)
        return None if manifest is None else manifest.model_version

    def _readable(self) -> list[tuple[Path, Manifest]]:
        read = ((directory, self._manifest(directory)) for directory in self.directories())
        return [(directory, manifest) for directory, manifest in read if manifest is not None]

    def _manifest(self, directory: Path) -> Manifest | None:
        try:
            raw = read_manifest_bytes(directory, manifest_name=self._manifest_name)
            return Manifest.parse(raw, str(directory))
        except (BundleError, SourceError):
            return None

    def _ref(self, directory: Path, *, is_current: bool) -> BundleRef:
        try:
            raw = read_manifest_bytes(directory, manifest_name=self._manifest_name)
        except BundleError as error:
            raise SourceError(str(error)) from error
        fingerprint = hashlib.sha256(raw).hexdigest()
        try:
            manifest = Manifest.parse(raw, str(directory))
        except ManifestError:
            return BundleRef(directory.name, fingerprint, str(directory), is_current=is_current)
        facts = manifest.model_dump(mode="json", exclude_none=True, exclude={"sha256", "model_version"})
        facts["files"] = len(manifest.sha256)
        sizes = [_stat_or_none(directory / path) for path in manifest.sha256]
        facts["size_bytes"] = sum(stat.st_size for stat in sizes if stat is not None)
        own = _stat_or_none(directory / self._manifest_name)
        facts["modified_at_s"] = own.st_mtime if own is not None else 0.0
        return BundleRef(manifest.model_version, fingerprint, str(directory), is_current=is_current, facts=facts)


def _stat_or_none(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _age_key(directory: Path, manifest: Manifest) -> datetime:
    return stamp_in(directory.name) or manifest.created_at
