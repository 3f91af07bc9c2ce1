"""The Serve config that somebody asks for: in a RayService, or in a file of its own; defaults filled in as Ray does."""

import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from serve_app.cli.serve_config import is_ours
from serve_app.config import AppConfig
from serve_app.domain.drift import ABSENT, Difference
from serve_app.domain.errors import ConfigError, ServeAppError

if TYPE_CHECKING:  # where it is used it is imported there, since importing Ray takes seconds
    from ray.serve.schema import ServeApplicationSchema

STDIN: Final = "-"
KUBECTL_TIMEOUT_S: Final = 30.0
TOLD_OF_INSTANCE: Final = ("proxy_location", "http_options", "grpc_options", "target_capacity")
"""What Serve tells of itself beside its applications."""


class AskedConfigError(ServeAppError):
    """What was asked for cannot be found out."""


def read_rayservice(place: str, name: str | None) -> dict[str, Any]:
    """Return the RayService in a file, or in what stands in the standard input for `-`.

    Raises:
        AskedConfigError: It cannot be read, or there is not exactly one.
    """
    try:
        text = sys.stdin.read() if place == STDIN else Path(place).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise AskedConfigError(f"{place}: {error}") from error
    return only_rayservice(text, name, place="the standard input" if place == STDIN else place)


def ask_kubectl(name: str, namespace: str | None) -> dict[str, Any]:
    """Have `kubectl` get a RayService.

    Raises:
        AskedConfigError: There is no `kubectl`, or it fails.
    """
    command = ["kubectl", "get", "rayservice", name, "--output", "yaml"]
    command += ["--namespace", namespace] if namespace else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=KUBECTL_TIMEOUT_S, check=False)
    except OSError as error:
        raise AskedConfigError("kubectl is not installed here; give the RayService with --rayservice") from error
    except subprocess.TimeoutExpired as error:
        raise AskedConfigError(f"kubectl does not answer within {KUBECTL_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        raise AskedConfigError(f"kubectl: {done.stderr.strip()}")
    return only_rayservice(done.stdout, name, place="kubectl's answer")


def only_rayservice(text: str, name: str | None, *, place: str) -> dict[str, Any]:
    """Return the one RayService among YAML documents, or the one of that name; lists are looked into.

    Raises:
        AskedConfigError: There is none, or more than one.
    """
    try:
        documents = [one for one in yaml.safe_load_all(text) if isinstance(one, dict)]
    except yaml.YAMLError as error:
        raise AskedConfigError(f"{place}: {' '.join(str(error).split())}") from error
    listed = [item for one in documents for item in (one.get("items") or [one]) if isinstance(item, dict)]
    found = {str((one.get("metadata") or {}).get("name")): one for one in listed if one.get("kind") == "RayService"}
    if name is not None:
        found = {key: one for key, one in found.items() if key == name}
    if len(found) != 1:
        told = ", ".join(sorted(found)) or "none"
        raise AskedConfigError(f"{place}: expected one RayService{f' {name}' if name else ''}, found {told}")
    return next(iter(found.values()))


def serve_config_of(rayservice: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Serve config that a RayService asks for.

    Raises:
        AskedConfigError: It has none that can be read.
    """
    try:
        config = yaml.safe_load(rayservice["spec"]["serveConfigV2"])
    except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise AskedConfigError(f"spec.serveConfigV2 cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise AskedConfigError("spec.serveConfigV2: expected a Serve config with a list 'applications'")
    return config


def operator_differences(rayservice: Mapping[str, Any]) -> list[Difference]:
    """Say whether the operator has seen the newest RayService, where its status tells."""
    generation = (rayservice.get("metadata") or {}).get("generation")
    status = rayservice.get("status") or {}
    if generation is None or not status or status.get("observedGeneration") == generation:
        return []
    found = status.get("observedGeneration", ABSENT)
    return [Difference("rayservice.status.observedGeneration", generation, found)]


def filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Serve config with the defaults that Ray, and our applications, fill in; unknown keys stay.

    Raises:
        AskedConfigError: Ray would refuse it.
    """
    from ray.serve.schema import ServeDeploySchema

    try:
        model = ServeDeploySchema.model_validate(config)
    except (ValidationError, ValueError, TypeError) as error:
        raise AskedConfigError(f"Ray refuses the config: {' '.join(str(error).split())[:1000]}") from error
    given = [one for one in config.get("applications") or () if isinstance(one, Mapping)]
    return {
        **config,
        **_dump(model, exclude={"applications"}),
        "applications": [_filled_application(*pair) for pair in zip(model.applications, given, strict=True)],
    }


def running_config(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Serve config that a running Serve says it was given, filled in the same way.

    `details` is the body of `GET /api/serve/applications/`. An application that was not deployed by a config file has
    only its name. What Serve does not tell of itself is left out.

    Raises:
        AskedConfigError: This version of Ray does not understand it.
    """
    given = [app.get("deployed_app_config") or {"name": name} for name, app in details["applications"].items()]
    told = {key: details[key] for key in TOLD_OF_INSTANCE if details.get(key) is not None}
    known = [one for one in given if "import_path" in one]
    config = filled({**told, "applications": known})
    return {
        **{key: config[key] for key in TOLD_OF_INSTANCE},
        "applications": [*config["applications"], *(one for one in given if "import_path" not in one)],
    }


def untold_keys() -> frozenset[str]:
    """Return the keys of a Serve config that a running Serve does not tell."""
    from ray.serve.schema import ServeDeploySchema

    return frozenset(ServeDeploySchema.model_fields) - {*TOLD_OF_INSTANCE, "applications"}


def wishes_of(config: Mapping[str, Any]) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """Return by family and pool the `manifest_version` that our applications ask for, and the deployment's name."""
    pins: dict[tuple[str, str], str] = {}
    deployments: dict[tuple[str, str], str] = {}
    for application in config["applications"]:
        if not is_ours(application):
            continue
        given = {one["name"]: one.get("user_config") or {} for one in application.get("deployments") or ()}
        for family, settings in AppConfig.parse(application.get("args") or {}).families.items():
            for pool in settings.pools:
                name = deployments[family, pool.name] = f"{family}-{pool.name}"
                pins[family, pool.name] = str(given.get(name, {}).get("manifest_version", "current"))
    return pins, deployments


def _filled_application(model: "ServeApplicationSchema", given: Mapping[str, Any]) -> dict[str, Any]:
    deployments = []
    for deployment, told in zip(model.deployments, given.get("deployments") or (), strict=True):
        deployments.append({**told, **_dump(deployment, exclude_unset=True)})
    told = {**given, **_dump(model, exclude={"deployments"}), "deployments": deployments}
    if is_ours(told):
        try:
            told["args"] = AppConfig.parse(told.get("args") or {}).model_dump(mode="json")
        except ConfigError:  # the args are then compared as they were written
            return told
        pins, names = wishes_of({"applications": [told]})
        pools = {name: key for key, name in names.items()}
        for one in deployments:
            if one["name"] in pools:
                one["user_config"] = {"manifest_version": pins[pools[one["name"]]]} | (one.get("user_config") or {})
    return told


def _dump(model: BaseModel, **options: Any) -> dict[str, Any]:
    with warnings.catch_warnings():  # Ray's models hold placeholders that are not of the declared types
        warnings.simplefilter("ignore")
        return model.model_dump(mode="json", **options)
