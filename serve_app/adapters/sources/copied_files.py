"""Files and directories of local copies: names, sizes, digests, and what must be on the disk before a rename."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from serve_app.adapters.durable_files import sync_directory
from serve_app.domain.errors import SourceError

_LONGEST_NAME = 180
_LEFTOVER = re.compile(r"\.(?P<version>[A-Za-z0-9][A-Za-z0-9._-]*)\.[a-z0-9_]{8}\.tmp")


def path_part(name: str) -> str:
    """Return a file name for any text: the text itself where that is safe, else percent-encoded and shortened."""
    safe = quote(name, safe=" +=@,()")
    if safe.startswith((".", " ")):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    if len(safe) > _LONGEST_NAME:
        safe = f"{safe[:_LONGEST_NAME]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return safe


def entries(directory: Path) -> list[Path]:
    """List a directory; nothing for one that is not there or cannot be read."""
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def synced_digests(root: Path) -> dict[str, str]:
    """Flush all files and directories below `root` to the disk; return sha256 (hex) by relative path.

    Raises:
        SourceError: There is something other than plain files.
    """
    digests = {path.relative_to(root).as_posix(): synced_digest(path) for path in sorted(_files_below(root))}
    for directory, _, _ in os.walk(root, topdown=False):
        sync_directory(Path(directory))
    return digests


def synced_digest(path: Path) -> str:
    """Flush one file to the disk and return its sha256 (hex)."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    return digest


def size_of(directory: Path) -> int:
    """Add up the bytes of all files below; a file that goes away meanwhile counts nothing."""
    total = 0
    for where, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(Path(where, name)).st_size
            except OSError:
                continue
    return total


def leftover_versions(directory: Path) -> set[str]:
    """Name the versions of which there are half copies; where nobody holds the lock, their maker was killed."""
    return {match["version"] for path in entries(directory) if (match := _LEFTOVER.fullmatch(path.name))}


def remove_leftovers(directory: Path, version: str) -> None:
    """Delete the half copies of one version; for the holder of its lock only."""
    for path in entries(directory):
        match = _LEFTOVER.fullmatch(path.name)
        if match and match["version"] == version:
            shutil.rmtree(path, ignore_errors=True)


def _files_below(root: Path) -> Iterator[Path]:
    for where, directories, names in os.walk(root):
        for name in (*directories, *names):
            path = Path(where, name)
            if path.is_symlink() or (name in names and not path.is_file()):
                raise SourceError(f"expected plain files in a model, found {path.relative_to(root)} to be none")
        yield from (Path(where, name) for name in names)
