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
    REGISTRY = auto()  # the default family if it has a registry, else the first one that has
    REGISTRIES = auto()
    REDIS_WINDOWS = auto()
    APPLICATION = auto()


@dataclass(frozen=True, slots=True)
class _Variable:
    """One variable: the keys down to what it replaces, and how its text is read (raises ValueError).

    `instead_of` are keys of the source that it stands in for.
    """

    reach: _Reach
    keys: tuple[str, ...]
    read: Callable[[str], Any] = str
    instead_of: tuple[str, ...] = ()


def with_overrides(document: Any, environ: Mapping[str, str], *, working_dir: Path) -> Any:
    """Return the document of an `AppConfig` with what the environment says in place of what it says.

    ============================ ===================================================================================
    `MODELS_BASE_DIR`            root of the default family's source, or a bundle itself; relative to `working_dir`
    `MODELS_TYPE`                `models_type` of the default family
    `MODELS_MANIFEST`            name of the manifest in the bundles of the default family
    `RELOAD_MODE`                `none`, `poll` or `endpoint`, for every family
    `RELOAD_INTERVAL_SECONDS`    seconds between two looks at the source, for every family
    `MODEL_CACHE_SIZE`           versions in a replica's memory, for every family
    `RELOAD_TOKEN`               one more admin token, named `reload-token`, scope reload; only its digest is kept
    `ADMIN_API_TOKEN`            one more admin token, named `admin-api-token`, all scopes; only its digest is kept
    `ADMIN_TOKEN_HEADER`         header of the admin token
    `MODEL_SOURCE`               `local` or `mlflow`, for the default family; `mlflow` needs `MLFLOW_MODEL_NAME`
    `MLFLOW_TRACKING_URI`        address of the registry, for every family that has one
    `MLFLOW_MODEL_NAME`          registered model of the default family, or of the first one with a registry
    `MLFLOW_MODEL_STAGE`         the stage that this family follows
    `MLFLOW_MODEL_VERSION`       the only version that it serves; it wins over the stage
    `MODEL_CACHE_DIR`            its local copies; relative to the state directory
    `MODEL_UPDATE_INTERVAL`      seconds between two looks at the registry, for every family that has one
    `MODEL_AUTO_REFRESH_SECONDS` the same; it wins over `MODEL_UPDATE_INTERVAL`
    `STORE_URL`                  SQLAlchemy URL of the state store, password and all
    `WINDOWS_REDIS_URL`          URL of the Redis that keeps windows, password and all, for every family that has one
    `RAY_CLUSTER_NAME`           name of this cluster, which KubeRay sets: the next cluster of an upgrade has another
    ============================ ===================================================================================

    White space around a value is dropped; an empty one counts as not set. Without `allow_env_overrides` the document
    comes back as it is.

    Raises:
        ConfigError: With one sentence for every wrong value, or for every problem of the document itself.
    """
    config = AppConfig.parse(document)
    if not config.allow_env_overrides:
        return document
    changed = copy.deepcopy(document)
    problems = _choose_source(changed["families"][config.default_family_name], environ)
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
            for key in variable.instead_of:
                part["source"].pop(key, None)
    if problems:
        raise ConfigError(problems)
    return changed


def _parts(document: Any, reach: _Reach, default_family: str) -> list[Any]:
    match reach:
        case _Reach.DEFAULT_FAMILY:
            return [document["families"][default_family]]
        case _Reach.EVERY_FAMILY:
            return list(document["families"].values())
        case _Reach.REGISTRY:
            own = document["families"][default_family]
            found = _registries(document)
            return [own] if own in found else found[:1]
        case _Reach.REGISTRIES:
            return _registries(document)
        case _Reach.REDIS_WINDOWS:
            stores = [(family.get("windows") or {}).get("store") or {} for family in document["families"].values()]
            return [store for store in stores if store.get("kind") == _REDIS_KIND]
        case _Reach.APPLICATION:
            return [document]


def _registries(document: Any) -> list[Any]:
    return [family for family in document["families"].values() if family["source"].get("kind") == _REGISTRY_KIND]


