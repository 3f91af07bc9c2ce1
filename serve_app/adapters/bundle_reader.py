"""Reads a bundle from a directory: every listed file once, its digest checked on the very bytes that are kept."""

import hashlib
import os
import stat
from pathlib import Path

from serve_app.domain.errors import BundleError, SourceError
from serve_app.domain.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from serve_app.usecases.ports import Bundle

DEFAULT_MAX_BYTES = 4 * 1024**3
_CHUNK_BYTES = 1024 * 1024


class _FileProblemError(Exception):
    """One file cannot be taken; the message says expected and found. Never leaves this module."""


class _ChangedError(Exception):
    """A file changed between two looks at it. Never leaves this module."""


def read_bundle(directory: Path, *, manifest_name: str = MANIFEST_NAME, max_bytes: int = DEFAULT_MAX_BYTES) -> Bundle:
    """Read and verify the bundle in `directory`; files that its manifest does not list are never opened.

    Links of `directory` itself are resolved once, here, so that a flip of `current` during the read does no harm.

    Raises:
        BundleError: The bundle is refused, with all its problems.
        SourceError: There is no such directory, or it changed while it was read.
    """
    root = resolved(directory)
    where = str(directory)
    raw = read_manifest_bytes(root, manifest_name=manifest_name, where=where)
    manifest = Manifest.parse(raw, f"{where}/{manifest_name}")
    files: dict[str, bytes] = {}
    problems: list[str] = []
    left_bytes = max_bytes
    try:
        for path, expected in sorted(manifest.sha256.items()):
            try:
                content = _read_file(root, path, max_bytes=left_bytes)
            except _FileProblemError as problem:
                problems.append(f"{path}: {problem}")
                continue
            left_bytes -= len(content)
            found = hashlib.sha256(content).hexdigest()
            if found == expected:
                files[path] = content
            else:
                size = f"{len(content)} bytes" if content else "0 bytes, the file is empty"
                problems.append(f"{path}: expected sha256 {expected}, found {found} ({size})")
        if _read_file(root, manifest_name, max_bytes=MAX_MANIFEST_BYTES) != raw:
            raise _ChangedError
    except (_ChangedError, _FileProblemError) as error:
        raise SourceError(
            f"bundle {where} changed while it was read; a new version belongs into a directory of its own"
        ) from error
    if problems:
        raise BundleError(where, problems)
    return Bundle(manifest=manifest, digest=hashlib.sha256(raw).hexdigest(), files=files, location=str(root))


def read_manifest_bytes(root: Path, *, manifest_name: str = MANIFEST_NAME, where: str | None = None) -> bytes:
    """Return the bytes of the manifest in `root`.

    Raises:
        BundleError: There is none, or it is no regular file of a sane size inside the bundle.
    """
    try:
        return _read_file(root, manifest_name, max_bytes=MAX_MANIFEST_BYTES)
    except _FileProblemError as problem:
        raise BundleError(where or str(root), [f"{manifest_name}: {problem}"]) from problem
    except _ChangedError as error:
        raise SourceError(f"{root}/{manifest_name} changed while it was read") from error


def resolved(directory: Path) -> Path:
    """Follow all links of `directory`.

    Raises:
        SourceError: It does not exist or is no directory.
    """
    try:
        root = directory.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        found = f"a link to {directory.readlink()}, which is not there" if directory.is_symlink() else "nothing there"
        raise SourceError(f"expected a directory at {directory}, found {found}") from error
    if not root.is_dir():
        raise SourceError(f"expected a directory at {directory}, found a file")
    return root


def _read_file(root: Path, path: str, *, max_bytes: int) -> bytes:
    """Read one file of the bundle whole, without ever waiting for a pipe or following a link out of `root`."""
    try:
        target = Path(os.path.realpath(root / path, strict=True))
        if not target.is_relative_to(root):
            raise _FileProblemError(f"expected a file inside the bundle, found a link to {target}")
        # O_NONBLOCK: opening a named pipe must not wait for a writer. O_NOFOLLOW: the links are resolved already.
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _FileProblemError(_missing(root / path)) from error
    except OSError as error:
        raise _FileProblemError(f"expected a readable file, found: {error.strerror or error}") from error
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise _FileProblemError(f"expected a regular file, found {_kind(before.st_mode)}")
        if before.st_size > max_bytes:
            raise _FileProblemError(
                f"expected at most {max_bytes} bytes (what is left of the limit), found {before.st_size}"
            )
        content = _read_all(descriptor, before.st_size)
        after = os.fstat(descriptor)
    except OSError as error:
        raise _FileProblemError(f"expected a readable file, found: {error.strerror or error}") from error
    finally:
        os.close(descriptor)
    if len(content) != before.st_size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise _ChangedError(path)
    return content


def _read_all(descriptor: int, size: int) -> bytes:
    """Read up to one byte more than `size`, so that a file that grows is noticed and never fills the memory."""
    chunks: list[bytes] = []
    left = size + 1
    while left > 0 and (chunk := os.read(descriptor, min(left, _CHUNK_BYTES))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _missing(path: Path) -> str:
    if path.is_symlink():
        return f"expected a file, found a link to {path.readlink()}, which is not there"
    return "expected a file, found none"


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
