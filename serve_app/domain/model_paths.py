"""Paths by which clients name models: `<models_dir>/<name>`. A path only ever chooses among what a source lists."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath

from serve_app.domain.errors import RequestError, nearest
from serve_app.domain.reload import KnownVersion
from serve_app.domain.versions import stamp_in

_SHOWN = 160


class ModelPathError(RequestError):
    """The path leaves the directory of the models, or is none at all."""


class UnknownModelError(RequestError):
    """The source lists no model under that path."""


def name_of(known: KnownVersion) -> str:
    """Return the last part of where a version lies; its version where that says nothing."""
    return PurePosixPath(known.location).name or known.version


def path_of(models_dir: str, name: str) -> str:
    """Return the path by which clients know a model."""
    return f"{models_dir.rstrip('/')}/{name}"


def timestamp_of(name: str, modified_at_s: float) -> str:
    """Return the timestamp in a model's name, or else when it was last modified, as `20250130_143000` in UTC."""
    moment = stamp_in(name) or datetime.fromtimestamp(modified_at_s, UTC)
    return moment.strftime("%Y%m%d_%H%M%S")


def find_model(model_path: str, models_dir: str, listed: Sequence[KnownVersion]) -> KnownVersion:
    """Return the listed model that a client means by its path, its name, its version, or its full location.

    Raises:
        ModelPathError: The path is absolute and none that is listed, climbs with `..`, or has characters of no path.
        UnknownModelError: Nothing of that name is listed.
    """
    shown = repr(model_path if len(model_path) <= _SHOWN else model_path[:_SHOWN] + "…")
    expected = f"expected a path below {models_dir!r} as GET /admin/models lists it"
    if not model_path or not model_path.isprintable() or "\\" in model_path:
        raise ModelPathError(f"{expected}, found {shown}")
    path = PurePosixPath(model_path)
    if ".." in path.parts:
        raise ModelPathError(f"{expected}, found {shown}, which leaves it")
    paths = {str(PurePosixPath(path_of(models_dir, name_of(known)))): known for known in listed}
    found = next(
        (
            names[str(path)]
            for names in (
                paths,
                {known.version: known for known in listed},
                {name_of(known): known for known in listed},
                {str(PurePosixPath(known.location)): known for known in listed},
            )
            if str(path) in names
        ),
        None,
    )
    if found is not None:
        return found
    if path.is_absolute():
        raise ModelPathError(f"{expected}, found the absolute path {shown}")
    raise UnknownModelError(
        f"no model {shown}{nearest(model_path, paths)}; the source lists {', '.join(list(paths)[:5]) or 'none'}"
    )
