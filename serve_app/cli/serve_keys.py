"""Keys of a Serve config that Ray does not know. Ray itself ignores them: a misspelt one changes nothing, unnoticed."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    LoggingConfig,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
    gRPCOptionsSchema,
)

from serve_app.domain.errors import nearest

_PARTS: Final[Mapping[str, type[BaseModel]]] = {
    "http_options": HTTPOptionsSchema,
    "grpc_options": gRPCOptionsSchema,
    "logging_config": LoggingConfig,
    "ray_actor_options": RayActorOptionsSchema,
    "applications": ServeApplicationSchema,
    "deployments": DeploymentSchema,
}
"""What lies under a key, on whatever level. What lies under another is not looked into."""


def unknown_keys(config: Mapping[str, Any]) -> list[str]:
    """Say which keys of a Serve config are wrong, each with its path and the nearest right one."""
    return list(_unknown(config, ServeDeploySchema, ""))


def _unknown(value: Mapping[str, Any], model: type[BaseModel], where: str) -> Iterator[str]:
    for key, part in value.items():
        if key not in model.model_fields:
            yield f"{where}{key}: unknown key{nearest(str(key), model.model_fields)}"
        elif key in _PARTS:
            for i, each in enumerate(part if isinstance(part, list) else [part]):
                if isinstance(each, Mapping):
                    place = f"{where}{key}[{i}]." if isinstance(part, list) else f"{where}{key}."
                    yield from _unknown(each, _PARTS[key], place)
