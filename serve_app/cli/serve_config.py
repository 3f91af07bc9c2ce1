"""Serve config files as the local instance deploys them: checked before, with the paths and ports of the instance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from serve_app.cli.ports import LOOPBACK
from serve_app.config import AppConfig
from serve_app.config_sources import DirectoryConfig
from serve_app.domain.errors import ConfigError

OUR_APPLICATIONS = "serve_app."
DEFAULT_PORT = 8000


def read_config(path: Path) -> dict[str, Any]:
    """Read a Serve config file and check the `args` of the applications of this package.

    Raises:
        ConfigError: With every problem, each with its path in the file.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError([f"{path}: no such file"]) from error
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: {' '.join(str(error).split())}"]) from error
    if not isinstance(document, dict) or not isinstance(document.get("applications"), list):
        raise ConfigError([f"{path}: expected a Serve config with a list 'applications'"])
    problems: list[str] = []
    for i, application in enumerate(document["applications"]):
        if not isinstance(application, dict):
            problems.append(f"{path}: applications[{i}]: expected a mapping")
        elif is_ours(application):
            try:
                AppConfig.parse(application.get("args") or {})
            except ConfigError as error:
                problems += [f"{path}: applications[{i}].args: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return document


def port_of(document: dict[str, Any]) -> int:
    """Return the port that the file asks for."""
    options = document.get("http_options") or {}
    return int(options.get("port", DEFAULT_PORT))


def localise(document: dict[str, Any], *, port: int, state_dir: Path) -> dict[str, Any]:
    """Return the config for the local instance: on loopback and `port`, its state in `state_dir`.

    A relative `state_dir` in `args` means the one of the command line, for replicas run in another working directory.
    An absolute one stays.
    """
    applications = []
    for application in document["applications"]:
        args = application.get("args") or {}
        known = "state_dir" in args or is_ours(application)
        if known and not Path(args.get("state_dir", ".")).is_absolute():
            args = {**args, "state_dir": str(state_dir)}
        applications.append({**application, "args": args})
    http_options = {**(document.get("http_options") or {}), "host": LOOPBACK, "port": port}
    return {**document, "http_options": http_options, "applications": applications}


def default_model_root(document: dict[str, Any], state_dir: Path) -> tuple[str, Path] | None:
    """Return the family that answers by default in our first application, and the directory of its versions.

    None where it has no directory, or none of the applications is ours.
    """
    for application in document["applications"]:
        if is_ours(application):
            config = AppConfig.parse({**(application.get("args") or {}), "state_dir": str(state_dir)})
            source = config.source(config.default_family_name)
            return (config.default_family_name, Path(source.root)) if isinstance(source, DirectoryConfig) else None
    return None


def is_ours(application: Mapping[str, Any]) -> bool:
    """True for an application of this package."""
    return str(application.get("import_path", "")).startswith(OUR_APPLICATIONS)
