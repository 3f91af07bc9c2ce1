"""The smallest application that `serve-app up` can wait for: it answers /ready and /health."""

from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from starlette.requests import Request
from starlette.responses import JSONResponse


class Tiny:
    """Answers every path with the same body."""

    async def __call__(self, request: Request) -> JSONResponse:
        """Say that all is well."""
        return JSONResponse({"status": "ok", "path": request.url.path})


def build(_args: dict[str, Any]) -> Application:
    """Build it."""
    tiny: Deployment = serve.deployment(Tiny)  # type: ignore[assignment]  # Ray's overloads
    return tiny.options(name="Tiny", ray_actor_options={"num_cpus": 0.1}).bind()
