"""The environment variables that may change a configuration, where it says `allow_env_overrides: true`."""

import copy
import math
import os.path
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

from serve_app.config import AppConfig
from serve_app.domain.access import token_digest
from serve_app.domain.errors import ConfigError
from serve_app.domain.following import ReloadMode


class _Reach(Enum):
    """What a variable speaks of."""

    DEFAULT_FAMILY = auto()
    EVERY_FAMILY = auto()
    APPLICATION = auto()


@dataclass(frozen=True, slots=True)
class _Variable:
    """One variable: the keys down to what it replaces, and how its text is read (raises ValueError)."""

    reach: _Reach
    keys: tuple[str, ...]
    read: Callable[[str], Any] = str


def with_overrides(document: Any, environ: Mapping[str, str], *, working_dir: Path) -> Any:
    """Return the document of an `AppConfig` with what the environment says in place of what it says.

    ========================== ==================================================================================
    `MODELS_BASE_DIR`          root of the default family's source, or a bundle itself; relative to `working_dir`
    `MODELS_TYPE`              `models_type` of the default family
    `MODELS_MANIFEST`          name of the manifest in the bundles of the default family
    `RELOAD_MODE`              `none`, `poll` or `endpoint`, for every family
    `RELOAD_INTERVAL_SECONDS`  seconds between two looks at the source, for every family
    `MODEL_CACHE_SIZE`         versions in a replica's memory, for every family
    `RELOAD_TOKEN`             one more admin token, named `reload-token`, scope reload; only its digest is kept
    ========================== ==================================================================================

    White space around a value is dropped; an empty one counts as not set. Without `allow_env_overrides` the document
    comes back as it is.

    Raises:
        ConfigError: With one sentence for every wrong value, or for every problem of the document itself.
    """
    config = AppConfig.parse(document)
    if not config.allow_env_overrides:
        return document
    changed = copy.deepcopy(document)
    problems: list[str] = []
    for name, variable in _VARIABLES.items():
        if not (text := environ.get(name, "").strip()):
            continue
        try:
            value = variable.read(text)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        if name == BASE_DIR:
            value = os.path.normpath(working_dir / value)
        for part in _parts(changed, variable.reach, config.default_family_name):
            _put(part, variable.keys, value)
    if problems:
        raise ConfigError(problems)
    return changed


def _parts(document: Any, reach: _Reach, default_family: str) -> list[Any]:
    match reach:
        case _Reach.DEFAULT_FAMILY:
            return [document["families"][default_family]]
        case _Reach.EVERY_FAMILY:
            return list(document["families"].values())
        case _Reach.APPLICATION:
            return [document]


def _put(part: Any, keys: tuple[str, ...], value: Any) -> None:
    *way, last = keys
    for key in way:
        part = part.setdefault(key, {})
    part[last] = value


def _file_name(text: str) -> str:
    if "/" in text or text in (".", ".."):
        raise ValueError(f"expected the name of a file, found {text!r}")
    return text


def _mode(text: str) -> str:
    if text not in set(ReloadMode):
        raise ValueError(f"expected {', '.join(ReloadMode)}, found {text!r}")
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"expected a number of seconds above 0, found {text!r}")
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"expected a whole number from 1 on, found {text!r}")
    return int(text)


def _token_sha256(text: str) -> str:
    return token_digest(text).hex()


BASE_DIR: Final = "MODELS_BASE_DIR"
_VARIABLES: Final[Mapping[str, _Variable]] = {
    BASE_DIR: _Variable(_Reach.DEFAULT_FAMILY, ("source", "root")),
    "MODELS_TYPE": _Variable(_Reach.DEFAULT_FAMILY, ("models_type",)),
    "MODELS_MANIFEST": _Variable(_Reach.DEFAULT_FAMILY, ("source", "manifest_name"), _file_name),
    "RELOAD_MODE": _Variable(_Reach.EVERY_FAMILY, ("reload", "mode"), _mode),
    "RELOAD_INTERVAL_SECONDS": _Variable(_Reach.EVERY_FAMILY, ("reload", "interval_s"), _seconds),
    "MODEL_CACHE_SIZE": _Variable(_Reach.EVERY_FAMILY, ("residency", "max_versions"), _count),
    "RELOAD_TOKEN": _Variable(_Reach.APPLICATION, ("security", "reload_token_sha256"), _token_sha256),
}