def _choose_source(family: Any, environ: Mapping[str, str]) -> list[str]:
    """Give a family a registry where `MODEL_SOURCE` asks for one; return what is wrong with the wish."""
    wish = environ.get(MODEL_SOURCE, "").strip()
    has_registry = family["source"].get("kind") == _REGISTRY_KIND
    match wish:
        case "":
            return []
        case "local":
            found = f"a family with the registered model {family['source'].get('model')!r}"
            return [f"{MODEL_SOURCE}: expected a family with a directory for 'local', found {found}"] * has_registry
        case "mlflow":
            if has_registry:
                return []
            if not (model := environ.get(MODEL_NAME, "").strip()):
                return [f"{MODEL_SOURCE}: expected {MODEL_NAME} beside 'mlflow', found it not set"]
            family["source"] = {"kind": _REGISTRY_KIND, "model": model}
            family["loader"] = "mlflow"
            return []
        case _:
            return [f"{MODEL_SOURCE}: expected local or mlflow, found {wish!r}"]


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


def _version(text: str) -> str:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"expected the number of a version, found {text!r}")
    return text


BASE_DIR: Final = "MODELS_BASE_DIR"
MODEL_SOURCE: Final = "MODEL_SOURCE"
MODEL_NAME: Final = "MLFLOW_MODEL_NAME"
_REGISTRY_KIND: Final = "mlflow_registry"
_REDIS_KIND: Final = "redis"
_VARIABLES: Final[Mapping[str, _Variable]] = {
    BASE_DIR: _Variable(_Reach.DEFAULT_FAMILY, ("source", "root")),
    "MODELS_TYPE": _Variable(_Reach.DEFAULT_FAMILY, ("models_type",)),
    "MODELS_MANIFEST": _Variable(_Reach.DEFAULT_FAMILY, ("source", "manifest_name"), _file_name),
    "RELOAD_MODE": _Variable(_Reach.EVERY_FAMILY, ("reload", "mode"), _mode),
    "RELOAD_INTERVAL_SECONDS": _Variable(_Reach.EVERY_FAMILY, ("reload", "interval_s"), _seconds),
    "MODEL_CACHE_SIZE": _Variable(_Reach.EVERY_FAMILY, ("residency", "max_versions"), _count),
    "RELOAD_TOKEN": _Variable(_Reach.APPLICATION, ("security", "reload_token_sha256"), _token_sha256),
    "ADMIN_API_TOKEN": _Variable(_Reach.APPLICATION, ("security", "admin_token_sha256"), _token_sha256),
    "ADMIN_TOKEN_HEADER": _Variable(_Reach.APPLICATION, ("security", "token_header")),
    "MLFLOW_TRACKING_URI": _Variable(_Reach.REGISTRIES, ("source", "tracking_uri")),
    MODEL_NAME: _Variable(_Reach.REGISTRY, ("source", "model")),
    "MLFLOW_MODEL_STAGE": _Variable(_Reach.REGISTRY, ("source", "stage"), instead_of=("alias", "version", "newest")),
    "MLFLOW_MODEL_VERSION": _Variable(
        _Reach.REGISTRY, ("source", "version"), _version, instead_of=("alias", "stage", "newest")
    ),
    "MODEL_CACHE_DIR": _Variable(_Reach.REGISTRY, ("source", "cache_dir")),
    "MODEL_UPDATE_INTERVAL": _Variable(_Reach.REGISTRIES, ("reload", "interval_s"), _seconds),
    "MODEL_AUTO_REFRESH_SECONDS": _Variable(_Reach.REGISTRIES, ("reload", "interval_s"), _seconds),
    "STORE_URL": _Variable(_Reach.APPLICATION, ("reconciler", "store_url")),
    "WINDOWS_REDIS_URL": _Variable(_Reach.REDIS_WINDOWS, ("url",)),
    "RAY_CLUSTER_NAME": _Variable(_Reach.APPLICATION, ("reconciler", "cluster")),
}
