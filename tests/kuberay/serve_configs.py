"""Checks `serveConfigV2` by Ray's own schema, by the names of its keys, and by the configuration of this package."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from serve_app.cli.serve_keys import unknown_keys
from serve_app.config import AppConfig, ReplicaUserConfig
from serve_app.deployments.handles import GATEWAY, RECONCILER
from serve_app.domain.errors import ConfigError
from serve_app.domain.validation import problems_of


def problems(config: Mapping[str, Any]) -> list[str]:
    """Say everything that is wrong with a Serve config."""
    found = unknown_keys(config)
    try:
        parsed = ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        return [*found, *problems_of(error, ServeDeploySchema)]
    for application in parsed.applications:
        found += [f"{application.name}: {problem}" for problem in _application_problems(application)]
    return found


def _application_problems(application: ServeApplicationSchema) -> Iterator[str]:
    module, _, attribute = application.import_path.partition(":")
    try:
        built = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        yield f"import_path: {error}"
        return
    if not callable(built):
        yield f"import_path: expected a function {attribute} in {module}, found none"
    try:
        settings = AppConfig.parse(application.args)
    except ConfigError as error:
        yield from (f"args: {problem}" for problem in error.problems)
        return
    pools = {f"{name}-{pool.name}" for name, family in settings.families.items() for pool in family.pools}
    known = pools | {GATEWAY, RECONCILER} | {f"{name}-windows" for name in settings.temporal_families}
    for deployment in application.deployments:
        if deployment.name not in known:
            yield f"deployments: {deployment.name}: expected one of {', '.join(sorted(known))}"
        elif deployment.name in pools:
            try:
                ReplicaUserConfig.parse(deployment.user_config or {})
            except ConfigError as error:
                yield from (f"{deployment.name}: user_config: {problem}" for problem in error.problems)
