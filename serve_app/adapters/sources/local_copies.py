"""This node's copies of registered versions: made once, whole or not at all, kept within a size, shared by processes.

<root>/<model>/<version>/manifest.json, model/…   a bundle; its bytes are the same wherever it was copied
<root>/<model>/<version>/registry.json            what the registry told of it, which may change
<root>/<model>/current.<selector>                 link to what a selector last chose
<root>/<model>/.<version>.lock                    exclusive: who makes or drops the copy; shared: who reads it;
                                                  its time is the last use
<root>/.keep.json                                 the versions that are live
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.adapters.bundle_reader import read_bundle, read_manifest_bytes
from serve_app.adapters.durable_files import sync_directory
from serve_app.adapters.sources.copied_files import (
    entries,
    leftover_versions,
    path_part,
    remove_leftovers,
    size_of,
    synced_digest,
    synced_digests,
)
from serve_app.adapters.sources.file_lock import locked, try_lock
from serve_app.domain.errors import BundleError, SourceError
from serve_app.domain.manifest import MANIFEST_NAME, Manifest
from serve_app.domain.versions import problem_with_version
from serve_app.usecases.ports import Bundle

FILES = "model"
FACTS_NAME = "registry.json"

_KEEP_NAME = ".keep.json"
_LINK_PREFIX = "current."

log = structlog.get_logger(__name__)


class RegistryFacts(BaseModel):
    """What the registry said of a version when it was last asked; none of it changes what is served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: str
    uri: str
    stage: str | None = None
    aliases: tuple[str, ...] = ()
    run_id: str | None = None
    source: str = ""
    updated_at_s: float = 0.0
    metrics: dict[str, float] = {}
    params: dict[str, str] = {}


class _Kept(BaseModel):
    """The live versions, as (model, version)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LocalCopy:
    """A complete copy. `digest` is the sha256 of its manifest's bytes; only `LocalCopies.read` checks the files."""

    model: str
    version: str
    directory: Path
    manifest: Manifest
    digest: str


