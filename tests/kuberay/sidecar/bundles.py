"""Bundles for the sidecar: small, good, and bad in the ways that matter to it."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MODEL = "models/cpu_usage_node/regression/model.joblib"
SCALER = "scalers/scaler_x/features.joblib"
CREATED_AT = "2026-01-30T09:00:00Z"


def files(version: str) -> dict[str, bytes]:
    return {MODEL: f"the model of {version}".encode(), SCALER: b"a scaler"}


def document(listed: Mapping[str, bytes] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a manifest as JSON; a change to `...` removes a key."""
    known = files("v1") if listed is None else listed
    made: dict[str, Any] = {
        "model_version": "v1",
        "models_type": "regression",
        "created_at": CREATED_AT,
        "sha256": {path: hashlib.sha256(content).hexdigest() for path, content in known.items()},
    }
    return {key: value for key, value in (made | changes).items() if value is not ...}


def stage(root: Path, version: str = "v1", *, is_ready: bool = True, **changes: Any) -> Path:
    """Put a bundle into the staging directory as S1 says: files first, READY last."""
    staging = root / "staging"
    listed = files(version)
    for path, content in listed.items():
        (staging / path).parent.mkdir(parents=True, exist_ok=True)
        (staging / path).write_bytes(content)
    (staging / "manifest.json").write_text(json.dumps(document(listed, model_version=version, **changes)))
    if is_ready:
        (staging / "READY").touch()
    return staging


def make_live(root: Path, version: str) -> None:
    """Put a version where the sidecar would, and `current` to it."""
    stage(root, version, is_ready=False).rename(root / version)
    (root / "current").symlink_to(version)


def _listed(staging: Path, path: str, content: bytes) -> None:
    """List one more file, with the digest of `content`."""
    manifest = staging / "manifest.json"
    changed = json.loads(manifest.read_text())
    changed["sha256"][path] = hashlib.sha256(content).hexdigest()
    manifest.write_text(json.dumps(changed))


def _odd_names(staging: Path) -> None:
    for path in ("models/a b/x", " leading", "trailing ", "-rf", "quote\"'", "$(id)", "ümlaut/模型", "*", "%s%n", "#"):
        (staging / path).parent.mkdir(exist_ok=True)
        (staging / path).write_text(path)
        _listed(staging, path, path.encode())


def _link(staging: Path, path: str, target: str) -> None:
    (staging / path).unlink(missing_ok=True)
    (staging / path).symlink_to(target)


def _links_inside(staging: Path) -> None:
    blob = staging / "blobs" / "one"
    blob.parent.mkdir()
    (staging / SCALER).rename(blob)
    _link(staging, SCALER, "../../blobs/one")
    _listed(staging, "blobs/one", b"a scaler")
    (staging / "also").symlink_to("models")
    _listed(staging, MODEL.replace("models", "also", 1), (staging / MODEL).read_bytes())


def _absolute_link_inside(staging: Path) -> None:
    (staging / SCALER).rename(staging / "unlisted")
    _link(staging, SCALER, str(staging / "unlisted"))


def _link_outside(staging: Path) -> None:
    (staging.parent / "outside").write_bytes(b"a scaler")
    _link(staging, SCALER, "../../../outside")


def _directory_link_outside(staging: Path) -> None:
    (staging / "scalers").rename(staging.parent / "elsewhere")
    (staging / "scalers").symlink_to("../elsewhere")


def _manifest_link_outside(staging: Path) -> None:
    (staging / "manifest.json").rename(staging.parent / "outside.json")
    (staging / "manifest.json").symlink_to("../outside.json")


def _pipe(staging: Path) -> None:
    (staging / SCALER).unlink()
    os.mkfifo(staging / SCALER)


def _directory_for_a_file(staging: Path) -> None:
    (staging / SCALER).unlink()
    (staging / SCALER).mkdir()


def _too_large(staging: Path) -> None:
    with (staging / SCALER).open("wb") as stream:
        stream.truncate(4 * 1024**3 + 1)


def _huge_manifest(staging: Path) -> None:
    manifest = staging / "manifest.json"
    manifest.write_text(manifest.read_text() + " " * (4 * 1024 * 1024))


def _unlisted(staging: Path) -> None:
    (staging / "notes.txt").write_text("nobody lists me")
    (staging / ".hidden").write_text("nor me")
    (staging / "line\nbreak").write_text("nor me")
    (staging / "away").symlink_to("/etc/passwd")


def _empty_file(staging: Path) -> None:
    (staging / SCALER).write_bytes(b"")
    _listed(staging, SCALER, b"")


def _path_above(staging: Path) -> None:
    (staging.parent / "outside").write_bytes(b"x")
    _listed(staging, "../outside", b"x")


GOOD: Mapping[str, Callable[[Path], object]] = {
    "plain": lambda _: None,
    "odd_names": _odd_names,
    "links_inside": _links_inside,
    "unlisted_files": _unlisted,
    "empty_file": _empty_file,
    "upper_case_digest": lambda staging: (staging / "manifest.json").write_text(
        json.dumps(document(sha256={SCALER: hashlib.sha256(b"a scaler").hexdigest().upper()}))
    ),
}
"""What a writer may do to a staged bundle and it is still good."""

BAD: Mapping[str, Callable[[Path], object]] = {
    "changed_byte": lambda staging: (staging / MODEL).write_bytes(b"the model of v2"),
    "truncated": lambda staging: (staging / MODEL).write_bytes(b"the model"),
    "emptied": lambda staging: (staging / MODEL).write_bytes(b""),
    "missing_file": lambda staging: (staging / SCALER).unlink(),
    "missing_manifest": lambda staging: (staging / "manifest.json").unlink(),
    "manifest_cut_short": lambda staging: (staging / "manifest.json").write_text('{"model_version": "v1"'),
    "empty_manifest": lambda staging: (staging / "manifest.json").write_text(""),
    "huge_manifest": _huge_manifest,
    "manifest_is_a_link_outside": _manifest_link_outside,
    "link_outside": _link_outside,
    "directory_link_outside": _directory_link_outside,
    "dangling_link": lambda staging: _link(staging, SCALER, "nowhere"),
    "link_to_itself": lambda staging: _link(staging, SCALER, "features.joblib"),
    "named_pipe": _pipe,
    "directory_for_a_file": _directory_for_a_file,
    "too_large": _too_large,
    "path_above": _path_above,
    "absolute_path": lambda staging: _listed(staging, str(staging / MODEL), files("v1")[MODEL]),
    "lists_itself": lambda staging: _listed(staging, "manifest.json", b""),
    "no_files": lambda staging: (staging / "manifest.json").write_text(json.dumps(document(sha256={}))),
    "version_with_a_slash": lambda staging: (staging / "manifest.json").write_text(
        json.dumps(document(model_version="../v1"))
    ),
}
"""And what makes it a bad one."""

STRICTER: Mapping[str, Callable[[Path], object]] = {
    # The server reads such a bundle where it lies; the sidecar moves it, and then the link points to nothing.
    "absolute_link_inside": _absolute_link_inside,
    "file_named_as_the_mark": lambda staging: _listed(staging, "READY", b""),
}
"""What the server takes and the sidecar does not."""
