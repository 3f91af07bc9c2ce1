"""Writes bundles so that a reader, or a crash at any moment, never meets a half-written one."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from serve_app.adapters.bundle_reader import read_manifest_bytes, resolved
from serve_app.adapters.durable_files import sync_directory, write_durably
from serve_app.domain.errors import BundleError
from serve_app.domain.manifest import MANIFEST_NAME, Manifest, Sidecar
from serve_app.domain.versions import CURRENT, problem_with_version, version_at


def write_bundle(root: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write a bundle to `<root>/<model_version>` and return that directory; `current` stays as it is.

    All is written to a hidden directory beside it, flushed to the disk, then renamed: the version is there whole or
    not at all. `Manifest.describing(files, ...)` makes a fitting manifest.

    Raises:
        BundleError: The version exists already, or `files` are not what the manifest lists.
    """
    target = root / manifest.model_version
    if problems := _differences(manifest, files):
        raise BundleError(str(target), problems)
    root.mkdir(parents=True, exist_ok=True)
    _refuse_existing(target)
    work = Path(tempfile.mkdtemp(prefix=f".{manifest.model_version[:64]}.", suffix=".tmp", dir=root))
    try:
        work.chmod(0o755)  # mkdtemp makes it private; the server may run as somebody else
        for path in sorted(files):
            write_durably(work / path, files[path])
        write_durably(work / MANIFEST_NAME, manifest.to_bytes())
        for directory, _, _ in os.walk(work, topdown=False):
            sync_directory(Path(directory))
        _refuse_existing(target)
        try:
            work.rename(target)
        except OSError as error:
            raise BundleError(str(target), [f"expected to rename it into place, found: {error.strerror}"]) from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    sync_directory(root)
    return target


def set_current(root: Path, version: str) -> None:
    """Point `<root>/current` at `version` by one atomic rename; a reader sees the old target or the new one.

    Raises:
        BundleError: There is no such version, or `current` is something other than a link.
    """
    target, link = root / version, root / CURRENT
    if problem := problem_with_version(version):
        raise BundleError(str(target), [problem])
    if not (target / MANIFEST_NAME).is_file():
        raise BundleError(str(target), [f"expected a bundle with a {MANIFEST_NAME}, found none"])
    if link.exists() and not link.is_symlink():
        raise BundleError(str(link), ["expected a link, found a directory or file of that name"])
    holder = Path(tempfile.mkdtemp(prefix=f".{CURRENT}.", suffix=".tmp", dir=root))
    try:
        fresh = holder / CURRENT
        fresh.symlink_to(version, target_is_directory=True)
        # The link is relative to where it will stand, so it points nowhere until it is moved there.
        fresh.replace(link)
        sync_directory(root)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def build_manifest(
    base_dir: Path,
    models_type: str,
    *,
    model_version: str | None = None,
    now: datetime | None = None,
    manifest_name: str = MANIFEST_NAME,
) -> Manifest:
    """Describe the files that lie in `base_dir`: `models/<target>/<models_type>/…` and `scalers/…`, in sorted order.

    The version defaults to the present minute, `v2026-01-30T0900Z`. The `sidecar` section of a manifest that is there
    already is kept, for it is written by hand.

    Raises:
        BundleError: Nothing to describe, or a file that no bundle may hold, with all problems.
        SourceError: `base_dir` is no directory.
    """
    root = resolved(base_dir)
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    digests: dict[str, str] = {}
    problems: list[str] = []
    for file in sorted(_model_files(root, models_type)):
        path = file.relative_to(root).as_posix()
        if not file.resolve().is_relative_to(root):
            problems.append(f"{path}: expected a file inside the bundle, found a link to {file.resolve()}")
        else:
            digests[path] = _digest_of(file)
    if not any(path.startswith("models/") for path in digests):
        problems.append(f"expected files like models/<target>/{models_type}/model.joblib, found none")
    if problems:
        raise BundleError(str(base_dir), problems)
    facts = {"model_version": model_version or version_at(moment), "models_type": models_type, "created_at": moment}
    return Manifest.of_digests(digests, **facts, sidecar=_sidecar_of(root, manifest_name))


def write_manifest(base_dir: Path, manifest: Manifest, *, manifest_name: str = MANIFEST_NAME) -> Path:
    """Put the manifest into `base_dir` by an atomic rename, over an older one."""
    target = base_dir / manifest_name
    work = base_dir / f".{manifest_name}.{os.getpid()}.tmp"
    try:
        write_durably(work, manifest.to_bytes())
        work.replace(target)
    finally:
        work.unlink(missing_ok=True)
    sync_directory(base_dir)
    return target


def _differences(manifest: Manifest, files: Mapping[str, bytes]) -> list[str]:
    problems = [f"{path}: expected it among the files, found none" for path in manifest.sha256 if path not in files]
    for path, content in files.items():
        found = hashlib.sha256(content).hexdigest()
        expected = manifest.sha256.get(path)
        if path == MANIFEST_NAME or expected is None:
            problems.append(f"{path}: expected only files that the manifest lists, found it beside them")
        elif found != expected:
            problems.append(f"{path}: expected sha256 {expected}, found {found} ({len(content)} bytes)")
    return problems


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise BundleError(str(target), ["expected a new version, found one that exists; a version never changes"])


def _model_files(root: Path, models_type: str) -> Iterator[Path]:
    for pattern in (f"models/*/{models_type}/**/*", "scalers/**/*"):
        for path in root.glob(pattern):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts):
                yield path


def _sidecar_of(root: Path, manifest_name: str) -> Sidecar | None:
    try:
        return Manifest.parse(read_manifest_bytes(root, manifest_name=manifest_name), str(root)).sidecar
    except BundleError:  # none yet, or one that is about to be replaced
        return None


def _digest_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