class LocalCopies:
    """The copies below `root`. Safe to use from several threads and processes of one node.

    Args:
        root: The directory; it need not exist, and may be read-only as long as nothing is to be copied.
        max_bytes: Size of all copies above which the least recently used go. Never: those kept, chosen by a selector,
            or being read, so these alone may be more.
        patience_s: How long to wait for another process that makes or drops the same copy, in seconds.
    """

    def __init__(self, root: Path, *, max_bytes: int, patience_s: float) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._patience_s = patience_s

    def find(self, model: str, version: str) -> LocalCopy | None:
        """Return the copy, or None when there is none that could be read."""
        if problem_with_version(version):
            return None
        return self._copy_in(model, self._directory(model) / version)

    def all_of(self, model: str) -> list[LocalCopy]:
        """List the copies of one model."""
        found = (self._copy_in(model, directory) for directory in _copies_in(self._directory(model)))
        return [copy for copy in found if copy is not None]

    def read(self, model: str, version: str) -> Bundle:
        """Read and verify a copy; one that is damaged is dropped, so that the next call can make it anew.

        Raises:
            BundleError: A file is not what it was when it was copied.
            SourceError: There is no such copy, or it cannot be read.
        """
        directory = self._directory(model) / version
        try:
            with self._lock(model, version, exclusive=False):
                return read_bundle(directory)
        except BundleError as error:
            log.warning("damaged local copy is dropped", location=str(directory), reason=str(error))
            with suppress(SourceError), self._lock(model, version, exclusive=True):
                self._drop(directory)
            raise

    def make(
        self,
        model: str,
        version: str,
        *,
        is_same: Callable[[Manifest], bool],
        fill: Callable[[Path], None],
        describe: Callable[[Path, Mapping[str, str]], Manifest],
    ) -> LocalCopy:
        """Return the copy, made first unless there is one that `is_same`; one that is not is replaced.

        `fill` puts the files into a directory; `describe` makes the manifest from it and the digests of all files.

        Raises:
            SourceError: It cannot be written, or another process takes too long with it; also what `fill` raises.
        """
        directory = self._directory(model)
        found = self.find(model, version)
        if found is not None and is_same(found.manifest):
            return found
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with self._lock(model, version, exclusive=True):
                found = self.find(model, version)  # another process may have made it meanwhile
                if found is None or not is_same(found.manifest):
                    remove_leftovers(directory, version)
                    self._put_in_place(directory / version, fill, describe)
                    found = self.find(model, version)
        except OSError as error:
            raise SourceError(f"expected to write a copy to {directory}, found: {error.strerror or error}") from error
        if found is None:
            raise SourceError(f"expected a copy in {directory / version}, found it gone again")
        self.evict(spare=found)
        return found

    def facts(self, copy: LocalCopy) -> RegistryFacts | None:
        """Return what the registry last told of a copy; None when that was never written."""
        try:
            return RegistryFacts.model_validate_json((copy.directory / FACTS_NAME).read_bytes())
        except (OSError, ValidationError):
            return None

    def write_facts(self, copy: LocalCopy, facts: RegistryFacts) -> None:
        """Keep what the registry told; a disk that cannot take it is logged and no more."""
        _replace(copy.directory / FACTS_NAME, facts)

    def remember(self, copy: LocalCopy, selector: str) -> None:
        """Note that `selector` chose this copy, instead of what it chose before."""
        link = self._link(copy.model, selector)
        try:
            if link.is_symlink() and str(link.readlink()) == copy.version:
                return
            fresh = link.with_name(f".{link.name}.{os.getpid()}.{time.monotonic_ns()}.link")
            fresh.symlink_to(copy.version, target_is_directory=True)
            fresh.replace(link)
        except OSError as error:
            log.warning("choice of version not remembered", link=str(link), reason=error.strerror)
            return
        for other in entries(link.parent):
            if (
                other.is_symlink() and other != link
            ):  # of a selector that the configuration named before; it would hold a copy for ever
                other.unlink(missing_ok=True)

    def remembered(self, model: str, selector: str) -> LocalCopy | None:
        """Return the copy that `selector` last chose, if it is still there."""
        try:
            version = str(self._link(model, selector).readlink())
        except OSError:
            return None
        return self.find(model, version)

    def keep(self, live: Collection[tuple[str, str]]) -> None:
        """Note which (model, version) are live: their copies stay. Then drop what is too much."""
        kept = _Kept(keep=tuple(sorted(set(live))))
        if kept != self._kept() and self._root.is_dir():
            _replace(self._root / _KEEP_NAME, kept)
        self.evict()

    def evict(self, *, spare: LocalCopy | None = None) -> None:
        """Drop copies until all are within `max_bytes`, least recently used first, and what a killed process left."""
        try:
            lock = try_lock(self._root / ".eviction.lock")
        except OSError:  # nothing was copied yet, or the directory is read-only
            return
        if lock is None:
            return  # another process is at it
        with lock:
            directories = [path for path in entries(self._root) if path.is_dir()]
            for directory in directories:
                self._sweep(directory)
            self._evict_from(
                [path for each in directories for path in _copies_in(each)], self._held(directories, spare)
            )

    def _evict_from(self, copies: Collection[Path], held: Collection[Path]) -> None:
        sizes = {path: size_of(path) for path in copies}
        total = sum(sizes.values())
        for path in sorted(copies, key=_used_at):
            if total <= self._max_bytes:
                return
            if path not in held and self._drop_unless_busy(path):
                total -= sizes[path]
                log.info("local copy evicted", location=str(path), size_bytes=sizes[path])
        if total > self._max_bytes:
            log.warning("local copies are above their limit, all in use", bytes=total, max_bytes=self._max_bytes)

    def _copy_in(self, model: str, directory: Path) -> LocalCopy | None:
        try:
            raw = read_manifest_bytes(directory)
            manifest = Manifest.parse(raw, str(directory))
        except (BundleError, SourceError):
            return None
        return LocalCopy(model, directory.name, directory, manifest, hashlib.sha256(raw).hexdigest())

    def _put_in_place(
        self,
        target: Path,
        fill: Callable[[Path], None],
        describe: Callable[[Path, Mapping[str, str]], Manifest],
    ) -> None:
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        try:
            work.chmod(0o755)  # mkdtemp makes it private; the server may run as somebody else
            (work / FILES).mkdir()
            fill(work / FILES)
            digests = synced_digests(work)
            manifest = work / MANIFEST_NAME
            manifest.write_bytes(describe(work, digests).to_bytes())
            synced_digest(manifest)
            sync_directory(work)
            self._drop(target)
            work.rename(target)
            sync_directory(target.parent)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise

    def _drop(self, directory: Path) -> None:
        """Take a copy away at one stroke, then delete it."""
        if not directory.is_dir():
            return
        aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=directory.parent))
        directory.rename(aside / directory.name)
        shutil.rmtree(aside, ignore_errors=True)

    def _drop_unless_busy(self, directory: Path) -> bool:
        with suppress(OSError):
            lock = try_lock(_lock_of(directory))
            if lock is not None:  # None: it is being read or made
                with lock:
                    self._drop(directory)
                    return True
        return False

    def _sweep(self, directory: Path) -> None:
        """Delete the half copies of processes that were killed: those whose lock nobody holds."""
        for version in leftover_versions(directory):
            with suppress(OSError):
                lock = try_lock(_lock_of(directory / version))
                if lock is not None:
                    with lock:
                        remove_leftovers(directory, version)

    def _held(self, directories: Collection[Path], spare: LocalCopy | None) -> set[Path]:
        """Return the copies that are live, chosen, or just made."""
        kept = {self._directory(model) / version for model, version in self._kept().keep}
        links = [path for directory in directories for path in entries(directory) if path.is_symlink()]
        return kept | {link.parent / link.readlink() for link in links} | ({spare.directory} if spare else set())

    def _kept(self) -> _Kept:
        try:
            return _Kept.model_validate_json((self._root / _KEEP_NAME).read_bytes())
        except (OSError, ValidationError):
            return _Kept()

    def _directory(self, model: str) -> Path:
        return self._root / path_part(model)

    def _link(self, model: str, selector: str) -> Path:
        return self._directory(model) / f"{_LINK_PREFIX}{path_part(selector)}"

    def _lock(self, model: str, version: str, *, exclusive: bool) -> AbstractContextManager[None]:
        path = _lock_of(self._directory(model) / version)
        return locked(path, exclusive=exclusive, patience_s=self._patience_s)


def _replace(path: Path, document: BaseModel) -> None:
    """Write a document by a rename; a disk that cannot take it is logged and no more."""
    try:
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(document.model_dump_json(indent=2).encode() + b"\n")
        Path(file.name).chmod(0o644)
        Path(file.name).replace(path)
    except OSError as error:
        log.warning("not written", path=str(path), reason=error.strerror)


def _copies_in(directory: Path) -> list[Path]:
    return [
        path
        for path in entries(directory)
        if (path / MANIFEST_NAME).is_file() and not path.is_symlink() and problem_with_version(path.name) is None
    ]


def _lock_of(directory: Path) -> Path:
    return directory.parent / f".{directory.name}.lock"


def _used_at(directory: Path) -> float:
    try:
        return _lock_of(directory).stat().st_mtime
    except OSError:
        return 0.0
